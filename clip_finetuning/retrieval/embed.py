"""The samples of shards -> their embeddings, and what became of every sample that has none.

What overflows in half precision is embedded again in fp32; what is no direction even so is left out, by name. Each rank
embeds its own samples, and all of them have the embeddings of all.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval.embeddings import Embeddings, texts
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.accounting import count_lost

NO_IMAGE_EMBEDDING, NO_CAPTION_EMBEDDING = "picture without a finite embedding", "caption without a finite embedding"
AT_ONCE_BYTES = 256 * 2**20  # of pictures that all variants of a model go through: 1,800 of 224 pixels
NAMED = 5  # samples that are named in a warning
log = logging.getLogger(__name__)


class Loader(Protocol):
    """What is read of an `eval_loader` of dBManagement, which says what its batches hold."""

    num_samples: int
    lost: dict  # {what is counted once: (samples, reason)}
    guesses: dict  # the same of what is used by a guess

    def __iter__(self) -> Iterator[Any]: ...


class NothingFinite(ValueError):
    """There are samples, but the model gives none of them an embedding; `counts` are those of `embed`."""

    def __init__(self, message: str, counts: dict[str, Any]):
        super().__init__(message)
        self.counts = counts


def embed(
    clip_model: ClipModel,
    loader: Loader,
    precision: str,
    progress: bool = False,
    wished: Callable[[], bool] | None = None,
) -> tuple[Embeddings, dict[str, Any]]:
    """Embed every sample of a loader, each distinct caption once -> (Embeddings of all ranks, counts).

    The counts say what became of the other samples, once over all ranks: `skipped` {reason: samples}, `guessed`
    {reason: samples}: used all the same, `again_in_fp32` {"images", "captions"}: overflowed in half precision. Raises ValueError if nothing can be embedded,
    distributed.Stopped if `wished`, a function that all ranks ask between two batches, wants an end.
    """
    clip_model.model.eval()
    part = _Part()
    with tqdm(total=loader.num_samples, unit=" samples", desc="embedding", disable=None if progress else True) as bar:
        for batch in distributed.until(wished, loader) if wished else loader:
            part.add(clip_model, batch, precision)
            bar.update(len(batch.keys))
    part.lost |= loader.lost
    part.guesses = loader.guesses
    return _joined(distributed.gather_objects(part))


def embed_each(
    clip_model: ClipModel,
    loader: Loader,
    precision: str,
    variants: Sequence[Callable[[], None]],
    progress: bool = False,
) -> Iterator[tuple[Embeddings, dict[str, Any]] | NothingFinite]:
    """What `embed` gives for each variant of a model, or raises; a variant is a call that puts its weights into the model.

    The pictures are decoded once: batches of some hundred MB are gone through by all variants before the next ones come.
    """
    clip_model.model.eval()
    parts = [_Part() for _ in variants]
    total = loader.num_samples * len(parts)
    with tqdm(total=total, unit=" samples", desc="embedding", disable=None if progress else True) as bar:
        for batches in _gathered(loader):
            for variant, part in zip(variants, parts):
                variant()
                for batch in batches:
                    part.add(clip_model, batch, precision)
                    bar.update(len(batch.keys))
    while parts:  # each variant's rows are gone before the next one's are joined
        part = parts.pop(0)
        part.lost |= loader.lost
        part.guesses = loader.guesses
        try:
            yield _joined(distributed.gather_objects(part))
        except NothingFinite as error:  # on every rank alike
            yield error


def _gathered(loader):
    """Lists of batches with so many bytes of pictures; copies, since workers wait for the memory that they lent."""
    batches, size = [], 0
    for batch in loader:
        batches.append(batch._replace(images=batch.images.clone()))
        size += batch.images.nbytes
        if size >= AT_ONCE_BYTES:
            yield batches
            batches, size = [], 0
    if batches:
        yield batches


def _joined(parts):
    """(Embeddings, counts) of what all ranks have embedded."""
    # What breaks an index is on every rank's list, what a rank could not decode on its own alone.
    skipped = dict(count_lost(part.lost for part in parts))
    again = {"images": sum(part.images_again for part in parts)}
    again["captions"] = len(set().union(*(part.captions_again for part in parts)))
    guessed = dict(count_lost(part.guesses for part in parts))
    counts = {"skipped": skipped, "guessed": guessed, "again_in_fp32": again}
    rows = [row for part in parts for row in part.rows]
    if not rows:
        message = f"no sample could be embedded: {skipped or 'the shards are empty'}"
        if {NO_IMAGE_EMBEDDING, NO_CAPTION_EMBEDDING} & set(skipped):
            raise NothingFinite(message, counts)
        raise ValueError(message)
    of_caption = {caption: row for part in reversed(parts) for caption, row in part.texts.items()}
    images = np.concatenate([block for part in parts for block in part.images])
    looks = [look for part in parts for look in part.looks]
    return _assembled(images, of_caption, rows, looks), counts


def _assembled(images, of_caption, rows, looks):
    """Embeddings of per-sample rows; a text is a (product, caption) pair."""
    keys, products, categories, subcategories, captions, attributes = zip(*rows)
    numbers: dict[tuple[str, str], int] = {}
    image_text = np.array([numbers.setdefault(pair, len(numbers)) for pair in zip(products, captions)])
    return Embeddings(
        image_embeddings=images.astype(np.float32),
        text_embeddings=np.stack([of_caption[caption] for _, caption in numbers]).astype(np.float32),
        image_product=texts(products),
        text_product=texts(product for product, _ in numbers),
        image_key=texts(keys),
        captions=texts(caption for _, caption in numbers),
        category=texts(categories),
        subcategory=texts(subcategories),
        image_text=image_text,
        attributes=texts(attributes),
        looks=np.frombuffer(b"".join(looks), np.uint8).reshape(len(looks), -1) if looks else None,
    )


class _Part:
    """What one rank has embedded."""

    def __init__(self):
        self.images: list[np.ndarray] = []  # blocks (n, D)
        self.texts: dict[str, np.ndarray | None] = {}  # {caption: (D,), or None if it has no embedding}
        self.rows: list[tuple[Any, ...]] = []  # one a sample
        self.looks: list[bytes] = []  # likewise, where they are asked for
        self.lost: dict[str, tuple[int, str]] = {}  # as in Loader.lost
        self.guesses: Mapping[Hashable, tuple[int, str]] = {}  # as in Loader.guesses
        self.met, self.images_again = 0, 0
        self.captions_again: set[str] = set()

    def add(self, clip_model, batch, precision):
        """Embed a batch; samples whose picture or caption has no embedding are left out by name."""
        images = embed_rows(clip_model, clip.encode_images, batch.images, precision)
        self._add_captions(clip_model, batch, precision)
        self.images_again += len(images.again)
        _warn(
            f"pictures overflowed in {precision} and are embedded again in fp32", (batch.keys[i] for i in images.again)
        )
        broken = self._lose_broken(batch, images.broken)
        kept = [i for i in range(len(batch.keys)) if i not in broken]
        self.met += len(batch.keys)
        self.images.append(images.embeddings[kept])
        columns = (batch.product_ids, batch.categories, batch.subcategories, batch.captions, batch.attributes)
        rows = list(zip(batch.keys, *columns))
        self.rows += [rows[i] for i in kept]
        self.looks += [batch.looks[i] for i in kept if batch.looks]

    def _lose_broken(self, batch, broken_images):
        """Count the samples of a batch that have no embedding, with the reason -> their places in it."""
        reasons = dict.fromkeys(broken_images.tolist(), NO_IMAGE_EMBEDDING)
        for i, caption in enumerate(batch.captions):
            if self.texts[caption] is None:
                reasons.setdefault(i, NO_CAPTION_EMBEDDING)
        for i, reason in reasons.items():  # other shards may have the same keys
            self.lost[f"{batch.keys[i]}, sample {self.met + i} of rank {distributed.rank()}"] = (1, reason)
        _warn(
            "samples are left out, since picture or caption has no finite embedding even in fp32",
            (batch.keys[i] for i in reasons),
        )
        return set(reasons)

    def _add_captions(self, clip_model, batch, precision):
        """Embed the captions that were not met before."""
        new = {caption: number for number, caption in enumerate(batch.captions) if caption not in self.texts}
        if not new:
            return
        captions = list(new)
        rows = embed_rows(clip_model, clip.encode_texts, batch.tokens[list(new.values())], precision)
        again = [captions[i] for i in rows.again]
        self.captions_again.update(again)
        _warn(f"captions overflowed in {precision} and are embedded again in fp32", again)
        self.texts.update(zip(captions, rows.embeddings))
        self.texts.update((captions[i], None) for i in rows.broken)


def _warn(what: str, names: Iterable[str]) -> None:
    """Warn of some of a batch, the first few by name."""
    names = list(names)
    if names:
        listed = ", ".join(name[:60] for name in names[:NAMED])
        log.warning("%d %s: %s%s", len(names), what, listed, ", ..." if len(names) > NAMED else "")


# ------------------------------------------------------------------------------- some rows, whatever they are


class Rows(NamedTuple):
    """The embeddings of some pictures or texts, and which of them need a word."""

    embeddings: np.ndarray  # (n, D) float32
    again: np.ndarray  # numbers of the rows that overflowed and were embedded again in fp32
    broken: np.ndarray  # numbers of the rows that are no direction even so


def embed_rows(
    clip_model: ClipModel,
    encode: Callable[[ClipModel, torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    precision: str,
) -> Rows:
    """Embed in evaluation mode -> Rows; `encode` is `encode_images` or `encode_texts` of the model's room."""
    encode_part = partial(encode, clip_model)
    with torch.inference_mode(), devices.autocast(clip_model.device, precision):
        embeddings = _arrays(encode_part, rows, clip_model.device)
    broken = _no_direction(embeddings)
    again = broken if precision != "fp32" else broken[:0]
    if len(again):
        with torch.inference_mode():
            embeddings[again] = _arrays(encode_part, rows[again.tolist()], clip_model.device)
        broken = _no_direction(embeddings)
    return Rows(embeddings, again, broken)


def _no_direction(embeddings):
    """Numbers of the rows that are not finite, or of length 0."""
    lengths = np.linalg.norm(embeddings, axis=1)
    return np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))


def _arrays(encode, rows, device):
    return np.concatenate(devices.in_halves(lambda part: encode(part).float().cpu().numpy(), rows, device))
