"""Every image asks all other images: for the other views of its product, or for pictures of its kind.

image_to_image   a hit is another view of the same product
same_category    a hit is an image of the same category, of whatever product
same_attributes  a hit is an image of the same category whose attributes are the same, every one of them

The latter two are LookBench's coarse and fine recall (Gao et al. 2026). The image that asks is not in its own gallery,
neither as a hit nor as a rival.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_finetuning.retrieval import metrics, positives, ranking, summary, truth
from clip_finetuning.retrieval.embeddings import Embeddings, numbered, texts
from clip_finetuning.retrieval.query_texts import NothingToAsk
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.text import same_caption_key

MOST_PAIRS = 2_000_000  # of images and their hits at a time: a category may hold a third of all images
A_HIT = {
    "image_to_image": "another view of the same product",
    "same_category": "an image of the same category, other views of the product too",
    "same_attributes": "an image of the same category whose attributes are all the same, other views of the product too",
}
WHY_NONE = {
    "image_to_image": "every product has one view",
    "same_category": "no category holds two images",
    "same_attributes": "no two images have the same",
}


def evaluate(
    embeddings: Embeddings,
    protocol: str,
    ks: Sequence[int],
    seed: int,
    wanted: truth.Truth | None = None,
    **where: Any,
) -> dict[str, Any]:
    """The numbers of one protocol, as of those with texts. Raises NothingToAsk where no image has a hit.

    `where`: device and shared of `ranking.rank_positives`.
    """
    e = embeddings
    groups = _groups(e, protocol)
    others = np.bincount(groups[groups >= 0], minlength=1)[groups] - 1  # images with which each is grouped
    asks = (groups >= 0) & (others > 0)
    if not asks.any():
        raise NothingToAsk(f"{protocol}: a hit is {A_HIT[protocol]}, and no image has one: {WHY_NONE[protocol]}")
    asking = np.flatnonzero(asks)
    members = positives.by_group(np.arange(groups.max() + 1), groups)
    alike = truth.alike_groups(wanted, e, members, np.bincount(groups[asking], minlength=groups.max() + 1))
    values, best = _values(e.image_embeddings, groups, asking, others, alike and alike[0], ks, where)
    if where.get("shared") and distributed.rank() > 0:
        return {}
    gallery, alone = len(groups) - 1, len(groups) - len(asking)
    numbers = summary.of_values(values, e.image_product[asking], e.category[asking], seed)
    numbers |= {
        "without_positive": alone,
        "chance": metrics.chance_of_counts(others[asking], np.full(len(asking), gallery), ks),
        "gallery": gallery,
    }
    result = {"protocol": _sentence(e, protocol, asks), "image_to_image": numbers}
    if wanted and alike:
        by_truth = truth.by_truth_of_best(wanted, best, e.image_product[asking], ks)
        of = f"pictures of different {'products' if protocol == 'image_to_image' else 'kinds'}"
        result["truth"] = truth.entry(wanted, {"image_to_image": by_truth}, alike[1], of)
    return result


def what_decides(protocol: str, embeddings: Embeddings) -> dict[str, np.ndarray]:
    """What numbers of a protocol depend on besides the samples' keys, products and captions."""
    if protocol not in ("same_category", "same_attributes"):
        return {}
    return {"kind": _category_and_attributes(embeddings) if protocol == "same_attributes" else embeddings.category}


def _sentence(e, protocol, asks):
    alone = int((~asks).sum())
    products = len({*e.image_product[~asks]} - {*e.image_product[asks]})
    left_out = f"; {alone:,} images, {products:,} whole products, have none and do not ask" if alone else ""
    return f"each of {asks.sum():,} images against all {len(asks) - 1:,} others; a hit is {A_HIT[protocol]}{left_out}"


def _groups(e, protocol):
    """(N,) numbers of what images have in common, -1 for those that have nothing to share."""
    if protocol == "image_to_image":
        return numbered(e.image_product)
    if not (e.category != "").any():
        raise NothingToAsk(f"{protocol} needs categories, and the data name none")
    if protocol == "same_category":
        return numbered(e.category)
    if e.attributes is None:
        raise NothingToAsk(
            f"{protocol} needs attributes, and the data name none; --attributes of clip_prep.py keeps them"
        )
    return numbered(_category_and_attributes(e))


def _category_and_attributes(e):
    """(N,) texts, equal where category and all attributes are; blank where one image has none of either."""
    return texts(
        "\0".join([category, *(f"{name}\0{same_caption_key(said)}" for name, said in sorted(own.items()))])
        if category and own
        else ""
        for category, own in zip(e.category, e.attributes)
    )


def _values(embeddings, groups, asking, others, alike, ks, where):
    """({name: (Q,)} of the images that ask, some at a time; by each truth the rank of the best right image of each)."""
    values, best = [], []
    sizes = others if alike is None else others + np.diff(alike.offsets)[groups]
    for chosen in _parts(asking, sizes[asking]):
        hits = _others_of_group(groups, chosen)
        itself = positives.Positives(np.arange(len(chosen) + 1), chosen)
        near = None if alike is None else positives.selected(alike, groups[chosen])
        ranks = ranking.rank_positives(embeddings[chosen], embeddings, hits, alike=near, absent=itself, **where)
        values.append(metrics.query_values(ranks, ks))
        best.append(truth.best_ranks(ranks))
    return ({name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in (values, best))


def _parts(asking, pairs) -> Iterator[np.ndarray]:
    """The images that ask, in parts of few enough `pairs` with others."""
    part = np.cumsum(pairs) // MOST_PAIRS
    yield from np.split(asking, np.flatnonzero(np.diff(part)) + 1)


def _others_of_group(groups, chosen):
    """For each chosen image the others of its group."""
    pairs = positives.by_group(groups[chosen], groups)
    other = pairs.items != chosen[pairs.queries()]
    return positives.Positives(pairs.offsets - np.arange(len(pairs.offsets)), pairs.items[other])
