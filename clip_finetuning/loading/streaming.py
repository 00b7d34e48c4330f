"""Batches from shards that can only be read from front to back: `http:`, `pipe:`, `s3:` ..., through webdataset 1.x.

Every stage is a function from iterator to iterator over raw samples (see `loading.sample`). What webdataset leaves to its
users is done here: shards are closed, a broken one is reported and its readable samples are used, more readers than
shards are no error, no batch holds two samples of a product, and the order is a function of (seed, epoch, readers).
"""

import collections
import contextlib
import itertools
import logging
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from webdataset.filters import shuffle

from clip_finetuning.loading.sample import product_hash
from clip_finetuning.loading.seeds import lap_random, reader_random
from clip_finetuning.loading.sizes import listed_sizes
from clip_finetuning.loading.source import Group, Options
from clip_finetuning.loading.stream_reader import RawSample, Report, open_shard, shard_samples
from clip_finetuning.runtime.accounting import Guessed, Skipped

SHUFFLE_BUFFER = 2000  # samples of a reader; they are still encoded, so this is tens of megabytes
HELD_BACK = 20  # batches that may wait because their products are in the present one
log = logging.getLogger(__name__)


class StreamedBatches:
    """The batches of one rank from streamed shards; a `source.Source`, as `local.LocalBatches` is."""

    streamed = True
    most_captions = sys.maxsize  # nobody has looked yet
    products: np.ndarray | None = None

    def __init__(self, shards: Sequence[str], options: Options) -> None:
        self.shards, self.options = shards, options
        self.skipped: list[Skipped] = []
        self.guessed: list[Guessed] = []
        # A worker without a shard of its own could only read what another one reads, as any second one in shard order.
        self.max_workers: int | None = max(1, len(shards) // options.world_size) if options.train else 1
        self.sizes = self._sizes(options.train and options.views == "random")
        self.num_samples, self.batch_size = sum(self.sizes), options.batch_size
        rank, world_size = options.rank, options.world_size
        if options.train:
            self.batch_size = min(self.batch_size, self.num_samples // world_size)
            self.num_batches = self.num_samples // (self.batch_size * world_size) if self.batch_size else 0
            return
        self.num_samples = min(self.num_samples, options.max_samples or self.num_samples)
        starts = [0, *itertools.accumulate(self.sizes)]
        self._wanted = [min(max(self.num_samples - start, 0), size) for start, size in zip(starts, self.sizes)]
        self._mine = range(len(shards) * rank // world_size, len(shards) * (rank + 1) // world_size)
        self.num_batches = -(-sum(self._wanted[shard] for shard in self._mine) // self.batch_size)

    def _note(self, entry: Skipped | Guessed) -> None:
        if isinstance(entry, Guessed):
            self.guessed.append(entry)
        else:
            self.skipped.append(entry)

    def _sizes(self, products_alone: bool) -> list[int]:
        """Samples of each shard, from `sizes.json` beside it; without one, every shard has to be read once."""
        listed, damaged = ({}, []) if products_alone else remote_sizes(self.shards)
        self.guessed += damaged
        unlisted = [shard for shard in self.shards if shard not in listed]
        if unlisted:
            why = "--views random needs the number of products" if products_alone else "no sizes.json lists them"
            log.warning("counting the samples of %d streamed shards, since %s", len(unlisted), why)
        places: collections.Counter[int] = collections.Counter()  # product -> runs of neighbouring views
        for shard in unlisted:
            samples = shard_samples(shard, self._note, fields=self.options.fields)
            if products_alone:
                runs = [product for product, _ in itertools.groupby(sample["__product__"] for sample in samples)]
                places.update(runs)
                listed[shard] = len(set(runs))
            else:
                listed[shard] = sum(1 for _ in samples)
        if scattered := sum(count > 1 for count in places.values()):
            log.warning(
                "%d products have views that are no neighbours in the streamed shards: of these, --views random draws "
                "only among the views that come first; write the shards with a product's views together",
                scattered,
            )
        return [listed[shard] for shard in self.shards]

    def fingerprint(self) -> list[list[str | int]]:
        return [[os.path.basename(shard), size] for shard, size in zip(self.shards, self.sizes)]

    def read(self, sample: RawSample) -> RawSample:
        return sample

    def name(self, sample: RawSample) -> str:
        return f"{sample['__url__']}: {sample['__key__']}"

    def identity(self, sample: RawSample) -> tuple[str, str, int]:
        return sample["__url__"], sample["__key__"], sample["__place__"]

    def number(self, sample: RawSample) -> int:
        return product_hash(f"{os.path.basename(sample['__url__'])}/{sample['__key__']}")

    def groups(self, epoch: int, start: int, worker: int, num_workers: int) -> Iterator[Group]:
        skipped: list[Skipped | Guessed] = []  # since the last group
        chosen = self._in_training if self.options.train else self._in_order
        for group in chosen(epoch, start, worker, num_workers, skipped.append):
            yield group._replace(skipped=tuple(skipped))
            skipped.clear()
        if skipped:  # a shard that breaks off after the last batch
            yield Group((), skipped=tuple(skipped))

    def _in_order(self, epoch: int, start: int, worker: int, num_workers: int, report: Report) -> Iterator[Group]:
        samples = (s for i in self._mine for s in itertools.islice(self._samples(i, report), self._wanted[i]))
        batches = iter(lambda: list(itertools.islice(samples, self.batch_size)), [])
        mine = itertools.islice(batches, start + (worker - start) % num_workers, None, num_workers)
        return (Group(batch) for batch in mine)

    def _in_training(self, epoch: int, start: int, worker: int, num_workers: int, report: Report) -> Iterator[Group]:
        samples = self._endless(epoch, worker, num_workers, report)
        # The batch after a batch provides what replaces its unreadable samples.
        batches = itertools.pairwise(distinct_batches(samples, self.batch_size))
        numbered = zip(range(worker, self.num_batches, num_workers), batches)
        return (Group(batch, spares_for(batch, after)) for number, (batch, after) in numbered if number >= start)

    def _samples(self, shard: int, report: Report) -> Iterator[RawSample]:
        return shard_samples(self.shards[shard], report, self.sizes[shard], self.options.fields)

    def _endless(self, epoch: int, worker: int, num_workers: int, report: Report) -> Iterator[RawSample]:
        """This reader's samples in random order, lap after lap: it may hold fewer than its share of an epoch.

        A reader has shards of its own if there are enough of them, else the products of its own from all shards.
        """
        seed = self.options.seed
        reader, readers = self.options.rank * num_workers + worker, self.options.world_size * num_workers
        by_shard = len(self.shards) >= readers
        generator = reader_random(seed, epoch, reader, readers)
        reasons: dict[str, None] = {}

        def noted(entry: Skipped | Guessed) -> None:
            reasons[entry.reason] = None
            report(entry)

        for lap in itertools.count():
            order = list(range(len(self.shards)))
            lap_random(seed, epoch, lap).shuffle(order)
            mine = order[reader::readers] if by_shard else order
            samples = (sample for shard in mine for sample in self._samples(shard, noted))
            if not by_shard:
                samples = (sample for sample in samples if sample["__product__"] % readers == reader)
            if self.options.views == "random":
                samples = one_view(samples, generator)
            met = 0
            for sample in shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=generator)(samples):
                met += 1
                yield sample
            if not met:
                raise ValueError(
                    f"reader {reader + 1} of {readers} found no sample in {len(self.shards)} streamed shards "
                    f"({self.shards[0]} ...): are they empty, or out of reach?{''.join(f' ({reason})' for reason in reasons)}"
                )


def remote_sizes(shards: Sequence[str]) -> tuple[dict[str, int], list[Guessed]]:
    """Shard -> sample count, for those that a `sizes.json` beside them lists; and which of these files are damaged.

    Nothing tells a file that is not there from one that is out of reach.
    """
    sizes, damaged = {}, []
    for folder in dict.fromkeys(shard.rpartition("/")[0] for shard in shards if not shard.startswith("pipe:")):
        where = f"{folder}/sizes.json" if folder else "sizes.json"
        try:
            with contextlib.closing(open_shard(where)) as stream:
                data = stream.read()
        except (OSError, ValueError, ImportError):
            continue
        mine = {shard.rpartition("/")[2]: shard for shard in shards if shard.rpartition("/")[0] == folder}
        listed, unusable = listed_sizes(data, where, mine)
        sizes |= listed
        damaged += unusable
    return sizes, damaged


def one_view(samples: Iterable[RawSample], generator: random.Random) -> Iterator[RawSample]:
    """A random sample of each product, where its views are neighbours; a product that comes again later is left out."""
    seen = set()
    for product, views in itertools.groupby(samples, key=lambda sample: sample["__product__"]):
        views = list(views)
        if product not in seen:
            seen.add(product)
            yield generator.choice(views)


def spares_for(batch: Iterable[RawSample], after: Iterable[RawSample]) -> list[RawSample]:
    """Samples of the batch after whose products are not in this one."""
    products = {sample["__product__"] for sample in batch}
    return [sample for sample in after if sample["__product__"] not in products]


def distinct_batches(samples: Iterator[RawSample], batch_size: int) -> Iterator[list[RawSample]]:
    """Lists of `batch_size` samples of distinct products; a sample whose product is there already waits for its turn."""
    waiting = collections.deque()
    while True:
        batch = {}
        for _ in range(len(waiting)):
            sample = waiting.popleft()
            if len(batch) < batch_size and sample["__product__"] not in batch:
                batch[sample["__product__"]] = sample
            else:
                waiting.append(sample)
        while len(batch) < batch_size:
            sample = next(samples, None)
            if sample is None:
                return
            if batch.setdefault(sample["__product__"], sample) is not sample:
                waiting.append(sample)
            if len(waiting) > HELD_BACK * batch_size:
                raise ValueError(
                    f"the streamed shards of a reader hold too few products for batches of {batch_size} distinct ones; "
                    "lower BATCH_SIZE or NUM_WORKERS"
                )
        yield list(batch.values())
