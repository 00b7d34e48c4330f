"""One shard from front to back: the usable samples of a stream, and each of the others told once.

A stream cannot go back: of a sample, picture and text must be neighbours. Whatever else there is, is remembered by its names
alone until the shard's end, where it is told which of it belongs together.
"""

import bz2
import collections
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO
from urllib.parse import urlparse

import fsspec
from webdataset.gopen import Pipe, gopen, gopen_schemes

from clip_finetuning.loading.members import Grouped, is_part_of, resolve, runs, shorter
from clip_finetuning.loading.sample import (
    FURTHER,
    USUAL,
    Fields,
    SampleError,
    parse_sample,
    product_hash,
    record_of,
)
from clip_finetuning.loading.shard_list import is_url
from clip_finetuning.loading.tar_format import AFTER_END, TRUNCATED, ForwardFile, ShardDamage, tar_members
from clip_finetuning.loading.tar_index import described, shortfall
from clip_finetuning.runtime.accounting import Guessed, Skipped

REMEMBERED = 100_000  # keys of a shard whose files were met, in case that more of them follow
UNREADABLE = "unreadable shard"
NOT_ADJACENT = (
    "picture and text not adjacent, as a stream needs them: write the tar with --sort=name, or read a local copy"
)
APART = "files of a sample that are not adjacent in a stream, and not used"
PROBLEMS = {TRUNCATED: "unexpected end of data"}
RawSample = dict[str, Any]
Report = Callable[[Skipped | Guessed], object]  # takes what breaks a shard off, and what of it cannot be used


def open_shard(shard: str) -> BinaryIO | Pipe:
    """A binary stream of a local path, or of any URL that webdataset or fsspec knows."""
    if not is_url(shard):
        return open(shard, "rb")
    if urlparse(shard).scheme in gopen_schemes:
        return gopen(shard)
    file_system, path = fsspec.core.url_to_fs(shard)
    return file_system.open(path, "rb")


def shard_samples(
    shard: str, report: Report, expected: int | None = None, fields: Fields = USUAL
) -> Iterator[RawSample]:
    """The usable raw samples of one shard, in order, with `__product__`, the hash of each one's product.

    What cannot be used and what breaks the shard off goes to `report`, a sample that cannot be used once, at the end.
    """
    try:
        stream = open_shard(shard)
    except (OSError, ValueError, ImportError) as error:
        report(Skipped(expected or 1, UNREADABLE, f"{shard} ({error})", shard))
        return
    found, unusable, damage, problem, lost = 0, Unusable(shard), None, None, 1
    try:
        for run in runs(_members(_bytes_of(stream), shard)):
            for grouped in resolve(run):
                found += 1
                key, files = grouped.key, grouped.files
                raw = {"__key__": key, "__url__": shard, "__place__": found, FURTHER: grouped.has_more, **files}
                try:
                    raw["__product__"] = product_hash(parse_sample(raw, fields).product_id)
                except SampleError as error:
                    unusable.note(grouped, error.reason, found)
                    continue
                unusable.met(grouped)
                yield raw
    except ShardDamage as error:
        damage, problem = error.reason, PROBLEMS.get(error.reason, error.reason)
        lost = int(error.member is None or not unusable.completes(error.member))
    except ValueError as error:  # no tar
        damage, problem = UNREADABLE, str(error)
    except OSError as error:
        damage, problem = TRUNCATED, str(error)
    except GeneratorExit:  # whoever reads wants no more: the rest is not worth its transfer
        _close(stream)
        unusable.report(report)
        raise
    if failed := _failure_at_end(stream):
        damage, problem = damage or TRUNCATED, failed
    found -= unusable.report(report)
    if damage and damage != AFTER_END and not found:
        damage = UNREADABLE
    where = f"{shard} ({problem})" if problem else shard
    for entry in shortfall(where, shard, expected, found, damage, lost):
        report(entry)


def shard_records(shard: str) -> Iterator[dict[str, Any]]:
    """What the `.json` of each sample says, usable or not, as far as the shard can be read."""
    with (
        contextlib.suppress(ShardDamage, OSError, ValueError, ImportError),
        contextlib.closing(open_shard(shard)) as stream,
    ):
        for run in runs(_members(_bytes_of(stream), shard)):
            yield from (record_of(sample.files.get("json")) for sample in resolve(run))


class Unusable:
    """What a stream cannot use of a shard, kept to its end: only there it is known which of it belongs together."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._parts: list[tuple[Grouped, Skipped]] = []
        self._used: dict[str, frozenset[str]] = {}  # key of a sample that is used, and what it goes on from -> suffixes
        self._suffixes: dict[frozenset[str], frozenset[str]] = {}  # of which there are few

    def met(self, grouped: Grouped) -> None:
        """Remember a sample that is used."""
        if len(self._used) < REMEMBERED:
            suffixes = frozenset(grouped.files)
            for key in (grouped.key, *shorter(grouped.key)):
                self._used[key] = self._suffixes.setdefault(suffixes, suffixes)

    def note(self, grouped: Grouped, reason: str, place: int) -> None:
        """Remember what is no sample by itself, by its names alone."""
        where = f"{self._shard}: {described(grouped)}"
        entry = Skipped(1, reason, where, (self._shard, grouped.key, place))
        self._parts.append((grouped._replace(files=dict.fromkeys(grouped.files)), entry))

    def completes(self, name: str) -> bool:
        """Whether a file of this name belongs to one of the parts."""
        return any(is_part_of(name, grouped) for grouped, _ in self._parts)

    def _is_of_used(self, grouped):
        used = self._used.get(grouped.key)
        return used is not None and used.isdisjoint(grouped.files)

    def report(self, report: Report) -> int:
        """Tell each sample once -> how many of the parts were no samples of their own."""
        pictures = [part for part in self._parts if part[0].has_picture]
        texts = [part for part in self._parts if not part[0].has_picture]
        of_used = [part for part in texts if self._is_of_used(part[0])]
        texts = _first_of_each([part for part in texts if not self._is_of_used(part[0])])
        picture_names, text_names = (Names(grouped.key for grouped, _ in parts) for parts in (pictures, texts))
        for grouped, entry in pictures:
            is_apart = not grouped.has_text and text_names.count(grouped.key)
            report(entry._replace(reason=NOT_ADJACENT) if is_apart else entry)
        told, met = len(pictures), collections.Counter()
        for grouped, entry in texts:
            met[grouped.key] += 1
            with_picture = picture_names.count(grouped.key)
            if met[grouped.key] > with_picture:  # the others were told with their pictures
                report(entry._replace(reason=NOT_ADJACENT) if with_picture else entry)
                told += 1
        for _, entry in of_used:
            report(Guessed(1, APART, entry.where, entry.of))
        return len(self._parts) - told


class Names:
    """Some keys, and how many of them are a key, go on from it, or are what it goes on from."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._exact = collections.Counter(keys)
        self._below = self._exact.copy()
        for key, count in self._exact.items():
            self._below.update(dict.fromkeys(shorter(key), count))

    def count(self, key: str) -> int:
        return self._below[key] + sum(self._exact[above] for above in shorter(key))


def _first_of_each(parts: Sequence[tuple[Grouped, Skipped]]) -> list[tuple[Grouped, Skipped]]:
    """As many parts as there are samples that parts without a picture can be of: a `.txt` and a `.json` of one key are one."""
    met: collections.Counter[tuple[str, str]] = collections.Counter()
    samples: dict[tuple[str, int], tuple[Grouped, Skipped]] = {}
    for grouped, entry in parts:
        for suffix in grouped.files:
            met[grouped.key, suffix] += 1
            samples.setdefault((grouped.key, met[grouped.key, suffix]), (grouped, entry))
    return list(samples.values())


def _bytes_of(stream: BinaryIO | Pipe) -> Any:
    """webdataset's Pipe raises once its command has failed, although samples may still wait in the pipe."""
    return stream.stream if isinstance(stream, Pipe) else stream


def _failure_at_end(stream: BinaryIO | Pipe) -> str | None:
    """Read the rest, since a command fails if nobody takes its output, and close -> what failed, or None."""
    try:
        while _bytes_of(stream).read(1 << 16):
            pass
        if isinstance(stream, Pipe) and stream.proc.wait() not in stream.ignore_status:
            return f"exit code {stream.proc.returncode}"
        return None
    except OSError as error:
        return str(error)
    finally:
        _close(stream)


def _close(stream: BinaryIO | Pipe) -> None:
    with contextlib.suppress(OSError):
        stream.close()


def _members(stream: Any, shard: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the regular files in a tar, plain or compressed. Raises ShardDamage, ValueError, OSError."""
    name = None
    try:
        file = ForwardFile(_unpacked(stream))
        for name, member in tar_members(file, shard):
            data = file.read(member.size)
            if len(data) < member.size:
                raise ShardDamage(TRUNCATED, name)
            yield name, data
            name = None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError):  # compressed data that break off
        raise ShardDamage(TRUNCATED, name) from None


class _Begun:
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: Any) -> None:
        self._first, self._stream = first, stream

    def read(self, size: int = -1) -> bytes:
        if not self._first:
            return self._stream.read(size)
        data, self._first = (self._first, b"") if size < 0 else (self._first[:size], self._first[size:])
        return data if size >= 0 else data + self._stream.read()


def _unpacked(stream: Any) -> Any:
    """The stream itself, or what it unpacks to."""
    first = stream.read(6)
    begun: Any = _Begun(first, stream)
    if first.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=begun)
    if first.startswith(b"BZh"):
        return bz2.BZ2File(begun)
    return lzma.LZMAFile(begun) if first.startswith(b"\xfd7zXZ") else begun
