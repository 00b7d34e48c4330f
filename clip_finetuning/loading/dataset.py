"""Shards -> batches: every sample once an epoch in a fresh random order for training, once in order for evaluation.

    from clip_finetuning.loading.dataset import train_loader, eval_loader

    loader = train_loader("shards/train.{000000..000260}.tar", transform, tokenizer, batch_size=256, num_workers=2)
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = step(batch.images, batch.tokens, batch.identities)

`transform(data: bytes, seed: int)` makes a uint8 tensor (3, H, W) of an encoded picture (image_transforms.ImageTransform),
`tokenizer(captions: list[str])` an int64 tensor (B, L) (open_clip.get_tokenizer). Both run in the workers.

Local shards are read through an index: the order is a full shuffle and, like the random crops and the drawn captions, a
function of (seed, epoch) alone, whatever the number of workers. Patterns with a URL (`https:`, `s3:`, `pipe:`) are
streamed through webdataset; there the number of workers enters the order.
"""

import atexit
import collections
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import weakref
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clip_finetuning.loading.batch_sampler import ORDER, is_planned_alike, plan_epoch, plan_size
from clip_finetuning.loading.sample import parse_sample, product_hash
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.streaming import StreamedBatches
from clip_finetuning.loading.tar_index import Lost, TarIndex
from clip_finetuning.runtime.accounting import count_lost
from clip_finetuning.runtime.text import printable, same_caption_key

REMEMBERED_CAPTIONS = 100_000  # 60 MB of tokens at 77 a caption
SPARE_BATCHES = 4  # how far ahead a replacement for an unreadable picture is looked for
MOST_CAPTIONS = 8  # of a sample, by which `identities` tell what it shares with others
NAMED = 5  # unusable samples that are named for each reason
log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """B samples. In training B is the same for every batch; in evaluation unusable samples are left out."""

    images: torch.Tensor  # uint8 (B, 3, H, W), channels_last
    tokens: torch.Tensor  # int64 (B, L)
    identities: (
        torch.Tensor
    )  # int64 (B, 1 + C): numbers of the product, of the caption of `tokens`, of the other captions
    keys: list[str]
    captions: list[str]  # those of `tokens`
    product_ids: list[str]  # where the shards name none, the first caption
    categories: list[str]
    subcategories: list[str]
    image_names: list[str]
    lost: list[Lost]  # what turned out to be unusable on the way to this batch

    @property
    def products(self):
        """int64 (B,), equal if and only if the product is the same."""
        return self.identities[:, 0]


class ClipDataset(IterableDataset):
    """The batches of one rank, as an iterable of Batch; a DataLoader with `batch_size=None` spreads them over workers.

    With `train`, every batch has the same size, no batch (over all ranks) holds two samples of one product, and what
    does not fill a last batch is left out, other samples each epoch; fewer samples or products than `batch_size` make
    the batch smaller. A picture that cannot be read is replaced by one from the batches after, so that all batches stay
    where they are; only if none of another product is left is a readable one of the batch repeated.
    Without `train`, every sample comes once, in the order of the shards; ranks take consecutive parts.

    `views="random"` shows each product once an epoch. Raises FileNotFoundError for shards that are missing, ValueError
    for data without a usable sample.
    """

    def __init__(
        self,
        pattern,
        transform,
        tokenizer,
        *,
        batch_size,
        train,
        seed=0,
        views="all",
        rank=0,
        world_size=1,
        max_samples=None,
    ):
        super().__init__()
        shards = expand_pattern(pattern)
        batches = StreamedBatches if any(is_url(shard) for shard in shards) else LocalBatches
        self.source = batches(
            shards,
            batch_size=batch_size,
            train=train,
            seed=seed,
            views=views,
            rank=rank,
            world_size=world_size,
            max_samples=max_samples,
        )
        if not self.source.num_samples or (train and not self.source.num_batches):
            raise ValueError(_no_data_message(pattern, self.source, world_size))
        if train and self.source.batch_size < batch_size:
            held = f"{self.source.num_samples} samples of {len(shards)} shards"
            log.warning(
                "batches of %d instead of %d: no more products in the %s", self.source.batch_size, batch_size, held
            )
        self.transform, self.tokens = transform, RememberedTokens(tokenizer)
        self.train, self.seed, self.views, self.world_size = train, seed, views, world_size
        # The same in every batch of every rank, which exchange them.
        self.captions_a_sample = min(self.source.most_captions, MOST_CAPTIONS) if train else 1
        self._has_told = False
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()  # seen by workers that are running already

    def __len__(self):
        return self.source.num_batches

    def set_epoch(self, epoch, start_batch=0):
        """The next iteration yields this epoch from this batch on; what comes before it is not decoded."""
        self._position.copy_(torch.tensor([epoch, start_batch]))

    def __iter__(self):
        epoch, start = self._position.tolist()
        worker = get_worker_info()
        parts = worker.num_workers if worker else 1
        part = (start + worker.id) % parts if worker else 0  # DataLoader takes its first batch from worker 0
        return self._batches(epoch, start, part, parts)

    def _batches(self, epoch, start, part, parts):
        lost = []
        for samples, spares in self.source.groups(epoch, start, part, parts, lost.append):
            with _one_thread():
                batch = self._batch(samples, spares, epoch, lost)
            lost.clear()
            yield batch
        if lost:  # a shard that breaks off after the last batch
            yield self._collate(None, [], lost)

    def _batch(self, samples, spares, epoch, lost):
        """Decode straight into one uint8 tensor, in shared memory if the batch is to leave this process."""
        images, rows, spares = None, [], iter(spares)
        for sample in samples:
            row = self._load(sample, epoch, lost)
            while row is None and self.train and (spare := next(spares, None)) is not None:
                row = self._load(spare, epoch, lost)
            if row is None:
                continue
            if images is None:
                images = _empty_images(len(samples), row[0].shape)
            images[len(rows)].copy_(row[0])
            rows.append(row[1:])
        if self.train and not rows:
            raise ValueError(f"a whole batch cannot be read, first of all {lost[0].where}: {lost[0].reason}")
        for repeated in range(len(samples) - len(rows) if self.train else 0):
            images[len(rows)].copy_(images[repeated])
            rows.append(rows[repeated])
        return self._collate(images, rows, list(lost))

    def _load(self, sample, epoch, lost):
        """(image, ShardSample, caption), or None and an entry in `lost`."""
        try:
            parsed = parse_sample(self.source.read(sample))
            seed = mixed(self.seed, epoch, self.source.number(sample)) if self.train else 0
            image = self.transform(parsed.image, seed)
        except (ValueError, OSError) as error:
            lost.append(Lost(1, reason_of(error), self.source.name(sample), self.source.identity(sample)))
            return None
        return image, parsed, parsed.captions[seed % len(parsed.captions)]

    def _collate(self, images, rows, lost):
        samples, captions = [row[0] for row in rows], [row[1] for row in rows]
        return Batch(
            images=torch.empty((0, 3, 0, 0), dtype=torch.uint8) if images is None else images[: len(rows)],
            tokens=self.tokens(captions),
            identities=torch.tensor(
                [self._identity(sample, caption) for sample, caption in zip(samples, captions)], dtype=torch.int64
            ).reshape(len(samples), 1 + self.captions_a_sample),
            keys=[sample.key for sample in samples],
            captions=captions,
            product_ids=[sample.product_id for sample in samples],
            categories=[sample.category for sample in samples],
            subcategories=[sample.subcategory for sample in samples],
            image_names=[sample.image_name for sample in samples],
            lost=lost,
        )

    def _identity(self, sample, caption):
        """Numbers of the product, of the caption that was drawn, and of the sample's others, filled up with the drawn one."""
        others = [other for other in sample.captions if other != caption]
        room = self.captions_a_sample - 1
        if self.train and len(others) > room and not self._has_told:
            self._has_told = True
            log.warning(
                "%s has %d captions: the loss knows %d of a sample as its own, and may take another for a negative",
                sample.key, len(sample.captions), self.captions_a_sample,
            )  # fmt: skip
        texts = [caption, *others[:room], *[caption] * (room - len(others))]
        return [product_hash(sample.product_id), *(product_hash(same_caption_key(text)) for text in texts)]


class LocalBatches:
    """The batches of one rank from local shards, as sample numbers of a TarIndex (shard_stream has the other kind)."""

    streamed = False

    def __init__(self, shards, *, batch_size, train, seed, views, rank, world_size, max_samples):
        self.index = TarIndex(shards)
        self.lost, self.num_samples = self.index.lost, len(self.index)
        self.most_captions = self.index.most_captions
        self.train, self.seed, self.views, self.rank, self.world_size = train, seed, views, rank, world_size
        if train:
            products = len(set(self.index.products.tolist()))
            self.batch_size = min(batch_size, products // world_size)
            self.num_batches = plan_size(self.index.products, self.batch_size * world_size, views)[0]
        else:
            self.batch_size, self.num_samples = batch_size, min(self.num_samples, max_samples or self.num_samples)
            self._mine = range(self.num_samples * rank // world_size, self.num_samples * (rank + 1) // world_size)
            self.num_batches = -(-len(self._mine) // batch_size)

    def fingerprint(self):
        names = [os.path.basename(path) for path in self.index.paths]
        return hashlib.sha256(json.dumps(names).encode() + self.index.products.tobytes()).hexdigest()

    def read(self, sample):
        return self.index.read(sample)

    def name(self, sample):
        return self.index.name(sample)

    def identity(self, sample):
        return sample

    def number(self, sample):
        return sample

    def groups(self, epoch, start, part, parts, report):
        """(sample numbers, spares) of the batches start..., those numbered `part` modulo `parts`."""
        numbers = range(start + (part - start) % parts, self.num_batches, parts)
        if not self.train:
            return ((self._mine[i * self.batch_size : (i + 1) * self.batch_size], ()) for i in numbers)
        plan = plan_epoch(self.index.products, self.batch_size * self.world_size, self.seed, epoch, self.views)
        return ((self._share(plan[i]).tolist(), self._spares(plan, i)) for i in numbers)

    def _share(self, batch):
        return batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _spares(self, plan, i):
        """Samples of the next batches, of distinct products that are in no rank's present one; each rank has its own."""
        products = self.index.products
        met = set(products[plan[i]].tolist())
        for after in range(i + 1, i + 1 + min(SPARE_BATCHES, len(plan) - 1)):
            for n in plan[after % len(plan)].tolist():
                product = int(products[n])
                if product % self.world_size == self.rank and product not in met:
                    met.add(product)
                    yield n


class RememberedTokens:
    """A tokenizer that does each caption once: the views of a product share theirs, and the next epoch has it again."""

    def __init__(self, tokenizer):
        self.tokenizer, self.rows = tokenizer, {}

    def __call__(self, captions):
        """Captions -> int64 (B, L)."""
        if not captions:
            return torch.empty((0, 0), dtype=torch.int64)
        if len(self.rows) > REMEMBERED_CAPTIONS:
            self.rows.clear()
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.rows]
        if new:
            self.rows.update(zip(new, self.tokenizer(new).unbind()))
        return torch.stack([self.rows[caption] for caption in captions])

    def __getstate__(self):
        return {"tokenizer": self.tokenizer, "rows": {}}


class Loader:
    """The batches of a ClipDataset with `num_workers` processes which outlive the epoch.

    `len()`: batches of an epoch (on this rank). `num_samples` of the data and `batch_size` are those of all ranks together.
    Iterating again yields the next epoch.
    `skipped`: how many samples this process could not use so far, by reason; the first few of each reason are logged by
    name. `lost`: the same as {what is counted once: (samples, reason)}, for `count_lost` over all processes.
    """

    def __init__(self, dataset, num_workers):
        self.dataset = dataset
        self.num_samples = dataset.source.num_samples
        self.batch_size = dataset.source.batch_size * dataset.world_size
        if dataset.source.streamed:
            num_workers = min(num_workers, dataset.source.max_workers)
        self.num_workers = num_workers
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # Those of a forkserver, the default since Python 3.14, would outlive a trainer that is killed.
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
        )
        if num_workers:
            atexit.register(_end_workers, weakref.ref(self._loader))
        self._next = (0, 0)
        self.lost, self._named = {}, collections.Counter()
        self._note(dataset.source.lost, aloud=dataset.source.rank == 0)  # every process finds these

    def __len__(self):
        return len(self.dataset)

    def set_epoch(self, epoch, start_batch=0):
        """The next iteration yields this epoch from batch `start_batch` on, exactly, without decoding those before."""
        self._next = (epoch, start_batch)

    def __iter__(self):
        epoch, start = self._next
        self._next = (epoch + 1, 0)
        self.dataset.set_epoch(epoch, start)
        try:
            for batch in self._loader:
                self._note(batch.lost)
                if len(batch.keys):
                    yield batch
        except (ValueError, OSError) as error:
            if "Original Traceback" not in str(error):
                raise
            # torch wraps a worker's error into its whole traceback; the last line is the message
            raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error

    @property
    def skipped(self):
        return count_lost([self.lost])

    def _note(self, lost, aloud=True):
        for count, reason, where, of in lost:
            if of in self.lost and count <= self.lost[of][0]:
                continue
            self.lost[of] = (count, reason)
            self._named[reason] += aloud
            if aloud and self._named[reason] <= NAMED:
                more = " (further ones are only counted)" if self._named[reason] == NAMED else ""
                log.warning(
                    "%s: %s, %d sample%s lost%s", printable(where), reason, count, "" if count == 1 else "s", more
                )

    def state(self):
        """What the order of the batches depends on, besides (epoch, batch): plain data for a checkpoint."""
        dataset, source = self.dataset, self.dataset.source
        state = {
            "seed": dataset.seed,
            "views": dataset.views,
            "global batch size": self.batch_size,
            "samples": source.num_samples,
            "data": source.fingerprint(),
        }
        if source.streamed:  # each process and worker reads a part of the shards
            return state | {"processes": dataset.world_size, "workers": max(self.num_workers, 1)}
        return state | {"order": ORDER}

    def changed_order(self, state):
        """What to say where this version puts the same samples into another order than a checkpoint's did, or None."""
        order, source = state.get("order", 1), self.dataset.source
        if source.streamed or is_planned_alike(order, source.index.products, self.batch_size, self.dataset.views):
            return None
        return (
            f"the checkpoint's batches were planned by order {order}, now it is {ORDER}, which leaves out others of "
            "the samples that fill no batch: an epoch that it had begun may show some samples twice and others not"
        )

    def check_state(self, state):
        """A message for each thing that differs from a checkpoint's state: then the batches are not the same."""
        messages = []
        mine, state = self.state(), dict(state)
        for numbers in (mine, state):  # a matter of versions, not of the user's settings: see `changed_order`
            numbers.pop("order", None)
        for name in [name for name in {**mine, **state} if mine.get(name) != state.get(name)]:
            if name == "data":
                messages.append("the shards, or the products in them, are not those of the checkpoint")
            else:
                messages.append(f"{name}: {state.get(name)} in the checkpoint, {mine.get(name)} now")
        return messages


def train_loader(
    pattern, transform, tokenizer, *, batch_size, num_workers=0, seed=0, views="all", rank=0, world_size=1
):
    """A Loader of training batches: full, seeded, without two samples of one product (see ClipDataset).

    Every rank gets the same number of batches of `batch_size` samples; together those of a rank's `batch_size` times
    `world_size` in one process.
    """
    dataset = ClipDataset(
        pattern,
        transform,
        tokenizer,
        batch_size=batch_size,
        train=True,
        seed=seed,
        views=views,
        rank=rank,
        world_size=world_size,
    )
    return Loader(dataset, num_workers)


def eval_loader(pattern, transform, tokenizer, *, batch_size, num_workers=0, rank=0, world_size=1, max_samples=None):
    """A Loader of every sample once, in order, with the first caption; ranks take consecutive parts.

    `max_samples` takes the first ones alone.
    """
    dataset = ClipDataset(
        pattern,
        transform,
        tokenizer,
        batch_size=batch_size,
        train=False,
        rank=rank,
        world_size=world_size,
        max_samples=max_samples,
    )
    return Loader(dataset, num_workers)


def reason_of(error):
    """One of a few wordings, for counting."""
    return getattr(error, "reason", type(error).__name__)


def mixed(*numbers):
    """A 64-bit number that looks random and depends on all of these (the finalizer of SplitMix64 over each)."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def _empty_images(count, shape):
    """uint8 (count, *shape), channels_last as the pictures come (twenty times as fast to copy); shared in a worker."""
    images = torch.empty((count, *shape), dtype=torch.uint8, memory_format=torch.channels_last)
    return images.share_memory_() if get_worker_info() else images


@contextlib.contextmanager
def _one_thread():
    """A picture is too small to share: two threads resize it no faster, and twenty times slower if a core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _unchanged(batch):
    return batch  # torch's default would walk through every string


def _start_worker(_):
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the main process, which still needs its batches
        signal.signal(number, signal.SIG_IGN)


def _end_workers(reference):
    """At the exit, before multiprocessing does: it would send SIGTERM, which workers ignore, and wait for ever."""
    loader = reference()
    iterator = loader and loader._iterator  # a private name, which other libraries end workers by too
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()  # one that did not listen


def _no_data_message(pattern, source, world_size):
    reasons = collections.Counter()
    for lost in source.lost:
        reasons[lost.reason] += lost.count
    if source.num_samples:
        return f"{source.num_samples} samples in {pattern!r} are too few products for {world_size} processes"
    why = ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "the shards are empty"
    return f"no usable sample in {pattern!r} ({why}); a sample needs KEY.jpg (or .png, .webp) and KEY.txt"
