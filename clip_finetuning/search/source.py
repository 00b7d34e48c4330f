"""What can be indexed: shards as the evaluator reads them, a folder of pictures, or the entries of a mapping.

A folder is read like a shard that was unpacked: `shoes/7.png` with `shoes/7.txt` (caption) and `shoes/7.json`
(product_id, category ...) beside it, if they are there. Without them a picture is a product of its own without a
caption, and its category is the folder that it lies in.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.loading import named_fields
from clip_finetuning.loading.local import LocalBatches
from clip_finetuning.loading.sample import Fields, ShardSample, is_text, parse_sample, record_of, split_name
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.source import Group, Options, Source
from clip_finetuning.loading.streaming import StreamedBatches
from clip_finetuning.pictures.decode import read_source
from clip_finetuning.runtime.accounting import Guessed, Skipped

NO_BYTES = b""


class Opened(NamedTuple):
    """A source of pictures, and how a sample of it is read. `remarks`: what a user should know of how it was read."""

    source: Source
    read: Callable[[Any], ShardSample]  # raises ValueError or OSError, with a `.reason` for counting
    remarks: Sequence[str] = ()


class Picture(NamedTuple):
    """A picture file, or a row of an HDF5 file, and what is known of it."""

    path: str
    said: ShardSample  # with no bytes


def of_shards(pattern: str, options: Options) -> Opened:
    """The samples of shards, in the evaluator's order and batches. Raises FileNotFoundError, and ValueError for fields
    that no sample has."""
    shards = expand_pattern(pattern)
    source = (StreamedBatches if any(map(is_url, shards)) else LocalBatches)(shards, options)
    named_fields.check(pattern, shards, source, options.fields)
    return Opened(source, partial(_shard_sample, source, options.fields))


def _shard_sample(source: Source, fields: Fields, sample: Any) -> ShardSample:
    return parse_sample(source.read(sample), fields)


def of_entry(key: str, path: str, entry: Any) -> Picture:
    """The Picture of a mapping's entry, which the index calls `key`."""
    captions, texts = list(entry.captions), (entry.product_id, entry.category, entry.subcategory, entry.image_name)
    return Picture(path, ShardSample(key, NO_BYTES, captions, *texts, {}))


def of_pictures(
    pictures: Sequence[Picture],
    options: Options,
    skipped: Iterable[Skipped] = (),
    inside: str | None = None,
    remarks: Sequence[str] = (),
) -> Opened:
    """Picture files in the order given; those outside the folder `inside` are refused, links followed."""
    source = FileBatches(pictures, options, list(skipped), inside)
    return Opened(source, source.sample, remarks)


def of_folder(folder: str | os.PathLike, options: Options, output: str | os.PathLike | None = None) -> Opened:
    """Every picture below a folder, by name; hidden files are left out, and files that are no picture are counted.

    The folder `output`, where the index is written, may lie in it: it is no part of the catalogue.
    """
    paths, hidden = _files_below(Path(folder), output)
    beside: dict[str, dict[str, Path]] = {}  # key -> {suffix: file} of texts
    for name, path in paths.items():
        key, suffix = split_name(name)
        if is_text(suffix):
            beside.setdefault(key, {})[suffix] = path
    files = [texts["json"] for texts in beside.values() if "json" in texts]
    who = f"no picture of {os.fspath(folder)!r}"
    # One record without fields stands for the pictures that have no file.
    named_fields.check_records(
        who, lambda: (record_of(_bytes(path) if path else None) for path in [*files, None]), options.fields
    )
    pictures = [
        Picture(str(path), _said(name, beside.get(split_name(name)[0], {}), options.fields))
        for name, path in paths.items()
        if not is_text(split_name(name)[1])
    ]
    silent = [picture for picture in pictures if not picture.said.captions]
    alone = sum(picture.said.product_id == picture.said.key for picture in silent)
    remarks = []
    if silent:
        products = f", {alone:,} of them no product either: each is one of its own" if alone else ""
        remarks.append(f"{len(silent):,} pictures have no caption beside them{products}")
    remarks += [f"{hidden:,} hidden files are left out"] if hidden else []
    return of_pictures(pictures, options, remarks=remarks)


def _files_below(folder: Path, but: str | os.PathLike | None) -> tuple[dict[str, Path], int]:
    """({path within the folder: file}, how many are hidden) without those of a folder, in the order of names everywhere."""
    found, hidden = {}, 0
    but = but if but is not None and os.path.exists(but) else None
    for place, folders, names in os.walk(folder):
        if but is not None and os.path.samefile(place, but):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            hidden += name.startswith(".")
            if not name.startswith("."):
                found[Path(place, name).relative_to(folder).as_posix()] = Path(place, name)
    return found, hidden


def _bytes(path: Path) -> bytes | None:
    """Those of a file; None for what is none, which could be read for ever."""
    return path.read_bytes() if path.is_file() else None


def _said(name: str, beside: dict[str, Path], fields: Fields) -> ShardSample:
    """What the files beside a picture say of it."""
    key, folder = name, name.rpartition("/")[0]
    texts = {suffix: data for suffix, path in beside.items() if (data := _bytes(path)) is not None}
    said = parse_sample({"__key__": key, "jpg": NO_BYTES, **texts}, fields, needs_caption=False)
    image_name = said.image_name or name.rpartition("/")[2]
    return said._replace(category=said.category or folder, product_id=said.product_id or key, image_name=image_name)


class FileBatches:
    """Picture files as a `loading.source.Source`; a sample is its number."""

    streamed = False
    max_workers: int | None = None
    most_captions = 1
    products: np.ndarray | None = None

    def __init__(
        self, pictures: Sequence[Picture], options: Options, skipped: list[Skipped], inside: str | None
    ) -> None:
        self.pictures, self.inside, self.skipped = pictures, inside, skipped
        self.guessed = [
            Guessed(1, picture.said.guess, picture.path, number)
            for number, picture in enumerate(pictures)
            if picture.said.guess
        ]
        self.num_samples, self.batch_size = len(pictures), options.batch_size
        rank, ranks = options.rank, options.world_size
        self._mine = range(len(pictures) * rank // ranks, len(pictures) * (rank + 1) // ranks)
        self.num_batches = -(-len(self._mine) // self.batch_size)

    def groups(self, epoch: int, start: int, worker: int, num_workers: int) -> Iterator[Group]:
        numbers = range(start + (worker - start) % num_workers, self.num_batches, num_workers)
        return (Group(self._mine[i * self.batch_size : (i + 1) * self.batch_size]) for i in numbers)

    def sample(self, sample: int) -> ShardSample:
        """What is known of a picture, with its bytes. Raises pictures.PictureError."""
        picture = self.pictures[sample]
        return picture.said._replace(picture=read_source(picture.path, self.inside))

    def read(self, sample: int) -> dict[str, Any]:
        return {"__key__": self.pictures[sample].said.key, "__url__": self.pictures[sample].path}

    def name(self, sample: int) -> str:
        return self.pictures[sample].path

    def identity(self, sample: int) -> int:
        return sample

    def number(self, sample: int) -> int:
        return sample

    def fingerprint(self) -> str:
        return str(self.num_samples)
