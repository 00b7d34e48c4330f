"""The new pictures and captions of a source -> vectors in the store, and the rows of all pictures, over all ranks."""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from clip_finetuning.loading.loader import Loader
from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval.embed import NO_CAPTION_EMBEDDING, NO_IMAGE_EMBEDDING, embed_rows
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.accounting import Account, Skipped, count_lost
from clip_finetuning.search.database import Store
from clip_finetuning.search.reading import Block, Row, content_of


class Parcel(NamedTuple):
    """What a rank has made of a block."""

    rows: list[Row]
    pictures: list[int]  # the contents of those that are new
    vectors: np.ndarray  # (n, D) float32
    thumbnails: list[bytes]
    captions: list[int]  # the contents of new ones
    caption_vectors: np.ndarray  # (m, D)
    broken: list[tuple[str, str]]  # (image key, reason) of those without an embedding
    silent: list[int]  # the contents of captions without one
    again: int  # pictures that overflowed and were embedded again in fp32


class Outcome(NamedTuple):
    """What became of a source's pictures; on rank 0 of all of them."""

    rows: list[Row]  # in the order of the source
    counts: dict[str, Any]


def embed_new(
    clip_model: ClipModel, loader: Loader, known_captions: set[int], store: Store | None, precision: str
) -> Outcome:
    """Embed what a loader brings that is new, and keep it in the store (on rank 0) block by block.

    The ranks go in step: after each block all of them bring rank 0 what they made of theirs.
    """
    clip_model.model.eval()
    tally = collections.Counter({"embedded": 0, "captions_embedded": 0, "again_in_fp32": 0})
    of_rank: list[list[Row]] = [[] for _ in range(distributed.world_size())]
    account, met, silent = Account(), set(known_captions), set()
    total = loader.num_samples if store else None
    with tqdm(total=total, unit=" pictures", desc="indexing", disable=None if store else True) as bar:
        for parcels in _rounds(clip_model, loader, met, precision):
            for rank, parcel in enumerate(parcels):
                if parcel is None or store is None:
                    continue
                of_rank[rank] += parcel.rows
                store.add("picture", parcel.pictures, parcel.vectors, parcel.thumbnails)
                store.add("caption", parcel.captions, parcel.caption_vectors)
                account.note(
                    Skipped(1, reason, key, (rank, key, tally["broken"] + n))
                    for n, (key, reason) in enumerate(parcel.broken)
                )
                silent |= set(parcel.silent)
                tally.update(
                    embedded=len(parcel.pictures),
                    captions_embedded=len(parcel.captions),
                    again_in_fp32=parcel.again,
                    broken=len(parcel.broken),
                )
                bar.update(len(parcel.rows) + len(parcel.broken))
    accounts = distributed.gather_objects((loader.lost, loader.guesses))
    del tally["broken"]
    counts = {
        "skipped": dict(count_lost([lost for lost, _ in accounts] + [account.counted])),
        "guessed": dict(count_lost(guesses for _, guesses in accounts)),
        **tally,
    }
    if silent:
        counts["guessed"][f"{NO_CAPTION_EMBEDDING}, which is shown but not measured"] = len(silent)
    return Outcome([row for rows in of_rank for row in rows], counts)


def _rounds(clip_model: ClipModel, loader: Loader, met: set[int], precision: str) -> Iterator[list[Parcel | None]]:
    """What all ranks have made of their next blocks, until every rank is through."""
    blocks = iter(loader)
    while True:
        block = next(blocks, None)
        parcels = distributed.gather_objects(None if block is None else _parcel(clip_model, block, met, precision))
        if all(parcel is None for parcel in parcels):
            return
        yield parcels


def _parcel(clip_model: ClipModel, block: Block, met: set[int], precision: str) -> Parcel:
    texts = {content_of(row.caption): row.caption for row in block.rows if row.caption}
    new = {content: text for content, text in texts.items() if content not in met}
    met.update(new)
    dimensions = (0, 0)
    captions, caption_vectors, silent = [], np.empty(dimensions, np.float32), []
    if new:
        found = embed_rows(clip_model, clip.encode_texts, clip_model.tokenizer(list(new.values())), precision)
        contents, broken = list(new), set(found.broken.tolist())
        kept = [n for n in range(len(contents)) if n not in broken]
        captions, caption_vectors = [contents[n] for n in kept], found.embeddings[kept].astype(np.float32)
        silent = [contents[n] for n in sorted(broken)]
    pictures, vectors, thumbnails, lost, again = [], np.empty(dimensions, np.float32), [], set(), 0
    if block.new:
        found = embed_rows(clip_model, clip.encode_images, block.images, precision)
        broken, again = set(found.broken.tolist()), len(found.again)
        kept = [n for n in range(len(block.new)) if n not in broken]
        pictures = [block.rows[block.new[n]].content for n in kept]
        vectors, thumbnails = found.embeddings[kept].astype(np.float32), [block.thumbnails[n] for n in kept]
        lost = {block.new[n] for n in broken}
    return Parcel(
        rows=[row for place, row in enumerate(block.rows) if place not in lost],
        pictures=pictures,
        vectors=vectors,
        thumbnails=thumbnails,
        captions=captions,
        caption_vectors=caption_vectors,
        broken=[(block.rows[place].image_key, NO_IMAGE_EMBEDDING) for place in sorted(lost)],
        silent=silent,
        again=again,
    )
