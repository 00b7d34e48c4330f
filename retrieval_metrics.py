"""Exact retrieval ranks by blocks of queries, and the numbers made of them: Recall@k, MRR, mAP, intervals.

Recall@k is the hit rate: the share of queries with a positive among the first k. Equal scores count against the model:
a positive that ties with negatives comes after them, so a model that maps everything to one point scores 0.
No function holds a queries x gallery matrix.
"""

from typing import NamedTuple

import numpy as np
import torch

BLOCK_BYTES = 40 * 2**20  # one block of scores; two of this size are alive at a time
RESAMPLES = 1000
NEVER = np.iinfo(np.int64).max  # the rank of a query that has no positive in the gallery


class Positives(NamedTuple):
    """For each query its positives in the gallery: `items[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray  # (Q + 1,) int64
    items: np.ndarray  # int64 gallery numbers


class Ranks(NamedTuple):
    """What became of each query."""

    best: np.ndarray  # (Q,) int64: rank of the best positive, from 1; NEVER without positives
    average_precision: np.ndarray  # (Q,) float64: mean precision at the ranks of its positives


# ----------------------------------------------------------------------------------------------- positives


def one_to_one(count):
    """Query i's positive is gallery item i."""
    return Positives(np.arange(count + 1), np.arange(count))


def by_group(query_groups, gallery_groups):
    """Every gallery item of a query's group is its positive; groups (Q,) and (G,) are integers."""
    order = np.argsort(gallery_groups, kind="stable")
    ordered = gallery_groups[order]
    first = np.searchsorted(ordered, query_groups, side="left")
    counts = np.searchsorted(ordered, query_groups, side="right") - first
    return Positives(_offsets(counts), order[_ranges(first, counts)])


def transposed(positives, gallery_size):
    """The positives of the other direction: gallery items as queries."""
    queries = np.repeat(np.arange(len(positives.offsets) - 1), np.diff(positives.offsets))
    order = np.argsort(positives.items, kind="stable")
    counts = np.bincount(positives.items, minlength=gallery_size)
    return Positives(_offsets(counts), queries[order])


def from_pairs(queries, items, query_count):
    """The positives that a list of (query, gallery item) pairs says; repeated pairs count once."""
    pairs = np.unique(np.stack([queries, items]), axis=1) if len(queries) else np.empty((2, 0), np.int64)
    return Positives(_offsets(np.bincount(pairs[0], minlength=query_count)), pairs[1])


def _offsets(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ranges(first, counts):
    """first[0], first[0] + 1, ... (counts[0] numbers), first[1], ..."""
    starts = np.repeat(first - _offsets(counts)[:-1], counts)
    return starts + np.arange(counts.sum())


# --------------------------------------------------------------------------------------------------- ranks


def rank_positives(queries, gallery, positives, block_rows=None):
    """Rank the whole gallery for every query -> Ranks.

    queries (Q, D) and gallery (G, D): arrays or tensors of any float type, computed in float32; the score is their dot
    product. A positive's own score comes out of the same block product as its rivals', since a separate dot product
    can differ in the last bit. Raises ValueError for embeddings that are not finite.
    """
    queries, gallery = _matrix(queries, "query"), _matrix(gallery, "gallery")
    best = np.full(len(queries), NEVER)
    precision = np.zeros(len(queries))
    rows = block_rows or max(1, min(1024, BLOCK_BYTES // (4 * max(1, len(gallery)))))
    scratch = torch.empty(0)
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ gallery.T  # (rows, G)
        scratch = scratch if scratch.shape == block.shape else torch.empty_like(block)
        window = positives.offsets[start : start + len(block) + 1]
        ahead, slots = _negatives_ahead(block, window - window[0], positives.items[window[0] : window[-1]], scratch)
        best[start : start + len(block)], precision[start : start + len(block)] = _summary(ahead, slots)
    return Ranks(best, precision)


def _matrix(values, what):
    matrix = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if not torch.isfinite(matrix).all():
        raise ValueError(f"the {what} embeddings hold NaN or infinity: the model is broken, look at its training log")
    return matrix


def _negatives_ahead(block, offsets, items, scratch):
    """How many negatives score at least as much as each positive -> (rows, P) ascending, and which slots are real."""
    counts = np.diff(offsets)
    slots = torch.from_numpy(np.arange(counts.max(initial=0)) < counts[:, None])  # (rows, P)
    row, column = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), torch.from_numpy(items)
    scores = torch.full(slots.shape, -torch.inf)
    scores[slots] = block[row, column]
    block[row, column] = -torch.inf  # what is left are negatives
    scores = scores.sort(dim=1, descending=True).values
    if slots.shape[1] <= 16:
        ahead = [torch.ge(block, scores[:, p, None], out=scratch).sum(1) for p in range(slots.shape[1])]
        ahead = torch.stack(ahead, 1) if ahead else torch.empty(len(counts), 0)
    else:  # a few products with very many views: sort once instead of counting again and again
        ahead = block.shape[1] - torch.searchsorted(block.sort(dim=1).values, scores.contiguous())
    return ahead.long().numpy(), slots.numpy()


def _summary(ahead, slots):
    """(rank of the best positive, average precision) of each row."""
    if not slots.shape[1]:
        return np.full(len(slots), NEVER), np.zeros(len(slots))
    number = np.arange(1, slots.shape[1] + 1)  # the p-th positive stands behind p - 1 others
    precision = np.where(slots, number / (ahead + number), 0.0)
    counts = slots.sum(1)
    return np.where(counts > 0, ahead[:, 0] + 1, NEVER), precision.sum(1) / np.maximum(counts, 1)


def top_items(queries, gallery, count, block_rows=256):
    """The `count` best gallery items of each query and their scores -> (Q, count) each; equal scores by number."""
    queries, gallery = _matrix(queries, "query"), _matrix(gallery, "gallery")
    count = min(count, len(gallery))
    items, scores = [], []
    for start in range(0, len(queries), block_rows):
        ordered = (queries[start : start + block_rows] @ gallery.T).sort(dim=1, descending=True, stable=True)
        items.append(ordered.indices[:, :count])
        scores.append(ordered.values[:, :count])
    empty = [torch.empty(0, count)]
    return torch.cat(items or empty).numpy(), torch.cat(scores or empty).numpy()


def nearest_items(queries, gallery, block_rows=1024):
    """The number of the best gallery item of each query -> (Q,)."""
    queries, gallery = _matrix(queries, "query"), _matrix(gallery, "gallery")
    blocks = [(block @ gallery.T).argmax(dim=1) for block in queries.split(block_rows)]
    return torch.cat(blocks).numpy()


def rank_candidates(queries, candidates):
    """Rank candidate 0, the positive, among each query's own candidates: (Q, D) and (Q, C, D) -> Ranks."""
    scores = torch.einsum("qcd,qd->qc", _matrix(candidates, "candidate"), _matrix(queries, "query"))
    best = 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)
    return Ranks(best.numpy(), (1 / best.double()).numpy())


# ------------------------------------------------------------------------------------------------- numbers


def summarize(ranks, ks):
    """{recall@k ..., median_rank, mean_rank, mrr, map} over the queries that have a positive."""
    values = query_values(ranks, ks)
    numbers = {name: float(column.mean()) if len(column) else 0.0 for name, column in values.items()}
    found = ranks.best[ranks.best != NEVER]
    numbers["median_rank"] = float(np.median(found)) if len(found) else float("nan")
    return numbers


def query_values(ranks, ks):
    """The numbers of each query whose means are reported: {name: (queries with a positive,)}."""
    found = ranks.best != NEVER
    best = ranks.best[found]
    values = {f"recall@{k}": (best <= k).astype(np.float64) for k in ks}
    return values | {
        "mean_rank": best.astype(np.float64),
        "mrr": 1.0 / best,
        "map": ranks.average_precision[found],
    }


def chance_recall(positives, gallery_size, k):
    """Recall@k of a random order: mean over queries of 1 - C(G - p, k) / C(G, k), with p positives."""
    counts = np.diff(positives.offsets)
    counts = counts[counts > 0]
    missed = np.ones(len(counts))
    for drawn in range(min(k, gallery_size)):
        missed *= np.maximum(gallery_size - counts - drawn, 0) / (gallery_size - drawn)
    return float(1 - missed.mean()) if len(counts) else 0.0


# ----------------------------------------------------------------------------------------------- intervals


def product_sums(values, products):
    """Sums of per-query values and numbers of queries by product: {name: (P,)}, (P,) counts, (P,) the products."""
    unique, codes = np.unique(products, return_inverse=True)
    sums = {name: np.bincount(codes, column, len(unique)) for name, column in values.items()}
    return sums, np.bincount(codes, minlength=len(unique)), unique


def bootstrap(sums, counts, seed=0, resamples=RESAMPLES):
    """95 % intervals of ratios of sums, products drawn with replacement: {name: (P,)} -> {name: [low, high]}.

    Products, not queries, are drawn, because the views of one product stand or fall together. Percentile bootstrap
    (Efron 1979).
    """
    matrix = np.stack([*sums.values(), counts], axis=1).astype(np.float64)  # (P, metrics + 1)
    drawn = np.concatenate([weights @ matrix for weights in _weights(len(counts), seed, resamples)])
    with np.errstate(invalid="ignore"):
        ratios = drawn[:, :-1] / drawn[:, -1:]
    low, high = np.nanpercentile(ratios, [2.5, 97.5], axis=0)
    return {name: [float(a), float(b)] for name, a, b in zip(sums, low, high)}


def bootstrap_median(values, products, seed=0, resamples=RESAMPLES):
    """95 % interval of the median of per-query values, products drawn with replacement -> [low, high]."""
    unique, codes = np.unique(products, return_inverse=True)
    order = np.argsort(values, kind="stable")
    ordered, codes = values[order], codes[order]
    medians = []
    for weights in _weights(len(unique), seed, resamples, chunk=20):
        running = np.cumsum(weights[:, codes], axis=1)  # (chunk, Q)
        medians += [ordered[np.searchsorted(row, row[-1] / 2)] for row in running]
    return [float(value) for value in np.percentile(medians, [2.5, 97.5])]


def _weights(count, seed, resamples, chunk=100):
    """How often each of `count` products is drawn, in chunks of (chunk, count)."""
    random = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = random.integers(0, count, (size, count))
        drawn += np.arange(size)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float32)
