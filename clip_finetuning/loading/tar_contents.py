"""What a local tar holds: its samples, usable or not, and where each of their files lies.

Only headers and texts are read, and nothing is ever extracted, so names in a shard such as `/etc/passwd` or `../x` are
mere labels.
"""

import array
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from clip_finetuning.loading import kept_index
from clip_finetuning.loading.kept_index import Contents
from clip_finetuning.loading.members import Grouped, is_part_of, join, resolve, root_of, runs
from clip_finetuning.loading.sample import (
    FURTHER,
    USUAL,
    Fields,
    SampleError,
    is_picture,
    is_text,
    parse_sample,
    product_hash,
)
from clip_finetuning.loading.tar_format import AFTER_END, BLOCK, ShardDamage, tar_members
from clip_finetuning.runtime.accounting import Guessed, Skipped

FEWER = "fewer samples than sizes.json says"
AMBIGUOUS = "files of one name lie apart in the tar, and it has not as many of each kind"
CUT = "shard cut short while it was in use"


class ShardReadError(OSError):
    """A sample of an indexed shard that cannot be read any more; `.reason` is one of a few wordings, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_contents(path: str, fields: Fields = USUAL) -> Contents:
    """What a tar holds, from its headers and texts. Raises ValueError if it is none."""
    reader = _ContentsReader(fields)
    with open(path, "rb", buffering=8 * BLOCK) as file:
        stamp, there = stamp_of(file), samples_of(file, path)
        damage, lost = there.damage, there.lost
        try:
            for sample in there.samples:
                reader.add(path, sample, file)
        except ShardReadError as error:
            damage, lost = error.reason, len(there.samples) - reader.found + 1
    for key in there.ambiguous:
        reader.skip(AMBIGUOUS, key)
    return reader.contents(stamp, damage, lost)


class _ContentsReader:
    """The samples of a tar, one after the other."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.found, self.most_captions, self.keys = 0, 1, bytearray()
        self.skipped, self.guessed, self.codes = [], [], {}
        self.products, self.checks, self.key_ends = array.array("q"), array.array("q"), array.array("q")
        self.firsts = array.array("q", [0])
        self.suffixes, self.offsets, self.sizes = array.array("q"), array.array("q"), array.array("q")

    def add(self, path, grouped, file):
        """Enter a sample, usable or not. Raises ShardReadError."""
        self.found += 1
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
            self.skipped.append((error.reason, described(grouped), self.found))
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

    def skip(self, reason, key):
        """Enter a sample that cannot be used."""
        self.found += 1
        self.skipped.append((reason, key, self.found))

    def contents(self, stamp, damage, lost):
        columns = kept_index.Columns(
            keys=np.frombuffer(bytes(self.keys), dtype=np.uint8),
            products=np.array(self.products, dtype=np.int64),
            **{
                name: kept_index.narrow(getattr(self, name))
                for name in ("key_ends", "checks", "firsts", "suffixes", "offsets", "sizes")
            },
        )
        return Contents(
            stamp, self.found, damage, lost, self.most_captions, list(self.codes), self.skipped, self.guessed, columns
        )


class TarSamples(NamedTuple):
    """What a tar holds."""

    samples: list[Grouped]  # of Members
    ambiguous: list[str]  # the key of each sample whose files cannot be told apart
    damage: str | None  # what breaks it off
    lost: int  # samples that are known to be lost by that; there may be more


def samples_of(file: BinaryIO | io.FileIO, path: str) -> TarSamples:
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
        return TarSamples(samples, ambiguous, damage and damage.reason, 0)
    whole = list(_without_torn(samples, together.joined))
    lost = len(samples) - len(whole)
    if not lost and not (damage.member and any(is_part_of(damage.member, sample) for sample in whole)):
        lost = 1
    return TarSamples(whole, ambiguous, damage.reason, lost)


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


def key_of(columns: kept_index.Columns, sample: int) -> str:
    """The key of a sample, by its number in its shard."""
    begin = int(columns.key_ends[sample - 1]) if sample else 0
    return columns.keys[begin : int(columns.key_ends[sample])].tobytes().decode("utf-8", "replace")


def check_of(header: bytes, check: int) -> int:
    """A checksum that goes on from `check` with what a member's header says of its name and size."""
    return zlib.crc32(header[:100] + header[124:136] + header[345:500], check)
