"""An index of local tar shards: where every sample lies, so that any of them can be read in any order.

Only headers and texts are read to make it (seconds for 260,000 samples), and nothing is ever extracted, so names in a
shard such as `/etc/passwd` or `../x` are mere labels. A sample is then a few seeks and reads, 6 microseconds.
"""

import array
import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

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


class OpenShard(NamedTuple):
    """A file, and what it holds where that may be something else than when it was indexed: offset -> (name, size)."""

    file: io.FileIO
    layout: dict | None


class TarIndex:
    """The usable samples of local shards, in order: `len()`, `.products` (N,) int64, `read(i)`, `name(i)`.

    `.most_captions`: of any sample. `.skipped` lists what cannot be used, `.guessed` what is used although something had to
    be guessed, a sample under its number. Raises ValueError for a file that is no tar.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
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
            if layout is not None and layout.get(offset) != ((self._keys[i], suffix), size):
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
        found, damage = 0, None
        with open(path, "rb", buffering=8 * BLOCK) as file:
            self._stamps.append(stamp(file))
            samples = group_members(tar_members(file, path))
            try:
                for key, members in samples:
                    found += 1
                    self._add_sample(shard, path, (key, found), members, file, products)
            except (ShardDamage, ShardReadError) as error:
                damage = error
        if damage or found < (expected or 0):
            reason = damage.reason if damage else FEWER
            missing = 1 if expected is None else max(expected - found, 0)
            self.skipped.append(Skipped(missing, reason, path, path))

    def _add_sample(self, shard, path, place, members, file, products):
        key = place[0]
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
            self.skipped.append(Skipped(1, error.reason, f"{os.path.basename(path)}: {key}", (path, *place)))
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
        for name, member in tar_members(file, path):
            layout[member.offset] = (split_name(name), member.size)
    return layout


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
