"""An index of local tar shards: where every sample lies, so that any of them can be read in any order.

Only headers and texts are read to make it (seconds for 260,000 samples), and nothing is ever extracted, so names in a
shard such as `/etc/passwd` or `../x` are mere labels. A sample is then a few seeks and reads, 6 microseconds.
"""

import array
import bisect
import collections
import contextlib
import io
import itertools
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from clip_finetuning.loading import kept_index
from clip_finetuning.loading.kept_index import Contents
from clip_finetuning.loading.sample import (
    PICTURE_SUFFIXES,
    SampleError,
    is_text,
    parse_sample,
    product_hash,
    split_name,
)
from clip_finetuning.loading.sizes import expected_sizes
from clip_finetuning.runtime.accounting import Guessed, Skipped

BLOCK = 512
ZEROS = bytes(BLOCK)
REGULAR, LONG_NAME, EXTENDED, NO_DATA = b"0\0007", b"L", b"x", b"123456"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
RULES = {"reading": 1}  # what decides the samples of a tar, besides its bytes; another reading needs another number
LONG_START, LISTED = 5.0, 3  # seconds for an index, from which on it is worth a word; places that are named
MAX_OPEN_FILES = 256  # a process may have 1,024 on most systems
TRUNCATED, DAMAGED, FEWER = "truncated shard", "damaged shard", "fewer samples than sizes.json says"
CUT, CHANGED = "shard cut short while it was in use", "shard changed while it was in use"
T = TypeVar("T")
log = logging.getLogger(__name__)


class Member(NamedTuple):
    """Where the bytes of a file in a tar lie."""

    offset: int
    size: int


class ShardDamage(Exception):
    """A tar that ends, or turns into something else, before its end marker; `.member`: the name of a file cut short."""

    def __init__(self, reason: str, member: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.member = reason, member


class ShardReadError(OSError):
    """A sample of an indexed shard that cannot be read any more; `.reason` is one of a few wordings, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TarIndex:
    """The usable samples of local shards, in order: `len()`, `.products` (N,) int64, `read(i)`, `name(i)`.

    `.most_captions`: of any sample. `.skipped` lists what cannot be used, `.guessed` what is used although something had to
    be guessed, a sample under its number. What was found in a shard is kept for the next time (`loading.kept_index`).
    Raises ValueError for a file that is no tar.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.skipped: list[Skipped] = []
        self._files, self._process, self._reopened = {}, os.getpid(), set()
        expected, self.guessed = expected_sizes(self.paths)
        self._shards = all_contents(self.paths)
        counts = [len(shard.columns.products) for shard in self._shards]
        self._ends = list(itertools.accumulate(counts))  # of each shard's samples
        self.products = np.concatenate([np.empty(0, np.int64), *(shard.columns.products for shard in self._shards)])
        self.most_captions = max((shard.most_captions for shard in self._shards), default=1)
        for path, shard, end in zip(self.paths, self._shards, self._ends):
            self._account(path, shard, expected.get(path), end - len(shard.columns.products))

    def __len__(self) -> int:
        return len(self.products)

    def key(self, i: int) -> str:
        shard, sample = self._place(i)
        return key_of(self._shards[shard].columns, sample)

    def name(self, i: int) -> str:
        """What a message calls sample i."""
        return f"{os.path.basename(self.paths[self._place(i)[0]])}: {self.key(i)}"

    def read(self, i: int) -> dict[str, Any]:
        """The raw sample i: suffix -> bytes, with `__key__` and `__url__`. Raises ShardReadError."""
        shard, sample = self._place(i)
        path = self.paths[shard]
        try:
            files = self._read(shard, sample)
        except OSError as error:  # a handle goes stale when a network file system's server starts anew
            self._close(path)
            try:
                files = self._read(shard, sample)
            except OSError as still:
                self._close(path)
                reason = f"shard cannot be read: {still.strerror or type(still).__name__}"
                raise ShardReadError(getattr(still, "reason", reason)) from still
            if path not in self._reopened:
                self._reopened.add(path)
                log.warning("%s: %s; opened again, and again if need be", path, error.strerror or error)
        return {"__key__": key_of(self._shards[shard].columns, sample), "__url__": path, **files}

    def _place(self, i: int) -> tuple[int, int]:
        """(shard, number in it) of a sample."""
        if not 0 <= i < len(self.products):
            raise IndexError(i)
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def _read(self, shard, sample):
        file, contents = self._open(self.paths[shard]), self._shards[shard]
        columns = contents.columns
        files, check = {}, 0
        for member in range(columns.firsts[sample], columns.firsts[sample + 1]):
            file.seek(int(columns.offsets[member]) - BLOCK)
            data = read_exactly(file, BLOCK + int(columns.sizes[member]))
            check = check_of(data[:BLOCK], check)
            files[contents.suffixes[columns.suffixes[member]]] = data[BLOCK:]
        if check != columns.checks[sample]:
            raise ShardReadError(CHANGED)
        return files

    def _open(self, path):
        if self._process != os.getpid():  # a file inherited by fork would share its position with the parent's
            self._files, self._process = {}, os.getpid()
        if path not in self._files:
            while len(self._files) >= MAX_OPEN_FILES:
                self._close(next(iter(self._files)))
            self._files[path] = open(path, "rb", buffering=0)  # noqa: SIM115
        return self._files[path]

    def _close(self, path):
        if path in self._files:
            with contextlib.suppress(OSError):  # as a stale one
                self._files.pop(path).close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _account(self, path, shard, expected, first):
        """Enter what a shard lacks, and what was guessed of its samples, which are numbered from `first`."""
        name = os.path.basename(path)
        for reason, key, place in shard.skipped:
            self.skipped.append(Skipped(1, reason, f"{name}: {key}", (path, key, place)))
        for reason, key, number in shard.guessed:
            self.guessed.append(Guessed(1, reason, f"{name}: {key}", first + number))
        if shard.damage or shard.found < (expected or 0):
            missing = 1 if expected is None else max(expected - shard.found, 0)
            self.skipped.append(Skipped(missing, shard.damage or FEWER, path, path))


class Found(NamedTuple):
    """What a tar holds; why what was kept of it will not do; the folder where it is kept from now on, or what says no to that."""

    contents: Contents
    unusable: str | None = None
    kept_in: str | None = None
    not_kept: str | None = None


def keep(paths: Iterable[str]) -> None:
    """Keep the index of shards where none is kept yet, so that whoever reads them first begins at once."""
    for path in paths:
        if reason := find_contents(path).not_kept:
            log.warning("the index of %s is not kept: %s", path, reason)
            return


def all_contents(paths: Sequence[str]) -> list[Contents]:
    """What each shard holds. Said is what was kept and will not do, and where an index that took long is kept."""
    began = time.monotonic()
    found = [find_contents(path) for path in paths]
    unusable = collections.Counter(one.unusable for one in found if one.unusable)
    if unusable:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in unusable.items())
        log.warning(
            "the kept index of %d of %d shards cannot be used (%s), so these shards were read anew",
            sum(unusable.values()), len(paths), reasons,
        )  # fmt: skip
    if (seconds := time.monotonic() - began) > LONG_START:
        outcomes = {f"it is kept in {one.kept_in}" for one in found if one.kept_in}
        outcomes |= {f"it is not kept: {one.not_kept}" for one in found if one.not_kept}
        for outcome in sorted(outcomes)[:LISTED]:
            log.warning("the index of the shards took %.0f s; %s", seconds, outcome)
    return [one.contents for one in found]


def find_contents(path: str) -> Found:
    """What a tar holds: as kept, or read from its headers and then kept. Raises ValueError if it is no tar."""
    unusable, status = None, os.stat(path)
    try:
        kept = kept_index.load(path, (status.st_size, status.st_mtime_ns), RULES)
        if kept is not None:
            return Found(kept)
    except kept_index.Unusable as error:
        unusable = error.reason
    contents = read_contents(path)
    try:
        return Found(contents, unusable, kept_in=str(kept_index.save(path, contents, RULES).parent))
    except OSError as error:
        return Found(contents, unusable, not_kept=str(error))


def read_contents(path: str) -> Contents:
    """What a tar holds, from its headers and texts. Raises ValueError if it is none."""
    reader = _ContentsReader()
    with open(path, "rb", buffering=8 * BLOCK) as file:
        stamp, damage = stamp_of(file), None
        try:
            for key, members in group_members(tar_members(file, path)):
                reader.add(path, key, members, file)
        except (ShardDamage, ShardReadError) as error:
            damage = error.reason
    return reader.contents(stamp, damage)


class _ContentsReader:
    """The samples of a tar, one after the other."""

    def __init__(self) -> None:
        self.found, self.most_captions, self.keys = 0, 1, bytearray()
        self.skipped, self.guessed, self.codes = [], [], {}
        self.products, self.checks, self.key_ends = array.array("q"), array.array("q"), array.array("q")
        self.firsts = array.array("q", [0])
        self.suffixes, self.offsets, self.sizes = array.array("q"), array.array("q"), array.array("q")

    def add(self, path, key, members, file):
        self.found += 1
        raw = {"__key__": key, "__url__": path}
        for suffix, member in members.items():
            if suffix in PICTURE_SUFFIXES:
                raw[suffix] = b""  # pictures are not read here
            elif is_text(suffix):
                file.seek(member.offset)
                raw[suffix] = read_exactly(file, member.size)
        try:
            sample = parse_sample(raw)
        except SampleError as error:
            self.skipped.append((error.reason, key, self.found))
            return
        if sample.guess:
            self.guessed.append((sample.guess, key, len(self.products)))
        self.products.append(product_hash(sample.product_id))
        self.most_captions = max(self.most_captions, len(sample.captions))
        self.keys += key.encode("utf-8", "surrogatepass")
        self.key_ends.append(len(self.keys))
        check = 0
        for suffix in [s for s in members if s in raw]:
            self.suffixes.append(self.codes.setdefault(suffix, len(self.codes)))
            self.offsets.append(members[suffix].offset)
            self.sizes.append(members[suffix].size)
            file.seek(members[suffix].offset - BLOCK)
            check = check_of(read_exactly(file, BLOCK), check)
        self.checks.append(check)
        self.firsts.append(len(self.offsets))

    def contents(self, stamp, damage):
        columns = kept_index.Columns(
            keys=np.frombuffer(bytes(self.keys), dtype=np.uint8),
            products=np.array(self.products, dtype=np.int64),
            **{
                name: kept_index.narrow(getattr(self, name))
                for name in ("key_ends", "checks", "firsts", "suffixes", "offsets", "sizes")
            },
        )
        return Contents(
            stamp, self.found, damage, self.most_captions, list(self.codes), self.skipped, self.guessed, columns
        )


def key_of(columns: kept_index.Columns, sample: int) -> str:
    """The key of a sample, by its number in its shard."""
    begin = int(columns.key_ends[sample - 1]) if sample else 0
    return columns.keys[begin : int(columns.key_ends[sample])].tobytes().decode("utf-8", "replace")


def check_of(header: bytes, check: int) -> int:
    """A checksum that goes on from `check` with what a member's header says of its name and size."""
    return zlib.crc32(header[:100] + header[124:136] + header[345:500], check)


def read_exactly(file: BinaryIO | io.FileIO, size: int) -> bytes:
    """The next `size` bytes of a file. Raises ShardReadError if it ends before."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise ShardReadError(CUT)
        data += more
    return data


def stamp_of(file: BinaryIO | io.FileIO) -> tuple[int, int]:
    """What changes if a file does."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def group_members(members: Iterable[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T]]]:
    """(name, value) of a tar's files -> (key, suffix -> value) of its samples: neighbours of one key are a sample.

    A suffix met twice begins another sample, as in open_clip_train. If the tar breaks off, a last sample that may be
    incomplete is dropped.
    """
    key, sample, complete = "", {}, set()
    try:
        for name, value in members:
            this_key, suffix = split_name(name)
            if this_key.endswith("/") or not this_key or name.startswith("__"):  # ._x.jpg, __meta__: not samples
                continue
            if sample and (this_key != key or suffix in sample):
                yield key, sample
                sample, complete = {}, set(sample)
            key = this_key
            sample[suffix] = value
    except ShardDamage as damage:
        cut_key = split_name(damage.member)[0] if damage.member else None
        if sample and cut_key != key and (cut_key or (complete and complete <= set(sample))):
            yield key, sample
        raise
    if sample:
        yield key, sample


def tar_members(file: BinaryIO | io.FileIO, path: str) -> Iterator[tuple[str, Member]]:
    """(name, Member) of the regular files in an uncompressed tar (ustar, GNU or pax). Raises ShardDamage, ValueError.

    tarfile reads the same formats but takes ten times as long for each header.
    """
    end = os.fstat(file.fileno()).st_size
    offset, next_name, next_size = 0, None, None
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if header == ZEROS:
            return
        if len(header) < BLOCK:
            raise ShardDamage(TRUNCATED)
        size = _size(header)
        if size is None or not _is_header(header):
            if offset == 0:
                raise ValueError(_no_tar_message(path, header))
            raise ShardDamage(DAMAGED)
        kind = header[156:157]
        data = offset + BLOCK
        if kind in REGULAR:
            size = size if next_size is None else next_size
            name = next_name or _name(header)
            if data + size > end:
                raise ShardDamage(TRUNCATED, name)
            yield name, Member(data, size)
            next_name, next_size = None, None
        elif data + size > end and kind not in NO_DATA:
            raise ShardDamage(TRUNCATED)
        elif kind == LONG_NAME:
            next_name = file.read(size).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == EXTENDED:
            records = _extended_records(file.read(size))
            next_name, next_size = records.get("path", next_name), records.get("size")
        if kind in NO_DATA:  # links and folders
            size, next_name, next_size = 0, None, None
        offset = data + (size + BLOCK - 1) // BLOCK * BLOCK


def _is_header(header):
    if header[257:262] == b"ustar":
        return True
    stored = header[148:156].strip(b"\0 ")  # the old format has no magic word, only a checksum
    return stored.isdigit() and int(stored, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _size(header):
    """The size field, octal or (from 8 GiB) base 256, or None if it is neither."""
    field = header[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _name(header):
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _extended_records(data):
    """`path` and `size` of a pax header, whose records are `LENGTH KEY=VALUE` lines."""
    records = {}
    while data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"path":
            records["path"] = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit():
            records["size"] = int(value)
        data = data[int(length) :]
    return records


def _no_tar_message(path, header):
    if header.startswith(COMPRESSED):
        return (
            f"{path} is compressed, and pictures gain nothing by that; unpack it, or stream it: 'pipe:gzip -dc {path}'"
        )
    return f"{path} is not a tar file"
