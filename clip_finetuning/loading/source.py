"""What a source of samples is, local or streamed: the interface between the shards and the batches that are made of them."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from clip_finetuning.loading.sample import USUAL, Fields
from clip_finetuning.runtime.accounting import Guessed, Skipped


@dataclass(frozen=True)
class Options:
    """Which batches of the shards are wanted, and which part of them by this process."""

    batch_size: int  # of this process
    train: bool
    seed: int = 0
    views: str = "all"
    rank: int = 0
    world_size: int = 1
    max_samples: int | None = None  # the first ones alone; in evaluation
    fields: Fields = USUAL  # where a `.json` has its caption, product and attributes
    look: Callable[[bytes], Any] | None = None  # what else is to be known of each encoded picture, as its fingerprint
    wordings: bool = False  # whether batches bring every wording of a sample; in evaluation


class Group(NamedTuple):
    """What a batch is made of, in the source's own terms for a sample."""

    samples: Sequence[Any]
    spares: Iterable[Any] = ()  # to replace what turns out to be unreadable, in training
    skipped: Sequence[Skipped | Guessed] = ()  # what the source could not use on the way to these samples


class Source(Protocol):
    """The groups of one rank; `sample` below is whatever the source takes for one."""

    streamed: bool  # then an epoch's order depends on the number of workers
    max_workers: int | None  # more would have nothing of their own to read
    batch_size: int  # of this process: what was asked for, or fewer where the data has no more products
    num_batches: int  # of an epoch, on this process
    num_samples: int  # of all processes
    most_captions: int  # of any sample (at most)
    skipped: list[Skipped]  # what is known to be unusable from the start, the same on every rank
    guessed: list[Guessed]  # what is known to be guessed from the start, likewise

    @property
    def products(self) -> np.ndarray | None:
        """int64 (N,), equal iff the product is the same; None where nobody has looked yet."""
        ...

    def groups(self, epoch: int, start: int, worker: int, num_workers: int) -> Iterator[Group]:
        """Of an epoch's groups from number `start` on, those numbered `worker` modulo `num_workers`.

        A last one without samples may say what was skipped after them.
        """
        ...

    def read(self, sample: Any) -> dict[str, Any]:
        """The raw sample (see `loading.sample`). Raises OSError."""
        ...

    def name(self, sample: Any) -> str:
        """What a message calls it."""
        ...

    def identity(self, sample: Any) -> Hashable:
        """What it is counted under: the same in every epoch, worker and process."""
        ...

    def number(self, sample: Any) -> int:
        """What its crop and its caption are drawn by."""
        ...

    def fingerprint(self) -> Any:
        """Plain data that is another one for other samples."""
        ...
