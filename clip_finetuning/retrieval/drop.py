"""Whether a model became worse by more than chance while it was trained, of what a trainer can keep of an evaluation."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_finetuning.retrieval import intervals

KEY = "recall@10"


def by_product(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `difference` needs of the results of `product`, as plain data: 16 bytes a product; None if they have none.

    `hits` (P,): each product's share of the mean Recall@10 of both directions, in queries; `queries` (P,); and a hash of
    which products these are.
    """
    if "product" not in results.get("protocols", {}):
        return None
    texts, images = (results["protocols"]["product"][way]["by_product"] for way in ("text_to_image", "image_to_text"))
    place = {product: number for number, product in enumerate(images["product"])}
    queries = np.array(images["queries"], np.float64)
    hits = np.array(images[KEY], np.float64)
    text_hits = np.zeros(len(queries))
    text_hits[[place[product] for product in texts["product"]]] = texts[KEY]
    hits = (hits + text_hits * (queries.sum() / sum(texts["queries"]))) / 2
    names = hashlib.sha256("\0".join(images["product"]).encode("utf-8", "surrogatepass")).hexdigest()
    return {"products": names, "hits": hits.tolist(), "queries": images["queries"]}


def below(
    first_score: float | None, first: Mapping[str, Any] | None, score: float, second: Mapping[str, Any] | None
) -> str | None:
    """How sure it is that a score is below the first one, in words; None if it is not, or by no more than chance.

    `first` and `second` are the `by_product` of the two. Where no sample has an embedding, nothing is left to chance.
    """
    if first_score is None or score >= first_score:
        return None
    if second is None:
        return ""
    found = difference(first or {}, second)
    if found is None or found[1][1] >= 0:
        return None
    gain, (low, high) = found
    return f" ({gain:+.4f} [{low:+.4f}, {high:+.4f}])"


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, list[float]] | None:
    """(B - A, its paired 95 % interval [low, high]) of the mean Recall@10 of two `by_product`; None if of other products."""
    pair = gains(first, second)
    if pair is None:
        return None
    return float(pair[0].sum() / pair[1].sum()), intervals.gain_interval(*pair)


def gains(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """(sums of B - A, queries) of the mean Recall@10 by product, (P,) each, of two `by_product`; None if of other products."""
    if any(first.get(column) != second[column] for column in ("products", "queries")):
        return None
    before = first.get("hits")  # of a checkpoint, which may be anybody's
    if not isinstance(before, list) or [type(hit) for hit in before] != [float] * len(second["hits"]):
        return None
    return np.array(second["hits"]) - np.array(before), np.array(second["queries"], np.float64)
