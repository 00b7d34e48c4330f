"""An index of local tar shards: where every sample lies, so that any of them can be read in any order.

Only headers and texts are read to make it (seconds for 260,000 samples), and nothing is ever extracted, so names in a
shard such as `/etc/passwd` or `../x` are mere labels. A sample is then a few seeks and reads, 6 microseconds.
"""

import array
import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clip_finetuning.loading.members import Grouped, are_related, is_part_of, join, resolve, root_of, runs
from clip_finetuning.loading.sample import (
    FURTHER,
    USUAL,
    Fields,
    SampleError,
    is_picture,
    is_text,
    parse_sample,
    product_hash,
    split_name,
)
from clip_finetuning.loading.sizes import expected_sizes
from clip_finetuning.loading.tar_format import AFTER_END, BLOCK, ShardDamage, tar_members
from clip_finetuning.runtime.accounting import Guessed, Skipped

MAX_OPEN_FILES = 256  # a process may have 1,024 on most systems
FEWER = "fewer samples than sizes.json says"
AMBIGUOUS = "files of one name lie apart in the tar, and it has not as many of each kind"
CUT, CHANGED = "shard cut short while it was in use", "shard changed while it was in use"
log = logging.getLogger(__name__)


class ShardReadError(OSError):
    """A sample of an indexed shard that cannot be read any more; `.reason` is one of a few wordings, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OpenShard(NamedTuple):
    """A file, and what it holds where that may be something else than when it was indexed: offset -> (name, size)."""

    file: io.FileIO
    layout: dict | None


class TarIndex:
    """The usable samples of local shards, in order: `len()`, `.products` (N,) int64, `read(i)`, `name(i)`.

    `.most_captions`: of any sample. `.skipped` lists what cannot be used, `.guessed` what is used although something had to
    be guessed, a sample under its number. Raises ValueError for a file that is no tar.
    """

    def __init__(self, paths: Sequence[str], fields: Fields = USUAL) -> None:
        self.paths, self.fields = list(paths), fields
        self.skipped: list[Skipped] = []
        self.most_captions = 1
        self._keys, self._shards, products = [], array.array("l"), array.array("q")
        self._suffixes, self._suffix_codes = [], {}
        self._first, self._member_suffix = (
            array.array("q", [0]),
            array.array("l"),
        )  # members of sample i: from _first[i]
        self._member_offset, self._member_size = array.array("q"), array.array("q")
        self._files, self._process = {}, os.getpid()
        self._stamps, self._reopened = [], set()
        expected, self.guessed = expected_sizes(self.paths)
        for shard, path in enumerate(self.paths):
            self._add_shard(shard, path, expected.get(path), products)
        self.products = np.array(products, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        return self._keys[i]

    def name(self, i: int) -> str:
        """What a message calls sample i."""
        return f"{os.path.basename(self.paths[self._shards[i]])}: {self._keys[i]}"

    def read(self, i: int) -> dict[str, Any]:
        """The raw sample i: suffix -> bytes, with `__key__` and `__url__`. Raises ShardReadError."""
        shard = self._shards[i]
        path = self.paths[shard]
        try:
            files = self._read(i, shard)
        except OSError as error:  # a handle goes stale when a network file system's server starts anew
            self._close(path)
            try:
                files = self._read(i, shard)
            except OSError as still:
                self._close(path)
                reason = f"shard cannot be read: {still.strerror or type(still).__name__}"
                raise ShardReadError(getattr(still, "reason", reason)) from still
            if path not in self._reopened:
                self._reopened.add(path)
                log.warning("%s: %s; opened again, and again if need be", path, error.strerror or error)
        return {"__key__": self._keys[i], "__url__": path, **files}

    def _read(self, i, shard):
        file, layout = self._open(shard)
        files = {}
        for member in range(self._first[i], self._first[i + 1]):
            offset, size = self._member_offset[member], self._member_size[member]
            suffix = self._suffixes[self._member_suffix[member]]
            if layout is not None and not _is_same(layout.get(offset), self._keys[i], suffix, size):
                raise ShardReadError(CUT if os.fstat(file.fileno()).st_size < offset + size else CHANGED)
            file.seek(offset)
            files[suffix] = read_exactly(file, size)
        return files

    def _open(self, shard):
        path = self.paths[shard]
        if self._process != os.getpid():  # a file inherited by fork would share its position with the parent's
            self._files, self._process = {}, os.getpid()
        if path not in self._files:
            while len(self._files) >= MAX_OPEN_FILES:
                self._close(next(iter(self._files)))
            file = open(path, "rb", buffering=0)  # noqa: SIM115
            layout = None if stamp(file) == self._stamps[shard] else layout_of(file, path)
            self._files[path] = OpenShard(file, layout)
        return self._files[path]

    def _close(self, path):
        if path in self._files:
            with contextlib.suppress(OSError):  # as a stale one
                self._files.pop(path).file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _add_shard(self, shard, path, expected, products):
        with open(path, "rb", buffering=8 * BLOCK) as file:
            self._stamps.append(stamp(file))
            contents = contents_of(file, path)
            found, damage, lost = 0, contents.damage, contents.lost
            try:
                for sample in contents.samples:
                    found += 1
                    self._add_sample(shard, path, found, sample, file, products)
            except ShardReadError as error:
                damage, lost = error.reason, len(contents.samples) - found + 1
        for key in contents.ambiguous:
            found += 1
            self.skipped.append(Skipped(1, AMBIGUOUS, f"{os.path.basename(path)}: {key}", (path, key, found)))
        for entry in shortfall(path, path, expected, found, damage, lost):
            (self.guessed if isinstance(entry, Guessed) else self.skipped).append(entry)

    def _add_sample(self, shard, path, number, grouped, file, products):
        key, members = grouped.key, grouped.files
        raw = {"__key__": key, "__url__": path, FURTHER: grouped.has_more}
        for suffix, member in members.items():
            if is_picture(suffix):
                raw[suffix] = b""  # pictures are not read here
            elif is_text(suffix):
                file.seek(member.offset)
                raw[suffix] = read_exactly(file, member.size)
        try:
            sample = parse_sample(raw, self.fields)
        except SampleError as error:
            where = f"{os.path.basename(path)}: {described(grouped)}"
            self.skipped.append(Skipped(1, error.reason, where, (path, key, number)))
            return
        if sample.guess:
            number = len(self._keys)
            self.guessed.append(Guessed(1, sample.guess, f"{os.path.basename(path)}: {key}", number))
        self._keys.append(key)
        self._shards.append(shard)
        products.append(product_hash(sample.product_id))
        self.most_captions = max(self.most_captions, len(sample.captions))
        for suffix in [s for s in members if s in raw]:
            if suffix not in self._suffix_codes:
                self._suffix_codes[suffix] = len(self._suffixes)
                self._suffixes.append(suffix)
            self._member_suffix.append(self._suffix_codes[suffix])
            self._member_offset.append(members[suffix].offset)
            self._member_size.append(members[suffix].size)
        self._first.append(len(self._member_offset))


def read_exactly(file: BinaryIO | io.FileIO, size: int) -> bytes:
    """The next `size` bytes of a file. Raises ShardReadError if it ends before."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise ShardReadError(CUT)
        data += more
    return data


def stamp(file: BinaryIO | io.FileIO) -> tuple[int, int]:
    """What changes if a file does."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def layout_of(file: BinaryIO | io.FileIO, path: str) -> dict[int, tuple[tuple[str, str], int]]:
    """Offset -> ((key, suffix), size) of the files in a tar, as far as it is one."""
    layout = {}
    with contextlib.suppress(ShardDamage, ValueError):
        for name, member in tar_members(file, path, os.fstat(file.fileno()).st_size):
            layout[member.offset] = (split_name(name), member.size)
    return layout


def _is_same(there, key, suffix, size):
    """Whether a file of a layout can be that file of a sample; a text may be that of a name which the key goes on from."""
    return there is not None and there[0][1] == suffix and there[1] == size and are_related(there[0][0], key)


class Contents(NamedTuple):
    """What a tar holds."""

    samples: list[Grouped]  # of Members
    ambiguous: list[str]  # the key of each sample whose files cannot be told apart
    damage: str | None  # what breaks it off
    lost: int  # samples that are known to be lost by that; there may be more


def contents_of(file: BinaryIO | io.FileIO, path: str) -> Contents:
    """Every sample of a tar, whole or not, wherever its files lie. Raises ValueError for what is no tar."""
    all_runs, damage = [], None
    try:
        for run in runs(tar_members(file, path, os.fstat(file.fileno()).st_size)):
            all_runs.append(run)
    except ShardDamage as error:
        damage = error
    together = join(all_runs)
    samples = [sample for run in together.runs for sample in resolve(run)]
    ambiguous = [key for key, count in together.ambiguous for _ in range(count)]
    if damage is None or damage.reason == AFTER_END:
        return Contents(samples, ambiguous, damage and damage.reason, 0)
    whole = list(_without_torn(samples, together.joined))
    lost = len(samples) - len(whole)
    if not lost and not (damage.member and any(is_part_of(damage.member, sample) for sample in whole)):
        lost = 1
    return Contents(whole, ambiguous, damage.reason, lost)


def _without_torn(samples: Sequence[Grouped], joined: set[str]) -> Iterator[Grouped]:
    """Of samples whose files lie apart in a tar that breaks off, those that have all that the first of them has.

    Else the others would be used without their `.json`, say, which is where the tar ends.
    """
    first = next((set(sample.files) for sample in samples if root_of(sample.key) in joined), set())
    return (sample for sample in samples if not first or first <= set(sample.files))


def described(grouped: Grouped) -> str:
    """The key of an unusable sample, with those of its suffixes that say nothing to us."""
    unknown = [f".{suffix}" for suffix in grouped.files if suffix and not is_picture(suffix) and not is_text(suffix)]
    return f"{grouped.key} ({', '.join(unknown)})" if unknown else grouped.key


def shortfall(
    where: str, shard: str, expected: int | None, found: int, damage: str | None, lost: int
) -> Iterator[Skipped | Guessed]:
    """What is to be said of a shard with `found` samples, usable or not, if it breaks off or should have more.

    `lost`: samples that are known to be lost, which counts where no `sizes.json` says how many it should have.
    """
    if damage == AFTER_END:
        yield Guessed(1, AFTER_END, where, (shard, AFTER_END))
    if found < (expected or 0) or damage not in (None, AFTER_END):
        yield Skipped(lost if expected is None else max(expected - found, 0), damage or FEWER, where, shard)
