"""Batches from local shards, through an index: a sample is its number there, and any of them can be read at any time."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_finetuning.loading import category_batches
from clip_finetuning.loading.batch_sampler import plan_epoch, plan_size, product_codes
from clip_finetuning.loading.labels import labels_of
from clip_finetuning.loading.source import Group, Options
from clip_finetuning.loading.tar_index import TarIndex

log = logging.getLogger(__name__)
SPARE_BATCHES = 4  # how far ahead a replacement for an unreadable picture is looked for


class LocalBatches:
    """The batches of one rank from local shards; a `source.Source`, as `streaming.StreamedBatches` is."""

    streamed = False
    max_workers: int | None = None

    def __init__(self, shards: Sequence[str], options: Options) -> None:
        self.options, self.index = options, TarIndex(shards, options.fields)
        self.products = self.index.products
        self.most_captions = self.index.most_captions
        self.skipped, self.guessed = self.index.skipped, self.index.guessed
        self.num_samples, self.batch_size = len(self.index), options.batch_size
        rank, world_size = options.rank, options.world_size
        self._alike, self.arrangement = None, ""
        self.categories: str | None = None
        self._apart = self.products  # what a spare is not to share with its batch
        if options.train:
            self._codes = product_codes(self.products)  # once, before the workers part
            self.batch_size = min(self.batch_size, int(self._codes.max(initial=-1) + 1) // world_size)
            self.num_batches = plan_size(self._codes, self.batch_size * world_size, options.views)[0]
            if options.batches == "category" and self.num_batches:
                labels = labels_of(self.index)
                self._alike = category_batches.alike_of(self.products, labels)
                self.categories = hashlib.sha256(b"".join(column.tobytes() for column in self._alike)).hexdigest()
                self._apart = self._alike.captions
                first = self._plan_by_category(0)
                self.arrangement = category_batches.description(first, self._alike, labels.names)
                if options.rank == 0 and not first.of_category.any():
                    log.warning(
                        "BATCHES=category: no category fills a batch with products that differ, so all are mixed"
                    )
        else:
            self.num_samples = min(self.num_samples, options.max_samples or self.num_samples)
            self._mine = range(self.num_samples * rank // world_size, self.num_samples * (rank + 1) // world_size)
            self.num_batches = -(-len(self._mine) // self.batch_size)

    def fingerprint(self) -> str:
        names = [os.path.basename(path) for path in self.index.paths]
        return hashlib.sha256(json.dumps(names).encode() + self.products.tobytes()).hexdigest()

    def read(self, sample: int) -> dict[str, Any]:
        return self.index.read(sample)

    def name(self, sample: int) -> str:
        return self.index.name(sample)

    def identity(self, sample: int) -> int:
        return sample

    def number(self, sample: int) -> int:
        return sample

    def groups(self, epoch: int, start: int, worker: int, num_workers: int) -> Iterator[Group]:
        numbers = range(start + (worker - start) % num_workers, self.num_batches, num_workers)
        if not self.options.train:
            return (Group(self._mine[i * self.batch_size : (i + 1) * self.batch_size]) for i in numbers)
        plan = self._plan(epoch) if self._alike is None else self._plan_by_category(epoch).batches
        return (Group(self._share(plan[i]).tolist(), self._spares(plan, i)) for i in numbers)

    def _plan(self, epoch: int) -> np.ndarray:
        options = self.options
        return plan_epoch(self._codes, self.batch_size * options.world_size, options.seed, epoch, options.views)

    def _plan_by_category(self, epoch: int) -> category_batches.Plan:
        options, size = self.options, self.batch_size * self.options.world_size
        assert self._alike is not None
        return category_batches.plan_epoch(self._alike, size, options.seed, epoch, options.views)

    def _share(self, batch: np.ndarray) -> np.ndarray:
        return batch[self.options.rank * self.batch_size : (self.options.rank + 1) * self.batch_size]

    def _spares(self, plan: np.ndarray, i: int) -> Iterator[int]:
        """Samples of the next batches, of distinct products that are in no rank's present one; each rank has its own.

        Nor are they look-alikes of these where batches are of one category.
        """
        met = set(self._apart[plan[i]].tolist())
        for after in range(i + 1, i + 1 + min(SPARE_BATCHES, len(plan) - 1)):
            for n in plan[after % len(plan)].tolist():
                product = int(self._apart[n])
                if product % self.options.world_size == self.options.rank and product not in met:
                    met.add(product)
                    yield n
