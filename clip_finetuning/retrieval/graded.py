"""How much of what was asked for an answer has: gains for nDCG@k from attributes, where right and wrong is too coarse.

An item of the query's own product gains 1, one of its category the share of its attributes that are equal, if that is half of
them at least (Jarvelin and Kekalainen 2002 for graded gains). An attribute that only one of the two has is unequal.
"""

import logging
from collections.abc import Sequence

import numpy as np

from clip_finetuning.retrieval import intervals, metrics, ranking
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.positives import Positives, from_keys, keys_of, transposed
from clip_finetuning.runtime.text import same_caption_key

LEAST = 0.5  # share of equal attributes
COMPARED = 1 << 24  # (query, item) pairs at a time
MOST_GAINS = 3_000_000  # beyond, grading costs a third of the ranking, and attributes tell little apart
log = logging.getLogger(__name__)


def gains(embeddings: Embeddings, own: Positives, images: np.ndarray) -> tuple[Positives, np.ndarray] | None:
    """(for each query the items that gain something, how much each does) in a gallery of images, by a query's first own one.

    None where there are no attributes, or, which is warned of, more than MOST_GAINS pairs gain.
    """
    if embeddings.attributes is None:
        return None
    codes, categories = _codes(embeddings)
    asking = np.flatnonzero(np.diff(own.offsets))
    first = images[own.items[own.offsets[asking]]]
    keys, shares, total = [keys_of(own, len(images))], [np.ones(len(own.items))], 0
    for category in np.unique(categories[first]):
        mine, items = np.flatnonzero(categories[first] == category), np.flatnonzero(categories[images] == category)
        for part in np.array_split(mine, max(1, -(-len(mine) * len(items) // COMPARED))):
            share = _shares(codes[first[part]], codes[images[items]])
            row, column = np.nonzero(share >= LEAST)
            total += len(row)
            if total > MOST_GAINS:
                log.warning(
                    "nDCG is not graded by the attributes: more than %d pairs share half of theirs, which tells too little apart",
                    MOST_GAINS,
                )
                return None
            keys.append(asking[part[row]] * np.int64(len(images)) + items[column])
            shares.append(share[row, column])
    every, share = np.concatenate(keys), np.concatenate(shares)
    order = np.lexsort((-share, every))  # an own item gains 1, whatever its attributes
    is_first = np.diff(every[order], prepend=-1) != 0
    kept = order[is_first]
    return from_keys(every[kept], len(own.offsets) - 1, len(images)), share[kept]


def turned(found: tuple[Positives, np.ndarray], width: int) -> tuple[Positives, np.ndarray]:
    """The same of the other direction, in which the gallery of `width` items asks."""
    pairs, share = found
    return transposed(pairs, width), share[np.argsort(pairs.items, kind="stable")]


def numbers(
    ranks: ranking.Ranks, share: np.ndarray, asked: np.ndarray, products: np.ndarray, ks: Sequence[int]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(graded_ndcg@k, their intervals over products) of the queries that are `asked`, a mask."""
    values = {f"graded_ndcg@{k}": metrics.ndcg(ranks, k, share)[asked] for k in ks}
    sums, counts, _ = intervals.product_sums(values, products[asked])
    return (
        {name: float(column.mean()) for name, column in values.items()},
        {name: intervals.share_interval(column, counts) for name, column in sums.items()},
    )


def _codes(e):
    """((N, A) numbers of the values of all attributes, -1 where one is blank; (N,) numbers of the categories)."""
    names = sorted({name for said in e.attributes for name in said})
    columns = [[same_caption_key(said.get(name, "")) for said in e.attributes] for name in names]
    codes = np.stack(
        [np.where(np.array(column) == "", -1, np.unique(column, return_inverse=True)[1]) for column in columns], axis=1
    )
    return codes, np.unique([same_caption_key(category) for category in e.category], return_inverse=True)[1]


def _shares(queries, items):
    """(Q, A) and (G, A) -> (Q, G) shares of the attributes of either that are equal."""
    equal = np.zeros((len(queries), len(items)), np.float32)
    either = np.zeros_like(equal)
    for a, b in zip(queries.T, items.T):
        equal += (a[:, None] == b) & (b >= 0)
        either += (a[:, None] >= 0) | (b >= 0)
    return equal / np.maximum(either, 1)
