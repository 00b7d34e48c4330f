"""The index of each local tar, kept in a file so that the next start need not read the tar's headers again.

It lies beside the tars as `.index/NAME.tar.index`; where that folder cannot be written, in the user's cache
(`$XDG_CACHE_HOME/clip-finetuning/index`, by default below `~/.cache`). One file a tar: a tar that changed costs itself alone,
and processes that write at the same time replace whole files by equal ones.

A kept index is data from elsewhere, of which nothing is believed: it counts only if it is of the tar's size and time, of this
format and of the same `rules`, whole by its checksum, and if every number in it lies within bounds. `TarIndex` compares the
headers of what it reads besides.
"""

import hashlib
import json
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.loading.sample import is_picture, is_text
from clip_finetuning.runtime.atomic_write import atomic_write

MAGIC, FORMAT = b"clipidx\n", 1
PREFIX = struct.Struct("<8sII")  # magic, checksum of what follows, bytes of the head
LITTLE_MORE = 1 << 16  # bytes by which an index may exceed its tar, whose every member takes more
STALE, DAMAGED, OTHER = "the tar has changed", "damaged", "of another version or other settings"
DTYPES = ("|u1", "<u2", "<u4", "<i8")


class Unusable(ValueError):
    """A kept index that is not to be used; `.reason` is one of three wordings, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Columns(NamedTuple):
    """The S samples of a tar and their M members, as arrays of the narrowest whole numbers."""

    keys: np.ndarray  # the UTF-8 of all keys, one after the other
    key_ends: np.ndarray  # (S,) where each ends
    products: np.ndarray  # (S,) int64
    checks: np.ndarray  # (S,) of the headers of its members
    firsts: np.ndarray  # (S + 1,): the members of sample i are those from firsts[i] to firsts[i + 1]
    suffixes: np.ndarray  # (M,) numbers in Contents.suffixes
    offsets: np.ndarray  # (M,) of the data, in bytes
    sizes: np.ndarray  # (M,)


class Contents(NamedTuple):
    """What a tar holds."""

    stamp: tuple[int, int]  # its size and its time in nanoseconds
    found: int  # samples, usable or not
    damage: str | None  # why it breaks off
    lost: int  # samples that are known to be lost by that; there may be more
    most_captions: int
    suffixes: list[str]
    skipped: list[tuple[str, str, int]]  # (reason, key, place) of samples that cannot be used
    guessed: list[tuple[str, str, int]]  # (reason, key, number) of those with something guessed
    columns: Columns


def narrow(numbers: Any) -> np.ndarray:
    """Non-negative whole numbers as an array of the narrowest type that holds them."""
    numbers = np.asarray(numbers, dtype=np.int64)
    largest = int(numbers.max(initial=0))
    kind = next((kind for kind in DTYPES[:3] if largest <= np.iinfo(kind).max), DTYPES[3])
    return numbers.astype(kind)


# ---------------------------------------------------------------------------------------------------------- where


def places(path: str) -> Iterator[Path]:
    """The files that may keep a tar's index, the best one first."""
    folder, name = os.path.split(path)
    yield Path(folder, ".index", f"{name}.index")
    yield Path(cache_of(folder), f"{name}.index")


def cache_of(folder: str) -> str:
    """The folder in the user's cache for the index of the shards of a folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return os.path.join(cache, "clip-finetuning", "index", name)


def save(path: str, contents: Contents, rules: Mapping[str, Any]) -> Path:
    """Keep a tar's contents -> where. Raises OSError if there is no place for it."""
    data, failure = encode(contents, rules), OSError()
    for place in places(path):
        try:
            with atomic_write(place) as temporary:
                temporary.write_bytes(data)
            return place
        except OSError as error:
            failure = error
    raise failure


def load(path: str, stamp: tuple[int, int], rules: Mapping[str, Any]) -> Contents | None:
    """The contents of a tar of this size and time; None if none are kept. Raises Unusable if none of those kept will do."""
    unusable = None
    for place in places(path):
        try:
            status = os.stat(place)
            if (
                not stat.S_ISREG(status.st_mode) or status.st_size > stamp[0] + LITTLE_MORE
            ):  # a pipe would be waited for
                raise Unusable(DAMAGED)
            return decode(place.read_bytes(), stamp, rules)
        except FileNotFoundError:
            continue
        except OSError as error:
            if not isinstance(error, NotADirectoryError):
                unusable = unusable or Unusable(DAMAGED)
        except Unusable as error:
            unusable = unusable or error
    if unusable:
        raise unusable
    return None


# --------------------------------------------------------------------------------------------------------- format


def encode(contents: Contents, rules: Mapping[str, Any]) -> bytes:
    """The bytes of the file: `PREFIX`, a head in JSON, then the columns one after the other."""
    columns = [np.ascontiguousarray(column) for column in contents.columns]
    head = {
        **contents._asdict(),
        "format": FORMAT,
        "rules": dict(rules),
        "columns": [[column.dtype.newbyteorder("<").str, len(column)] for column in columns],
    }
    text = json.dumps(head).encode()
    body = text + b"".join(column.astype(column.dtype.newbyteorder("<")).tobytes() for column in columns)
    return PREFIX.pack(MAGIC, zlib.crc32(body), len(text)) + body


def decode(data: bytes, stamp: tuple[int, int], rules: Mapping[str, Any]) -> Contents:
    """The contents that `encode` wrote. Raises Unusable for anything else, or for those of another tar."""
    try:
        magic, checksum, length = PREFIX.unpack_from(data)
        body = memoryview(data)[PREFIX.size :]
        if magic != MAGIC or zlib.crc32(body) != checksum:
            raise Unusable(DAMAGED)
        head = json.loads(bytes(body[:length]))
        if head["format"] != FORMAT or head["rules"] != dict(rules):
            raise Unusable(OTHER)
        if head["stamp"] != list(stamp):
            raise Unusable(STALE)
        contents = Contents(
            stamp=stamp,
            found=_count(head["found"]),
            damage=None if head["damage"] is None else _text(head["damage"]),
            lost=_count(head["lost"]),
            most_captions=_count(head["most_captions"]),
            suffixes=[_suffix(suffix) for suffix in head["suffixes"]],
            skipped=[_entry(entry) for entry in head["skipped"]],
            guessed=[_entry(entry) for entry in head["guessed"]],
            columns=_columns(head["columns"], body[length:]),
        )
    except Unusable:
        raise
    except (ValueError, TypeError, KeyError, IndexError, struct.error, RecursionError):
        raise Unusable(DAMAGED) from None
    if not is_within_bounds(contents):
        raise Unusable(DAMAGED)
    return contents


def is_within_bounds(contents: Contents) -> bool:
    """Whether the columns fit each other, and no member reaches beyond the tar."""
    columns, size = contents.columns, contents.stamp[0]
    samples, members = len(columns.products), len(columns.offsets)
    lengths = {"key_ends": samples, "checks": samples, "firsts": samples + 1, "suffixes": members, "sizes": members}
    if any(len(getattr(columns, name)) != length for name, length in lengths.items()) or contents.found < samples:
        return False
    if columns.products.dtype != "<i8" or columns.keys.dtype != "|u1":
        return False
    offsets, sizes = columns.offsets.astype(np.int64), columns.sizes.astype(np.int64)
    return bool(
        is_rising(columns.key_ends, len(columns.keys))
        and columns.firsts[0] == 0
        and is_rising(columns.firsts, members)
        and offsets.min(initial=512) >= 512
        and offsets.max(initial=0) <= size
        and sizes.min(initial=0) >= 0
        and (sizes <= size - offsets).all()
        and columns.suffixes.min(initial=0) >= 0
        and (columns.suffixes < len(contents.suffixes)).all()
        and contents.most_captions <= max(1, size)
        and all(number < samples for _, _, number in contents.guessed)
    )


def is_rising(ends: np.ndarray, last: int) -> bool:
    """Whether these begin at 0 or above, never fall, and end at `last`."""
    if not len(ends):
        return last == 0
    return bool(ends[0] >= 0 and ends[-1] == last and (ends[1:] >= ends[:-1]).all())


def _columns(described: Any, body: memoryview) -> Columns:
    arrays, start = [], 0
    for kind, length in described:
        if kind not in DTYPES:
            raise ValueError(kind)
        arrays.append(np.frombuffer(body, dtype=kind, count=_count(length), offset=start))
        start += arrays[-1].nbytes
    if start != len(body):
        raise ValueError(start)
    return Columns(*arrays)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(value)
    return value


def _suffix(value: Any) -> str:
    if not is_picture(_text(value)) and not is_text(value):
        raise ValueError(value)
    return value


def _entry(value: Any) -> tuple[str, str, int]:
    reason, key, number = value
    return _text(reason), _text(key), _count(number)
