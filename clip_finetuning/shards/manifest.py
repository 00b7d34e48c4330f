"""What is finished of a data set's shards, and the proof of it.

Beside the shards of `clip_dataset_train` lie `clip_dataset_train.manifest.json` (counts, skipped samples, the SHA-256
of each shard, settings), `sizes.json` (samples of each shard, which open_clip and webdataset read), and the folder
`.clip_dataset_train.records`: one small file a shard, so that a killed run or another machine knows what is done.
The manifest is there only while every shard of the plan is whole.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from clip_finetuning.shards.plan import Shard
from clip_finetuning.shards.storage import LocalFolder, open_folder
from clip_finetuning.shards.tar_writer import TarWriter

ATTEMPTS = 5


class ShardSet:
    """The shards of one data set in an output folder."""

    def __init__(self, output_dir: str | os.PathLike, name: str):
        self.folder = open_folder(output_dir)
        self.output_dir, self.name = str(output_dir), name
        self.manifest = f"{name}.manifest.json"
        self.records = f".{name}.records"

    def file(self, number: int) -> str:
        """The name of a shard."""
        return f"{self.name}.{number:06d}.tar"

    def record(self, shard: Shard) -> dict | None:
        """What is known of a finished shard of the plan; None if it is not finished, or was planned differently."""
        record = _parsed(self.folder.read_text(self._record_name(shard.number)))
        if record.get("plan") != shard.fingerprint or self.folder.size(self.file(shard.number)) != record["bytes"]:
            return None
        return record

    @contextmanager
    def write(self, shard: Shard) -> Iterator[tuple[TarWriter, dict]]:
        """A context (TarWriter, record to fill in); at its end the shard and its record are in place.

        The record is written first, the shard renamed last: killed in between, a shard is redone. An outdated shard is
        removed before that, so that a record never vouches for another run's bytes.
        """
        file, record = self.file(shard.number), {"plan": shard.fingerprint}
        with self.folder.write(file) as temporary:
            with open(temporary, "wb") as stream, TarWriter(stream) as tar:
                yield tar, record
            self.folder.remove(self.manifest)
            self.folder.remove(file)
            self._write_json(self._record_name(shard.number), {**record, "bytes": tar.size, "sha256": tar.sha256})

    def summary(self, plan: Sequence[Shard], about: dict) -> dict:
        """`about` with counts, skipped samples and the finished shards of a plan, as the manifest holds them."""
        records = {self.file(shard.number): record for shard in plan if (record := self.record(shard))}
        skipped = {reason: list(names) for reason, names in about["skipped"].items()}
        for record in records.values():
            for reason, names in record["skipped"].items():
                skipped.setdefault(reason, []).extend(names)
        fields = ("samples", "bytes", "sha256")
        return {
            **about,
            "samples": sum(record["samples"] for record in records.values()),
            "untouched_jpegs": sum(record["untouched_jpegs"] for record in records.values()),
            "skipped": {reason: {"count": len(names), "paths": names} for reason, names in skipped.items()},
            "shards": {file: {field: record[field] for field in fields} for file, record in records.items()},
        }

    def publish(self, summary: dict) -> None:
        """Write the manifest and sizes.json of a finished plan. Runs that finish together write the same."""
        self._write_json(self.manifest, summary)
        self._update_sizes()

    def forget(self, plan: Sequence[Shard]) -> None:
        """Remove the shards of a plan and their records."""
        for shard in plan:
            self.folder.remove(self.file(shard.number))
            self.folder.remove(self._record_name(shard.number))

    def clean(self, shards: Sequence[Shard]) -> None:
        """Delete the temporary files that killed runs left of these shards and of what lies beside them."""
        names = {self.manifest, "sizes.json"}
        for shard in shards:
            names |= {self.file(shard.number), self._record_name(shard.number)}
        self.folder.clean(names)

    def local_paths(self, shards: Sequence[Shard]) -> list[str]:
        """The paths of those shards that lie on this machine."""
        paths = [self.folder.path / self.file(shard.number) for shard in shards if isinstance(self.folder, LocalFolder)]
        return [str(path) for path in paths if path.is_file()]

    def surplus(self, plan: Sequence[Shard]) -> list[str]:
        """Shards of this name beyond those of the plan, from another run."""
        planned = {self.file(shard.number) for shard in plan}
        return [name for name in self.folder.names() if self._is_shard(name) and name not in planned]

    def verify(self, num_workers: int = 0) -> tuple[dict, dict[str, str]]:
        """(manifest, {file: what is wrong with it}). Raises FileNotFoundError if there is no manifest."""
        text = self.folder.read_text(self.manifest)
        if text is None:
            raise FileNotFoundError(
                f"{self.output_dir} holds no {self.manifest}: its shards are not finished; run create_webdataset.py "
                "again with the arguments that it had"
            )
        manifest = _parsed(text)
        if not isinstance(manifest.get("shards"), dict) or type(manifest.get("samples")) is not int:
            raise ValueError(f"{self.manifest} in {self.output_dir} is damaged; delete it and write the shards again")
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            found = pool.map(self._fault, manifest["shards"], manifest["shards"].values())
            return manifest, {name: fault for name, fault in zip(manifest["shards"], found) if fault}

    def _fault(self, name: str, expected: Any) -> str | None:
        if not self._is_shard(name):
            return f"not the name of a shard of {self.name}"  # and no file to look for
        if not _is_known(expected):
            return f"{self.manifest} does not say its bytes, samples and SHA-256"
        size = self.folder.size(name)
        if size is None:
            return "missing"
        if size != expected["bytes"]:
            return f"damaged: {size:,} bytes, not {expected['bytes']:,}"
        digest = hashlib.sha256()
        with self.folder.open(name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return None if digest.hexdigest() == expected["sha256"] else "damaged: its SHA-256 differs"

    def _record_name(self, number: int) -> str:
        return f"{self.records}/{number:06d}.json"

    def _is_shard(self, name: str) -> bool:
        return re.fullmatch(re.escape(self.name) + r"\.\d{6,}\.tar", name) is not None

    def _update_sizes(self) -> None:
        """Enter every finished data set of the folder into sizes.json.

        Read anew until what was written is what should be: of two runs that finish together, the last one to write has
        seen both manifests.
        """
        while True:
            text = self.folder.read_text("sizes.json")
            sizes = {name: size for name, size in _parsed(text).items() if not self._is_shard(name)}
            for name in self.folder.names():
                if name.endswith(".manifest.json"):
                    manifest = _parsed(self.folder.read_text(name))
                    shards = manifest.get("shards")
                    known = shards.items() if isinstance(shards, dict) else ()
                    sizes.update({shard: about["samples"] for shard, about in known if _is_known(about)})
            if _parsed(text) == sizes:
                return
            self._write_json("sizes.json", sizes)

    def _write_json(self, name: str, value: dict) -> None:
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        for attempt in range(ATTEMPTS):
            try:
                with self.folder.write(name) as temporary:
                    temporary.write_bytes(text.encode("utf-8"))
                return
            except FileNotFoundError:  # another part, which has just begun, took our temporary for a killed run's
                if attempt == ATTEMPTS - 1:
                    raise


def _is_known(about: Any) -> bool:
    """Whether a manifest's entry says what a shard must be."""
    kinds = {"bytes": int, "samples": int, "sha256": str}
    return isinstance(about, dict) and all(type(about.get(key)) is kind for key, kind in kinds.items())


def _parsed(text: str | None) -> dict:
    """The object of a JSON text; an empty one for none, or for what is damaged."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
