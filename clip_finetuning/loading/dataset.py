"""Shards -> batches: a dataset makes the batches of one process; `loading.loader` spreads them over workers.

`transform(data: bytes, seed: int)` makes a uint8 tensor (3, H, W) of an encoded picture (preprocessing.ImageTransform),
`tokenizer(captions: list[str])` an int64 tensor (B, L) (open_clip.get_tokenizer). Both run in the workers.

Local shards are read through an index: the order is a full shuffle and, like the random crops and the drawn captions, a
function of (seed, epoch) alone, whatever the number of workers. Patterns with a URL (`https:`, `s3:`, `pipe:`) are
streamed through webdataset; there the number of workers enters the order.
"""

import collections
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from clip_finetuning.loading import named_fields
from clip_finetuning.loading.failure import Failure, failures_as_values
from clip_finetuning.loading.local import LocalBatches
from clip_finetuning.loading.sample import (
    LANGUAGES_DO_NOT_FIT,
    WEIGHTS_DO_NOT_FIT,
    Attributes,
    ShardSample,
    drawn,
    parse_sample,
    product_hash,
    wordings,
)
from clip_finetuning.loading.seeds import sample_seed
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.source import Group, Options, Source
from clip_finetuning.loading.streaming import StreamedBatches
from clip_finetuning.loading.transport import batch_bytes, packed, shared_numbers
from clip_finetuning.runtime.accounting import Guessed, Skipped, reason_of
from clip_finetuning.runtime.text import printable, same_caption_key

REMEMBERED_CAPTIONS = 100_000  # 60 MB of tokens at 77 a caption
MOST_CAPTIONS = 8  # of a sample, by which `identities` tell what it shares with others
log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """B samples. In training B is the same for every batch; in evaluation unusable samples are left out."""

    images: torch.Tensor  # uint8 (B, 3, H, W), channels_last
    tokens: torch.Tensor  # int64 (B, L)
    identities: (
        torch.Tensor
    )  # int64 (B, 1 + C): numbers of the product, of the caption of `tokens`, of its other captions
    keys: list[str]
    captions: list[str]  # those of `tokens`
    product_ids: list[str]  # where the shards name none, the first caption
    categories: list[str]
    subcategories: list[str]
    image_names: list[str]
    attributes: list[Attributes]  # what each one's `.json` says, by name
    looks: list[Any]  # what `look` makes of each picture; empty where nobody asked for it
    wordings: list[list[tuple[str, str]]]  # (caption, its language) of every wording of a sample, where asked for
    lost: list[Skipped]  # what turned out to be unusable on the way to this batch
    guessed: Sequence[Guessed] = ()  # what is in it although something had to be guessed

    @property
    def products(self) -> torch.Tensor:
        """int64 (B,), equal if and only if the product is the same."""
        return self.identities[:, 0]


class Loaded(NamedTuple):
    """A sample that is ready for its batch."""

    image: torch.Tensor  # uint8 (3, H, W)
    sample: ShardSample
    caption: str  # the one that was drawn
    guessed: Guessed | None
    wordings: list[tuple[str, str]]  # as in Batch
    look: Any = None  # what `Options.look` makes of its picture


class ClipDataset(IterableDataset):
    """The batches of one rank, as an iterable of Batch; a DataLoader with `batch_size=None` spreads them over workers.

    In training every batch has the same size, no batch (over all ranks) holds two samples of one product, and what
    does not fill a last batch is left out, other samples each epoch; fewer samples or products than `batch_size` make
    the batch smaller. A picture that cannot be read is replaced by one from the batches after, so that all batches stay
    where they are; only if none of another product is left is a readable one of the batch repeated.
    In evaluation every sample comes once, in the order of the shards; ranks take consecutive parts.

    `views="random"` shows each product once an epoch. Raises FileNotFoundError for shards that are missing, ValueError
    for data without a usable sample. In a worker an error is yielded as a Failure, after which no batch comes.
    """

    def __init__(
        self,
        pattern: str,
        transform: Callable[[bytes, int], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor],
        options: Options,
    ) -> None:
        super().__init__()
        shards = expand_pattern(pattern)
        kind = StreamedBatches if any(is_url(shard) for shard in shards) else LocalBatches
        self.source: Source = kind(shards, options)
        named_fields.check(pattern, shards, self.source, options.fields)
        if not self.source.num_samples or (options.train and not self.source.num_batches):
            raise ValueError(_no_data_message(pattern, self.source, options.world_size))
        if options.train and self.source.batch_size < options.batch_size:
            log.warning(
                "batches of %d instead of %d: no more products in the %d samples of %d shards",
                self.source.batch_size, options.batch_size, self.source.num_samples, len(shards),
            )  # fmt: skip
        self.options, self.train = options, options.train
        self.transform, self.tokens = transform, RememberedTokens(tokenizer)
        # The same in every batch of every rank, which exchange them.
        self.captions_a_sample = min(self.source.most_captions, MOST_CAPTIONS) if self.train else 1
        self._has_told = False
        self.in_shared_memory = False  # where a worker's batches lie until they are taken
        self._position = shared_numbers(2)  # seen by workers that are running already

    def __len__(self) -> int:
        return self.source.num_batches

    def batch_bytes(self) -> int:
        """About the bytes of a batch's pictures."""
        return batch_bytes(self.transform, self.source.batch_size)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration yields this epoch from this batch on; what comes before it is not decoded."""
        self._position.copy_(torch.tensor([epoch, start_batch]))

    def __iter__(self) -> Iterator[Batch | Failure]:
        epoch, start = self._position.tolist()
        info: Any = get_worker_info()
        if info is None:
            return self._batches(epoch, start, 0, 1)
        worker = (start + info.id) % info.num_workers  # DataLoader takes its first batch from worker 0
        batches = self._batches(epoch, start, worker, info.num_workers)
        return failures_as_values(packed(batch, self.in_shared_memory) for batch in batches)

    def _batches(self, epoch: int, start: int, worker: int, num_workers: int) -> Iterator[Batch]:
        for group in self.source.groups(epoch, start, worker, num_workers):
            with _one_thread():
                batch = self._batch(group, epoch)
            yield batch

    def _batch(self, group: Group, epoch: int) -> Batch:
        """Decode straight into one uint8 tensor, in shared memory if the batch is to leave this process."""
        images: Any = torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        rows: list[Loaded] = []
        skipped = [entry for entry in group.skipped if isinstance(entry, Skipped)]
        guessed = [entry for entry in group.skipped if isinstance(entry, Guessed)]
        spares = iter(group.spares)
        for sample in group.samples:
            loaded = self._load(sample, epoch)
            while isinstance(loaded, Skipped):
                skipped.append(loaded)
                spare = next(spares, None) if self.train else None
                if spare is None:
                    break
                loaded = self._load(spare, epoch)
            else:
                if not rows:
                    shared = self.in_shared_memory and get_worker_info() is not None
                    images = _empty_images(len(group.samples), loaded.image.shape, shared)
                images[len(rows)].copy_(loaded.image)
                rows.append(loaded._replace(image=images[len(rows)]))
        if self.train and group.samples:
            if not rows:
                raise ValueError(f"a whole batch cannot be read, first of all {skipped[0].where}: {skipped[0].reason}")
            if len(rows) == 1 < len(group.samples) and self.options.world_size == 1:
                what = f"{skipped[0].where}: {skipped[0].reason}"
                raise ValueError(f"of a batch one sample can be read, so nothing is contrasted; first of all {what}")
            for repeated in range(len(group.samples) - len(rows)):
                images[len(rows)].copy_(images[repeated])
                rows.append(rows[repeated])
        return self._collate(images[: len(rows)], rows, skipped, guessed)

    def _load(self, sample: Any, epoch: int) -> Loaded | Skipped:
        source = self.source
        try:
            raw = source.read(sample)
            parsed = parse_sample(raw, self.options.fields)
            seed = sample_seed(self.options.seed, epoch, source.number(sample)) if self.train else 0
            image = self.transform(parsed.picture, seed)
        except (ValueError, OSError) as error:
            return Skipped(1, reason_of(error), source.name(sample), source.identity(sample))
        found, do_not_fit = wordings(raw, parsed, self.options.fields) if self.options.wordings else ([], False)
        caption, fit = drawn(raw, parsed, seed, self.options.fields) if self.train else (parsed.captions[0], True)
        guess = parsed.guess or (LANGUAGES_DO_NOT_FIT if do_not_fit else None) or (None if fit else WEIGHTS_DO_NOT_FIT)
        guessed = Guessed(1, guess, source.name(sample), source.identity(sample)) if guess else None
        look = self.options.look(parsed.picture) if self.options.look else None
        return Loaded(image, parsed, caption, guessed, found, look)

    def _collate(
        self, images: torch.Tensor, rows: list[Loaded], skipped: list[Skipped], guessed: list[Guessed]
    ) -> Batch:
        samples, captions = [row.sample for row in rows], [row.caption for row in rows]
        return Batch(
            images=images,
            tokens=self.tokens(captions),
            identities=torch.tensor(
                [self._identity(row.sample, row.caption) for row in rows], dtype=torch.int64
            ).reshape(len(rows), 1 + self.captions_a_sample),
            keys=[sample.key for sample in samples],
            captions=captions,
            product_ids=[sample.product_id for sample in samples],
            categories=[sample.category for sample in samples],
            subcategories=[sample.subcategory for sample in samples],
            image_names=[sample.image_name for sample in samples],
            attributes=[sample.attributes for sample in samples],
            looks=[row.look for row in rows] if self.options.look else [],
            wordings=[row.wordings for row in rows] if self.options.wordings else [],
            lost=skipped,
            guessed=guessed + [row.guessed for row in rows if row.guessed],
        )

    def _identity(self, sample: ShardSample, caption: str) -> list[int]:
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


class RememberedTokens:
    """A tokenizer that does each caption once: the views of a product share theirs, and the next epoch has it again."""

    def __init__(self, tokenizer: Callable[[list[str]], torch.Tensor]) -> None:
        self.tokenizer, self.rows = tokenizer, {}

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Captions -> int64 (B, L)."""
        if not captions:
            return torch.empty((0, 0), dtype=torch.int64)
        if len(self.rows) > REMEMBERED_CAPTIONS:
            self.rows.clear()
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.rows]
        if new:
            self.rows.update(zip(new, self.tokenizer(new).unbind()))
        return torch.stack([self.rows[caption] for caption in captions])

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "rows": {}}


def _empty_images(count: int, shape: torch.Size, shared: bool) -> torch.Tensor:
    """uint8 (count, *shape), channels_last as the pictures come (twenty times as fast to copy)."""
    images = torch.empty((count, *shape), dtype=torch.uint8, memory_format=torch.channels_last)
    return images.share_memory_() if shared else images


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A picture is too small to share: two threads resize it no faster, and twenty times slower if a core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _no_data_message(pattern: str, source: Source, world_size: int) -> str:
    if source.num_samples:
        return f"{source.num_samples} samples in {pattern!r} are too few products for {world_size} processes"
    reasons: collections.Counter[str] = collections.Counter()
    for skipped in source.skipped:
        reasons[skipped.reason] += skipped.count
    why = ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "the shards are empty"
    why += f", first of all {printable(source.skipped[0].where)}" if source.skipped else ""
    return f"no usable sample in {pattern!r} ({why}); a sample needs KEY.jpg (or .png, .webp ...) and KEY.txt"
