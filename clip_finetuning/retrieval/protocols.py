"""What is queried against what: the protocols, each from embeddings to numbers with intervals.

product     every distinct caption against all images, every image against the distinct captions; any item of the
            same product is a hit
pair        every sample's caption against every sample's image, one to one
one_view    the first image of each product and its caption, one to one
sampled101  one positive among 100 negatives of the same subcategory, other products; frozen candidate lists

Those of `between_images` ask with pictures for pictures, those of `query_texts` as `product` does, with other texts than
the captions.

The same caption (`text.same_caption_key`) is never a negative. In `pair`, where it is the sample alone that counts,
samples with the same caption share their expected rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from clip_finetuning.retrieval import between_images, hubness, metrics, query_texts, ranking, sampled101, summary
from clip_finetuning.retrieval import graded as gains
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.names import BETWEEN_IMAGES, DIRECTIONS, DIRECTIONS_OF, QUERIES_OF
from clip_finetuning.retrieval.pairs import pair_truths
from clip_finetuning.retrieval.positives import Positives, by_group, from_pairs, one_to_one, transposed
from clip_finetuning.retrieval.stored_rows import selected
from clip_finetuning.retrieval.tiles import Rows
from clip_finetuning.retrieval.truth import (
    CAPTIONS_AND_PICTURES,
    NAMES_AND_PICTURES,
    Truth,
    alike_texts,
    by_truth,
    by_truth_of_pairs,
    entry,
    marked_tasks,
    of_texts,
)
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.text import caption_numbers


@dataclass
class Task:
    """Queries and gallery of one protocol in one direction."""

    queries: Rows  # (Q, D)
    gallery: Rows  # (G, D)
    positives: Positives
    query_products: np.ndarray  # (Q,) product ids
    query_categories: np.ndarray  # (Q,)
    query_items: np.ndarray  # (Q,) numbers of the texts or images that ask
    gallery_items: np.ndarray  # (G,) numbers of the images or texts that answer


def evaluate(
    embeddings: Embeddings,
    protocol: str,
    ks: Sequence[int],
    seed: int = 0,
    candidates: sampled101.Candidates | None = None,
    *,
    truth: Truth | None = None,
    queries: Mapping[str, query_texts.QueryTexts] | None = None,
    kept: dict[str, ranking.Ranks] | None = None,
    device: torch.device | None = None,
    shared: bool = False,
) -> dict[str, Any]:
    """The numbers of one protocol: {query text, per direction: metrics, intervals, per category, per product}.

    `queries` holds the texts of those that do not ask the captions. `kept`: `product` puts the ranks of both directions there,
    with the first answers of each query, and has its hubness; who needs them again need not rank again. `shared`: all
    processes of a run call this, and each ranks its part of the queries; rank 0 alone has the numbers, the others {}.
    Raises NothingToAsk for what the data cannot be asked.
    """
    where = {"device": device, "shared": shared}
    if protocol in BETWEEN_IMAGES:
        return between_images.evaluate(embeddings, protocol, ks, seed, truth, **where)
    if protocol in QUERIES_OF:
        return _evaluate_queries(embeddings, protocol, ks, seed, queries or {}, where, truth)
    if protocol == "sampled101":
        return sampled101.evaluate(
            embeddings, ks, seed, candidates or sampled101.draw_candidates(embeddings, seed), shared, truth
        )
    if protocol == "pair":
        return _evaluate_pairs(embeddings, ks, seed, truth, where)
    described = {"protocol": describe(embeddings, protocol)}
    if truth and truth.judged:
        described["protocol"] += f"; {truth.judged.sentence()}"
    kept = kept if protocol == "product" else None
    numbers = _evaluate_tasks(embeddings, protocol, ks, seed, where, truth, kept=kept, graded=truth is not None)
    return numbers and described | numbers


def _evaluate_tasks(
    embeddings, protocol, ks, seed, where, truth=None, *, kept=None, graded=False, of=CAPTIONS_AND_PICTURES
):
    """{direction: numbers} of a protocol that has `tasks`, and its `truth` where others than the strict one are wanted."""
    asked, alike, counts = marked_tasks(truth, tasks(embeddings, protocol))
    gained = _gains(embeddings, asked) if graded else dict.fromkeys(asked)
    ranked, by_gain = {}, {}
    for direction, task in asked.items():
        rank = partial(ranking.rank_positives, task.queries, task.gallery, **where)
        ranked[direction] = rank(task.positives, alike=alike[direction], top=0 if kept is None else hubness.FIRST)
        if found := gained[direction]:
            by_gain[direction] = rank(found[0], grades=found[1]), found[1]
    if where["shared"] and distributed.rank() > 0:
        return {}
    if kept is not None:
        kept |= ranked
    result: dict[str, Any] = {}
    numbers = {}
    for direction, task in asked.items():
        ranks = ranked[direction]
        chance = metrics.chance(task.positives, len(task.gallery), ks)
        result[direction] = summary.of_ranks(ranks, task.query_products, task.query_categories, ks, seed)
        result[direction] |= {"chance": chance, "gallery": len(task.gallery)}
        if ranks.top_items is not None:
            result[direction]["hubness"] = hubness.of_lists(ranks.top_items, embeddings, direction)
        if direction in by_gain:
            is_asked = ranks.best != ranking.NEVER
            again, share = by_gain[direction]
            values, ends = gains.numbers(again, share, is_asked, task.query_products, ks)
            result[direction] |= values
            result[direction]["intervals"] |= ends
        if truth and alike[direction] is not None:
            numbers[direction] = by_truth(ranks, truth, task.query_products, ks)
    return result | ({"truth": entry(truth, numbers, counts, of)} if truth and numbers else {})


def _gains(e, asked):
    """{direction: what gains how much by its attributes, or None}."""
    forward = asked["text_to_image"]
    found = gains.gains(e, forward.positives, forward.gallery_items)
    back = gains.turned(found, len(forward.gallery_items)) if found else None
    return {"text_to_image": found, "image_to_text": back}


def describe(embeddings: Embeddings, protocol: str) -> str:
    """In words: what was queried against what."""
    images, products = len(embeddings.image_key), len(np.unique(embeddings.image_product))
    captions = len(caption_numbers(embeddings.captions)[1])
    return {
        "product": f"text->image: each of {captions:,} distinct captions against all {images:,} images; image->text: each "
        f"image against the distinct captions; a hit is any item of the same product ({products:,} products); the same "
        "caption is never a negative",
        "one_view": f"the first image of each of {products:,} products against their captions, one to one; the same "
        "caption is never a negative",
    }[protocol]


def tasks(embeddings: Embeddings, protocol: str) -> dict[str, Task]:
    """{direction: Task} of a protocol in which products, or captions, are groups of positives."""
    e = embeddings
    if protocol != "one_view":
        # A caption that several products share is one text, and a positive of all their images.
        text_of, texts = map(np.array, caption_numbers(e.captions))
        _, codes = np.unique(np.concatenate([e.text_product, e.image_product]), return_inverse=True)
        same = by_group(codes[: len(text_of)], codes[len(text_of) :])
        positives = from_pairs(np.repeat(text_of, np.diff(same.offsets)), same.items, len(texts))
        images = np.arange(len(e.image_key))
        text_category = e.category[np.array([_first(positives, q) for q in range(len(texts))], dtype=np.int64)]
    else:
        images = np.sort(np.unique(e.image_product, return_index=True)[1])
        texts = e.image_text[images]
        text_of = np.array(caption_numbers(e.captions[texts])[0])
        positives, text_category = by_group(text_of, text_of), e.category[images]
    image_rows, text_rows = selected(e.image_embeddings, images), selected(e.text_embeddings, texts)
    back = transposed(positives, len(images))
    both = {
        "text_to_image": Task(text_rows, image_rows, positives, e.text_product[texts], text_category, texts, images),
        "image_to_text": Task(image_rows, text_rows, back, e.image_product[images], e.category[images], images, texts),
    }
    return {direction: both[direction] for direction in DIRECTIONS_OF[protocol]}


def _evaluate_queries(embeddings, protocol, ks, seed, queries, where, truth):
    """A protocol whose texts are not the captions; where these have languages, each language against its own texts."""
    asked = query_texts.asked(embeddings, protocol, queries)
    mine = queries[QUERIES_OF[protocol]]
    result: dict[str, Any] = {"protocol": query_texts.describe(protocol, asked, mine.note)}
    of = NAMES_AND_PICTURES if protocol == "category_to_product" else CAPTIONS_AND_PICTURES
    result |= _evaluate_tasks(asked, protocol, ks, seed, where, truth and of_texts(truth, asked.captions), of=of)
    languages = query_texts.by_language(mine)
    if languages:
        result["languages"] = {
            language: _evaluate_tasks(query_texts.with_texts(embeddings, part), protocol, ks, seed, where)
            for language, part in languages.items()
        }
    return {} if where["shared"] and distributed.rank() > 0 else result


def _first(positives, query):
    """A query's first positive, or item 0 if it has none (it is then left out of all numbers)."""
    return next(iter(positives.of(query)), 0)


def _evaluate_pairs(e, ks, seed, truth, where):
    """`pair`: each sample alone is its own hit, and samples that share a text share their rank."""
    numbers, texts = map(np.array, caption_numbers(e.captions))
    used, text_of = np.unique(numbers[e.image_text], return_inverse=True)  # the gallery has the samples' texts alone
    related = alike_texts(truth, e, texts[used])
    text_rows = selected(e.text_embeddings, texts[used])
    found = pair_truths(e.image_embeddings, text_rows, text_of, ks, related and related.pairs, **where)
    if where["shared"] and distributed.rank() > 0:
        return {}
    images, shared = len(text_of), int((np.bincount(text_of)[text_of] > 1).sum())
    result = {
        "protocol": f"each of {images:,} captions against {images:,} images, one to one; only the sample itself is a hit; "
        f"{shared:,} samples whose caption others have too share their expected rank",
        "sharing_caption": shared,
    }
    products = {"text_to_image": e.text_product[e.image_text], "image_to_text": e.image_product}
    for direction in DIRECTIONS:
        result[direction] = summary.of_values(found[direction]["strict"], products[direction], e.category, seed)
        result[direction] |= {"chance": metrics.chance(one_to_one(images), images, ks), "gallery": images}
    if truth and related:
        result["truth"] = entry(truth, by_truth_of_pairs(truth, found, products), related.counts())
    return result
