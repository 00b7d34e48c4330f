"""Batches from worker processes: every sample once an epoch in a fresh random order for training, or once in order.

    from clip_finetuning.loading.loader import train_loader, eval_loader

    loader = train_loader("shards/train.{000000..000260}.tar", transform, tokenizer, batch_size=256, num_workers=2)
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = step(batch.images, batch.tokens, batch.identities)

`loading.dataset` says what `transform` and `tokenizer` are.
"""

import collections
import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from clip_finetuning.loading import transport, workers
from clip_finetuning.loading.batch_sampler import ORDER, is_planned_alike
from clip_finetuning.loading.dataset import Batch, ClipDataset
from clip_finetuning.loading.failure import Failure
from clip_finetuning.loading.sample import Fields
from clip_finetuning.loading.source import Options
from clip_finetuning.runtime.accounting import Account, count_lost, majority_message

log = logging.getLogger(__name__)


class Loader:
    """The batches of a ClipDataset with `num_workers` processes which outlive the epoch.

    `len()`: batches of an epoch (on this rank). `num_samples` of the data and `batch_size` are those of all ranks together.
    Iterating again yields the next epoch.
    `skipped`: how many samples this process could not use so far, by reason; the first few of each reason are logged by
    name. `lost`: the same as {what is counted once: (samples, reason)}, for `count_lost` over all processes.
    `guessed` and `guesses`: likewise, what is used although something about it had to be guessed.
    """

    def __init__(self, dataset: ClipDataset, num_workers: int) -> None:
        self.dataset = dataset
        source, options = dataset.source, dataset.options
        self.num_samples = source.num_samples
        self.batch_size = source.batch_size * options.world_size
        num_workers = num_workers if source.max_workers is None else min(num_workers, source.max_workers)
        chosen = transport.choose(self, num_workers, dataset.batch_bytes(), aloud=options.rank == 0)
        self.num_workers, dataset.in_shared_memory = chosen
        self._loader = _data_loader(dataset, self.num_workers)
        self._next = (0, 0)
        self._skipped, self._guessed = Account(), Account()
        self._skipped.note(source.skipped, aloud=options.rank == 0)  # every process finds these
        self._guessed.note(source.guessed, aloud=options.rank == 0)
        if options.train and options.rank == 0 and source.products is not None:
            warning = _majority_warning(source.products)
            if warning:
                log.warning("%s", warning)

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration yields this epoch from batch `start_batch` on, exactly, without decoding those before."""
        self._next = (epoch, start_batch)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._next
        self._next = (epoch + 1, 0)
        self.dataset.set_epoch(epoch, start)
        for batch in workers.batches_of(workers.started(self._loader)):
            if isinstance(batch, Failure):
                batch.throw()
            batch = transport.unpacked(batch)
            self._skipped.note(batch.lost)
            self._guessed.note(batch.guessed)
            if len(batch.keys):
                yield batch

    def close(self) -> None:
        """End the workers; another iteration starts new ones.

        To be called before the processes part: a worker keeps what it inherited open, their connections too, and with
        some versions of torch a process waits for ever for a connection to end.
        """
        workers.end(self._loader)

    @property
    def lost(self) -> dict[Hashable, tuple[int, str]]:
        return self._skipped.counted

    @property
    def skipped(self) -> collections.Counter[str]:
        return count_lost([self.lost])

    @property
    def guesses(self) -> dict[Hashable, tuple[int, str]]:
        return self._guessed.counted

    @property
    def guessed(self) -> collections.Counter[str]:
        return count_lost([self.guesses])

    def state(self) -> dict[str, Any]:
        """What the order of the batches depends on, besides (epoch, batch): plain data for a checkpoint."""
        source, options = self.dataset.source, self.dataset.options
        state = {
            "seed": options.seed,
            "views": options.views,
            "global batch size": self.batch_size,
            "samples": source.num_samples,
            "data": source.fingerprint(),
        }
        if source.streamed:  # each process and worker reads a part of the shards
            return state | {"processes": options.world_size, "workers": max(self.num_workers, 1)}
        return state | {"order": ORDER}

    def changed_order(self, state: Mapping[str, Any]) -> str | None:
        """What to say where this version puts the same samples into another order than a checkpoint's did, or None."""
        order, products = state.get("order", 1), self.dataset.source.products
        if products is None or is_planned_alike(order, products, self.batch_size, self.dataset.options.views):
            return None
        return (
            f"the checkpoint's batches were planned by order {order}, now it is {ORDER}, which leaves out others of "
            "the samples that fill no batch: an epoch that it had begun may show some samples twice and others not"
        )

    def check_state(self, state: Mapping[str, Any]) -> list[str]:
        """A message for each thing that differs from a checkpoint's state: then the batches are not the same."""
        messages = []
        mine, theirs = self.state(), dict(state)
        for numbers in (mine, theirs):  # a matter of versions, not of the user's settings: see `changed_order`
            numbers.pop("order", None)
        for name in [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            if name == "data":
                messages.append("the shards, or the products in them, are not those of the checkpoint")
            else:
                messages.append(f"{name}: {theirs.get(name)} in the checkpoint, {mine.get(name)} now")
        return messages


def train_loader(
    pattern: str,
    transform: Callable[[bytes, int], torch.Tensor],
    tokenizer: Callable[[list[str]], torch.Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    views: str = "all",
    rank: int = 0,
    world_size: int = 1,
    caption_key: str | None = None,
    product_key: str | None = None,
) -> Loader:
    """A Loader of training batches: full, seeded, without two samples of one product (see ClipDataset).

    Every rank gets the same number of batches of `batch_size` samples; together those of a rank's `batch_size` times
    `world_size` in one process. `caption_key` and `product_key` are fields of the `.json` files (see `sample.Fields`).
    """
    fields = Fields(caption_key, product_key)
    options = Options(batch_size, True, seed, views, rank, world_size, fields=fields)
    return Loader(ClipDataset(pattern, transform, tokenizer, options), num_workers)


def eval_loader(
    pattern: str,
    transform: Callable[[bytes, int], torch.Tensor],
    tokenizer: Callable[[list[str]], torch.Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    max_samples: int | None = None,
    caption_key: str | None = None,
    product_key: str | None = None,
    attributes: Sequence[str] = (),
    look: Callable[[bytes], Any] | None = None,
    wordings: bool = False,
) -> Loader:
    """A Loader of every sample once, in order, with the first caption; ranks take consecutive parts.

    `max_samples` takes the first ones alone. `attributes` are fields of the `.json` files; none: those under `attributes`
    there. `look` makes something more of each encoded picture, in the workers: `Batch.looks`. With `wordings`, batches
    bring every caption of a sample too.
    """
    fields = Fields(caption_key, product_key, tuple(attributes))
    options = Options(
        batch_size,
        train=False,
        rank=rank,
        world_size=world_size,
        max_samples=max_samples,
        fields=fields,
        look=look,
        wordings=wordings,
    )
    return Loader(ClipDataset(pattern, transform, tokenizer, options), num_workers)


def _majority_warning(products: np.ndarray) -> str | None:
    """`majority_warning` of millions: whatever holds more than half of them stands in their middle once they are sorted."""
    middle = np.partition(products, len(products) // 2)[len(products) // 2]
    return majority_message(None, int(np.count_nonzero(products == middle)), len(products))


def _data_loader(dataset: ClipDataset, num_workers: int) -> DataLoader:
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # Those of a forkserver, the default since Python 3.14, would outlive a trainer that is killed.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=transport.PREFETCH if num_workers else None,
        worker_init_fn=workers.ignore_signals,
    )
    if num_workers:
        workers.end_at_exit(loader)
    return loader


def _unchanged(batch: Any) -> Any:
    return batch  # torch's default would walk through every string
