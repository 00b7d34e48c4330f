"""Makes the texts that ask besides the captions - keyword captions, names of categories, all wordings - and embeds them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval import keywords, zero_shot
from clip_finetuning.retrieval.embed import Loader, embed_rows
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.query_texts import QueryTexts, rows_of
from clip_finetuning.runtime import distributed

ROWS = 256  # texts that are embedded at once

Asked = dict[tuple[str, str], str]  # {(text, product or category): language}


class Wordings:
    """An `eval_loader` whose batches bring every wording; what it hands on is remembered."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.num_samples = loader, loader.num_samples
        self.found: Asked = {}

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            for product, wordings in zip(batch.product_ids, batch.wordings):
                self.found |= {(text, product): language for text, language in wordings}
            yield batch

    @property
    def lost(self) -> dict:
        return self.loader.lost

    @property
    def guesses(self) -> dict:
        return self.loader.guesses


def make(
    clip_model: ClipModel,
    embeddings: Embeddings,
    kinds: Sequence[str],
    precision: str,
    wordings: Wordings | None = None,
    prompts: Sequence[str] | None = None,
) -> dict[str, QueryTexts]:
    """{kind: QueryTexts} of the kinds `short`, `category` and, of a loader's `wordings`, `wording`; all ranks call it.

    A kind of which the data have no texts is left out: its protocol says so. Categories are named in `prompts`, or in
    those of zero-shot classification.
    """
    found: dict[str, tuple[Asked, str]] = {}
    if "short" in kinds:
        found["short"] = short_captions(embeddings)
    if wordings is not None:
        found["wording"] = _wordings(embeddings, wordings)
    made = {kind: _embedded(clip_model, asked, note, precision) for kind, (asked, note) in found.items() if asked}
    if "category" in kinds and (names := sorted({*embeddings.category.tolist()} - {""})):
        made["category"] = _categories(clip_model, embeddings, names, precision, prompts or zero_shot.PROMPTS)
    return made


def short_captions(embeddings: Embeddings) -> tuple[Asked, str]:
    """({(keyword caption, product): ""}, how they were made) of every text.

    A product with attributes is asked for by them and its category; any other by what is left of its caption, and by its
    category alone where nothing is.
    """
    columns, attributes = _columns(embeddings)
    found: Asked = {}
    made: Counter[str] = Counter()
    for caption, product in zip(embeddings.captions.tolist(), embeddings.text_product.tolist()):
        category = columns.get(product, "")
        text = keywords.of_columns([*said, category]) if (said := attributes.get(product)) else ""
        how = "by attributes and category"
        if not text:
            text, how = keywords.keywords(caption), "by leaving out clauses and stop words"
        if not text:
            text, how = (
                keywords.of_columns([category]),
                "by the category, since the caption has nothing else",
            )
        if text:
            found[text, product] = ""
        made[how if text else "not at all, and are left out"] += 1
    parts = ", ".join(f"{count:,} {how}" for how, count in made.items())
    return found, f"made of {made.total():,} captions, with at most {keywords.MOST_WORDS} words each: {parts}"


def _columns(e):
    """({product: its subcategory, or category}, {product: the values of its attributes}), by its first image that says so."""
    columns: dict[str, str] = {}
    for product, category, subcategory in zip(e.image_product, e.category, e.subcategory):
        columns[product] = columns.get(product) or subcategory or category
    attributes: dict[str, list[str]] = {}
    listed: list[dict[str, str]] = [] if e.attributes is None else e.attributes.tolist()
    for product, said in zip(e.image_product, listed):
        if said:  # nobody asks for true or false
            attributes.setdefault(product, [value for value in said.values() if value not in ("true", "false")])
    return columns, attributes


def _wordings(embeddings, wordings):
    """All wordings of the products that are embedded, over all ranks."""
    products = set(embeddings.image_product.tolist())
    found: Asked = {}
    for part in distributed.gather_objects(wordings.found):
        found |= {pair: language for pair, language in part.items() if pair[1] in products}
    spoken = Counter(
        language for languages in found.values() for language in languages.split() or ["no named language"]
    )
    named = ", ".join(f"{count:,} in {language}" for language, count in sorted(spoken.items()))
    return found, f"{len(found):,} wordings of {len(products):,} products, {named}"


def _categories(clip_model, embeddings, names, precision, prompts):
    rows = zero_shot.embed_names(clip_model, names, precision, prompts)
    without = int((embeddings.category == "").sum())
    note = f"each the mean of {len(prompts)} prompts as for zero-shot classification"
    note += f" ({without:,} images have no category and are no hit)" if without else ""
    other = () if tuple(prompts) == zero_shot.PROMPTS else tuple(prompts)
    return replace(_finite(rows, {(name, name): "" for name in names}, note), prompts=other)


def _embedded(clip_model, found, note, precision):
    distinct = list(dict.fromkeys(text for text, _ in found))
    number = {text: place for place, text in enumerate(distinct)}
    rows = embed_texts(clip_model, distinct, precision)
    return _finite(rows[[number[text] for text, _ in found]], found, note)


def _finite(rows, found, note):
    """QueryTexts of those whose embedding is finite; the note says of how many it is not."""
    finite = np.isfinite(rows).all(1)
    if not finite.any():
        raise ValueError(f"none of {len(rows):,} query texts has a finite embedding: the model is broken")
    if not finite.all():
        note += f"; {(~finite).sum():,} have no finite embedding and are left out"
    return rows_of(rows[finite], {pair: found[pair] for pair, kept in zip(found, finite) if kept}, note)


def embed_texts(clip_model: ClipModel, distinct: Sequence[str], precision: str) -> np.ndarray:
    """(T, D) float32 of texts, NaN where one has no direction even in fp32; each rank embeds its share."""
    clip_model.model.eval()
    world_size, rank = distributed.world_size(), distributed.rank()
    mine = distinct[rank::world_size]
    blocks = []
    for start in range(0, len(mine), ROWS):
        rows = embed_rows(
            clip_model, clip.encode_texts, clip_model.tokenizer(list(mine[start : start + ROWS])), precision
        )
        rows.embeddings[rows.broken] = np.nan
        blocks.append(rows.embeddings)
    parts = distributed.gather_objects(np.concatenate(blocks) if blocks else None)
    width = next(part.shape[1] for part in parts if part is not None)
    together = np.empty((len(distinct), width), np.float32)
    for number, part in enumerate(parts):
        if part is not None:
            together[number::world_size] = part
    return together
