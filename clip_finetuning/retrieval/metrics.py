"""Numbers made of ranks: Recall@k, MRR, mAP and their chance values.

Recall@k is the hit rate: the share of queries with a positive among the first k.
"""

from collections.abc import Sequence

import numpy as np

from clip_finetuning.retrieval.pairs import pair_values
from clip_finetuning.retrieval.positives import Positives, by_group, from_pairs, one_to_one, transposed
from clip_finetuning.retrieval.ranking import (
    NEVER,
    Ranks,
    all_scores,
    first_places,
    nearest_items,
    rank_candidates,
    rank_positives,
    top_items,
)  # fmt: skip

__all__ = [  # what numbers are made of, under one name
    "NEVER", "Positives", "Ranks", "all_scores", "by_group", "first_places", "from_pairs", "nearest_items", "one_to_one", "pair_values", "rank_candidates",
    "rank_positives", "top_items", "transposed",
]  # fmt: skip


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
    return values | {
        "mean_rank": best.astype(np.float64),
        "mrr": 1.0 / best,
        "map": ranks.average_precision[found],
    }


def chance_recall(positives: Positives, gallery_size: int, k: int) -> float:
    """Recall@k of a random order: mean over queries of 1 - C(G - p, k) / C(G, k), with p positives."""
    counts = np.diff(positives.offsets)
    counts = counts[counts > 0]
    missed = np.ones(len(counts))
    for drawn in range(min(k, gallery_size)):
        missed *= np.maximum(gallery_size - counts - drawn, 0) / (gallery_size - drawn)
    return float(1 - missed.mean()) if len(counts) else 0.0
