"""Batches from local shards, through an index: a sample is its number there, and any of them can be read at any time."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_finetuning.loading.batch_sampler import plan_epoch, plan_size, product_codes
from clip_finetuning.loading.source import Group, Options
from clip_finetuning.loading.tar_index import TarIndex

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
        if options.train:
            self._codes = product_codes(self.products)  # once, before the workers part
            self.batch_size = min(self.batch_size, int(self._codes.max(initial=-1) + 1) // world_size)
            self.num_batches = plan_size(self._codes, self.batch_size * world_size, options.views)[0]
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
        options = self.options
        plan = plan_epoch(self._codes, self.batch_size * options.world_size, options.seed, epoch, options.views)
        return (Group(self._share(plan[i]).tolist(), self._spares(plan, i)) for i in numbers)

    def _share(self, batch: np.ndarray) -> np.ndarray:
        return batch[self.options.rank * self.batch_size : (self.options.rank + 1) * self.batch_size]

    def _spares(self, plan: np.ndarray, i: int) -> Iterator[int]:
        """Samples of the next batches, of distinct products that are in no rank's present one; each rank has its own."""
        met = set(self.products[plan[i]].tolist())
        for after in range(i + 1, i + 1 + min(SPARE_BATCHES, len(plan) - 1)):
            for n in plan[after % len(plan)].tolist():
                product = int(self.products[n])
                if product % self.options.world_size == self.options.rank and product not in met:
                    met.add(product)
                    yield n
