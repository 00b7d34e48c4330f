"""Numbers made of ranks: Recall@k, MRR, mAP, mAP@R, R-precision, nDCG@k, and what a random order has of them.

Recall@k is the hit rate: the share of queries with a positive among the first k. With R positives, R-precision is their
share of the first R places, and mAP@R the average precision that forgets what comes later (Musgrave et al. 2020).
nDCG@k has each item's grade as its gain (Jarvelin and Kekalainen 2002); without grades a positive has 1. Equal scores count
against the model, but in `expected_recall@k`: its mean over all orders of equal scores, which those measure who sort
them as they come.
"""

from collections.abc import Sequence

import numpy as np

from clip_finetuning.retrieval.positives import Positives
from clip_finetuning.retrieval.ranking import NEVER, Ranks


def summarize(ranks: Ranks, ks: Sequence[int]) -> dict[str, float]:
    """{recall@k ..., median_rank, mean_rank, mrr, map} over the queries that have a positive."""
    return means(query_values(ranks, ks))


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The reported numbers of {name: (Q,)}: means, and the median of the ranks."""
    numbers = {name: float(column.mean()) if len(column) else 0.0 for name, column in values.items()}
    ranks = values["mean_rank"]
    return numbers | {"median_rank": float(np.median(ranks)) if len(ranks) else float("nan")}


def query_values(ranks: Ranks, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """The numbers of each query whose means are reported: {name: (queries with a positive,)}."""
    found = ranks.best != NEVER
    best = ranks.best[found]
    values = {f"recall@{k}": (best <= k).astype(np.float64) for k in ks}
    values |= {f"expected_recall@{k}": expected_hits(ranks, k)[found] for k in ks}
    values |= {f"ndcg@{k}": ndcg(ranks, k)[found] for k in ks}
    first, average = _within_r(ranks)
    return values | {
        "mean_rank": best.astype(np.float64),
        "mrr": 1.0 / best,
        "map": ranks.average_precision[found],
        "r_precision": first[found],
        "map_at_r": average[found],
    }


def expected_hits(ranks: Ranks, k: int) -> np.ndarray:
    """(Q,) the chance that a positive is among the first k where equal scores come in random order; 0 without positives.

    Among the n items that share the best positive's score, m of them positives, the first d lie within k: hypergeometric.
    """
    positives = ranks.tied_positives
    tied = ranks.tied_negatives + positives
    drawn = np.clip(k - ranks.above, 0, tied)
    missed = np.where(drawn > 0, 0.0, 1.0)  # no negative shares the score: any draw is a hit
    open_ = np.flatnonzero((drawn > 0) & (drawn <= ranks.tied_negatives))
    missed[open_] = 1.0
    for number in range(drawn[open_].max(initial=0)):
        rows = open_[drawn[open_] > number]
        missed[rows] *= (ranks.tied_negatives[rows] - number) / (tied[rows] - number)
    return np.where(positives > 0, 1.0 - missed, 0.0)


def ndcg(ranks: Ranks, k: int, grades: np.ndarray | None = None) -> np.ndarray:
    """(Q,) normalised discounted cumulative gain of the first k, 0 without positives.

    `grades`: the gain of each of the positives, aligned with their `items` and known to `rank_positives`, >= 0. A positive
    of grade 0 is none.
    """
    count = len(ranks.best)
    query = np.repeat(np.arange(count), np.diff(ranks.offsets))
    gains = np.ones(len(query)) if grades is None else np.asarray(grades, np.float64)
    place = np.arange(1, len(query) + 1) - ranks.offsets[query]
    ideal = gains[np.lexsort((-gains, query))]
    reached, possible = (
        np.bincount(query, np.where(rank <= k, gain / np.log2(1 + rank), 0.0), count)
        for rank, gain in ((ranks.ranks, gains[ranks.order]), (place, ideal))
    )
    return np.divide(reached, possible, out=np.zeros(count), where=possible > 0)


def _within_r(ranks):
    """(R-precision, average precision at R) of each query, (Q,) each."""
    counts = np.diff(ranks.offsets)
    query = np.repeat(np.arange(len(counts)), counts)
    inside = ranks.ranks <= counts[query]
    precision = (np.arange(1, len(query) + 1) - ranks.offsets[query]) / ranks.ranks
    sums = (np.bincount(query, column, len(counts)) for column in (inside, np.where(inside, precision, 0.0)))
    first, average = (column / np.maximum(counts, 1) for column in sums)
    return first, average


# -------------------------------------------------------------------------------------------------------- chance


def chance(positives: Positives, gallery_size: int, ks: Sequence[int]) -> dict[str, float]:
    """What a random order has in expectation, over the queries that have a positive: every number with a closed form."""
    counts = np.diff(positives.offsets)
    return chance_of_counts(counts[counts > 0], np.full((counts > 0).sum(), gallery_size), ks)


def chance_of_counts(positives: np.ndarray, sizes: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """As `chance`: for each query how many positives (Q,), >= 1, its gallery (Q,) holds."""
    found = {f"{name}@{k}": _chance_recall(positives, sizes, k) for name in ("recall", "expected_recall") for k in ks}
    pairs, times = np.unique(np.stack([positives, sizes]), axis=1, return_counts=True)
    share = pairs[0] / pairs[1]
    found["r_precision"] = _mean(share, times)
    # At place i: positive with the chance R / G, and then (i - 1) (R - 1) / (G - 1) of those before are.
    at_r = [
        share[n] * np.mean((1 + places * (r - 1) / max(g - 1, 1)) / (1 + places))
        for n, (r, g) in enumerate(pairs.T)
        for places in [np.arange(r)]
    ]
    found["map_at_r"] = _mean(np.array(at_r), times)
    for k in ks:
        discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(2 + np.arange(max(k, 1))))])
        within = discounts[np.minimum(k, pairs[1])] / discounts[np.minimum(k, pairs[0])]
        found[f"ndcg@{k}"] = _mean(share * within, times)
    return found


def _mean(values, times):
    return float((values * times).sum() / times.sum()) if len(values) else 0.0


def _chance_recall(positives, sizes, k):
    """Mean over queries of 1 - C(G - p, k) / C(G, k), with p positives."""
    missed = np.ones(len(positives))
    for drawn in range(min(k, sizes.max(initial=0))):
        missed *= np.maximum(sizes - positives - drawn, 0) / np.maximum(sizes - drawn, 1)
    return float(1 - missed.mean()) if len(positives) else 0.0
