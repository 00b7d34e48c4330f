"""An index of local tar shards: where every sample lies, so that any of them can be read in any order.

Only headers and texts are read to make it (seconds for 260,000 samples), and nothing is ever extracted, so names in a
shard such as `/etc/passwd` or `../x` are mere labels. A sample is then a few seeks and reads, 6 microseconds.
"""

import bisect
import collections
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.loading import kept_index
from clip_finetuning.loading.kept_index import Contents
from clip_finetuning.loading.sample import USUAL, Fields, is_picture
from clip_finetuning.loading.sizes import expected_sizes
from clip_finetuning.loading.tar_contents import (
    ShardReadError,
    check_of,
    key_of,
    read_contents,
    read_exactly,
    shortfall,
)
from clip_finetuning.loading.tar_format import BLOCK
from clip_finetuning.runtime.accounting import Guessed, Skipped

READING = 2  # how the samples of a tar are found; another way needs another number
LONG_START, LISTED = 5.0, 3  # seconds for an index, from which on it is worth a word; places that are named
MAX_OPEN_FILES = 256  # a process may have 1,024 on most systems
CHANGED = "shard changed while it was in use"
log = logging.getLogger(__name__)


class TarIndex:
    """The usable samples of local shards, in order: `len()`, `.products` (N,) int64, `read(i)`, `name(i)`.

    `.most_captions`: of any sample. `.skipped` lists what cannot be used, `.guessed` what is used although something had to
    be guessed, a sample under its number. What was found in a shard is kept for the next time (`loading.kept_index`).
    Raises ValueError for a file that is no tar.
    """

    def __init__(self, paths: Sequence[str], fields: Fields = USUAL) -> None:
        self.paths, self.fields = list(paths), fields
        self.skipped: list[Skipped] = []
        self._files, self._process, self._reopened = {}, os.getpid(), set()
        expected, self.guessed = expected_sizes(self.paths)
        self._shards = all_contents(self.paths, fields)
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

    def picture_bytes(self) -> np.ndarray:
        """(N,) int64: how large the pictures of each sample are, as its headers say."""
        sums = [np.empty(0, np.int64)]
        for contents in self._shards:
            columns, pictures = contents.columns, np.array([is_picture(suffix) for suffix in contents.suffixes], bool)
            sizes = np.where(pictures[columns.suffixes], columns.sizes, 0).astype(np.int64)
            up_to = np.concatenate([[0], np.cumsum(sizes)])
            sums.append(np.diff(up_to[columns.firsts]))
        return np.concatenate(sums)

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
        for entry in shortfall(path, path, expected, shard.found, shard.damage, shard.lost):
            if isinstance(entry, Guessed):
                self.guessed.append(entry)
            else:
                self.skipped.append(entry)


class Found(NamedTuple):
    """What a tar holds; why what was kept of it will not do; the folder where it is kept from now on, or what says no to that."""

    contents: Contents
    unusable: str | None = None
    kept_in: str | None = None
    not_kept: str | None = None


def keep(paths: Iterable[str], fields: Fields = USUAL) -> None:
    """Keep the index of shards where none is kept yet, so that whoever reads them first begins at once."""
    for path in paths:
        if reason := find_contents(path, fields).not_kept:
            log.warning("the index of %s is not kept: %s", path, reason)
            return


def all_contents(paths: Sequence[str], fields: Fields) -> list[Contents]:
    """What each shard holds. Said is what was kept and will not do, and where an index that took long is kept."""
    began = time.monotonic()
    found = [find_contents(path, fields) for path in paths]
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


def find_contents(path: str, fields: Fields) -> Found:
    """What a tar holds: as kept, or read from its headers and then kept. Raises ValueError if it is no tar."""
    unusable, status, rules = None, os.stat(path), rules_of(fields)
    try:
        kept = kept_index.load(path, (status.st_size, status.st_mtime_ns), rules)
        if kept is not None:
            return Found(kept)
    except kept_index.Unusable as error:
        unusable = error.reason
    contents = read_contents(path, fields)
    try:
        return Found(contents, unusable, kept_in=str(kept_index.save(path, contents, rules).parent))
    except OSError as error:
        return Found(contents, unusable, not_kept=str(error))


def rules_of(fields: Fields) -> dict[str, Any]:
    """What decides the samples of a tar, besides its bytes."""
    return {"reading": READING, "caption": fields.caption, "product": fields.product}
