"""Exact retrieval ranks by blocks of queries, and the numbers made of them: Recall@k, MRR, mAP.

Recall@k is the hit rate: the share of queries with a positive among the first k. Equal scores count against the model:
a positive that ties with negatives comes after them, so a model that maps everything to one point scores 0.
No function holds a queries x gallery matrix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

BLOCK_BYTES = 40 * 2**20  # one block of scores; two of this size are alive at a time
BROKEN = "hold NaN or infinity: the model is broken, look at its training log"
NEVER = np.iinfo(np.int64).max  # the rank of a query that has no positive in the gallery

Rows = np.ndarray | torch.Tensor  # (n, D) embeddings of any float type


class Positives(NamedTuple):
    """For each query its positives in the gallery: `items[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray  # (Q + 1,) int64
    items: np.ndarray  # int64 gallery numbers

    def of(self, query: int) -> np.ndarray:
        """The gallery numbers of one query's positives."""
        return self.items[self.offsets[query] : self.offsets[query + 1]]


class Ranks(NamedTuple):
    """What became of each query."""

    best: np.ndarray  # (Q,) int64: rank of the best positive, from 1; NEVER without positives
    average_precision: np.ndarray  # (Q,) float64: mean precision at the ranks of its positives


# ----------------------------------------------------------------------------------------------- positives


def one_to_one(count: int) -> Positives:
    """Query i's positive is gallery item i."""
    return Positives(np.arange(count + 1), np.arange(count))


def by_group(query_groups: np.ndarray, gallery_groups: np.ndarray) -> Positives:
    """Every gallery item of a query's group is its positive; groups (Q,) and (G,) are integers."""
    order = np.argsort(gallery_groups, kind="stable")
    ordered = gallery_groups[order]
    first = np.searchsorted(ordered, query_groups, side="left")
    counts = np.searchsorted(ordered, query_groups, side="right") - first
    return Positives(_offsets(counts), order[_ranges(first, counts)])


def transposed(positives: Positives, gallery_size: int) -> Positives:
    """The positives of the other direction: gallery items as queries."""
    queries = np.repeat(np.arange(len(positives.offsets) - 1), np.diff(positives.offsets))
    order = np.argsort(positives.items, kind="stable")
    counts = np.bincount(positives.items, minlength=gallery_size)
    return Positives(_offsets(counts), queries[order])


def from_pairs(queries: np.ndarray, items: np.ndarray, query_count: int) -> Positives:
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


def rank_positives(queries: Rows, gallery: Rows, positives: Positives, block_rows: int | None = None) -> Ranks:
    """Rank the whole gallery for every query -> Ranks.

    queries (Q, D) and gallery (G, D): arrays or tensors of any float type, computed in float32; the score is their dot
    product. A positive's own score comes out of the same block product as its rivals', since a separate dot product
    can differ in the last bit. Raises ValueError for embeddings that are not finite.
    """
    queries, gallery = _matrix(queries, "query"), _matrix(gallery, "gallery")
    best = np.full(len(queries), NEVER)
    precision = np.zeros(len(queries))
    rows = block_rows or _block_rows(len(gallery))
    scratch = torch.empty(0)
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ gallery.T  # (rows, G)
        scratch = scratch if scratch.shape == block.shape else torch.empty_like(block)
        window = positives.offsets[start : start + len(block) + 1]
        ahead, slots = _negatives_ahead(block, window - window[0], positives.items[window[0] : window[-1]], scratch)
        best[start : start + len(block)], precision[start : start + len(block)] = _summary(ahead, slots)
    return Ranks(best, precision)


def _block_rows(gallery_size):
    return max(1, min(1024, BLOCK_BYTES // (4 * max(1, gallery_size))))


def _matrix(values, what):
    matrix = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if not torch.isfinite(matrix).all():
        raise ValueError(f"the {what} embeddings {BROKEN}")
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


def pair_values(
    images: Rows, texts: Rows, text_of: np.ndarray, ks: Sequence[int], block_rows: int | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of each sample where its own image and its own text alone are a hit -> {direction: {name: (N,)}}.

    images (N, D), distinct texts (U, D), text_of (N,): the text of each image. Samples that share a text cannot be told
    apart by it. Their m ranks, told from the others' as in `rank_positives`, come in any order alike: each of the samples
    gets the share of the m ranks that are hits, and the mean of the m ranks. That is what open_clip's get_clip_metrics,
    which sorts equal texts as they happen to come, gives in expectation.
    """
    images, texts = _matrix(images, "image"), _matrix(texts, "text")
    return {
        "text_to_image": _values_of_texts(images, texts, text_of, ks, block_rows),
        "image_to_text": _values_of_images(images, texts, text_of, ks, block_rows),
    }


def _values_of_texts(images, texts, text_of, ks, block_rows):
    """Each distinct text asks once for the ranks of all its images."""
    positives = by_group(np.arange(len(texts)), text_of)
    counts = np.diff(positives.offsets)
    order = np.argsort(counts, kind="stable")  # blocks of texts with about as many images: no work for empty slots
    values = {}
    rows = block_rows or _block_rows(len(images))
    scratch = torch.empty(0)
    for chosen in np.split(order, range(rows, len(order), rows)):
        block = texts[chosen] @ images.T  # (rows, N)
        scratch = scratch if scratch.shape == block.shape else torch.empty_like(block)
        items = positives.items[_ranges(positives.offsets[chosen], counts[chosen])]
        ahead, slots = _negatives_ahead(block, _offsets(counts[chosen]), items, scratch)
        ranks = ahead + np.arange(1, slots.shape[1] + 1)
        numbers = {f"recall@{k}": ranks <= k for k in ks} | {"mean_rank": ranks, "mrr": 1 / ranks}
        for name, number in numbers.items():
            mean = np.where(slots, number, 0.0).sum(1) / np.maximum(counts[chosen], 1)
            values.setdefault(name, np.zeros(len(texts)))[chosen] = mean
    return _pair_numbers({name: column[text_of] for name, column in values.items()})


def _values_of_images(images, texts, text_of, ks, block_rows):
    """Each image asks for its own text, which stands m times in the gallery: at `ahead` + 1 ... `ahead` + m."""
    copies = np.bincount(text_of, minlength=len(texts))
    weights, own = torch.from_numpy(copies).float(), torch.from_numpy(text_of)
    ahead = np.empty(len(images), np.int64)
    rows = block_rows or _block_rows(len(texts))
    scratch = torch.empty(0)
    for start in range(0, len(images), rows):
        block = images[start : start + rows] @ texts.T  # (rows, U)
        scratch = scratch if scratch.shape == block.shape else torch.empty_like(block)
        columns = own[start : start + len(block), None]
        scores = block.gather(1, columns)
        block.scatter_(1, columns, -torch.inf)
        # Whole numbers, of which float32 adds up 16 million without an error.
        ahead[start : start + len(block)] = (torch.ge(block, scores, out=scratch) @ weights).numpy()
    count = copies[text_of]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(images) + 1))])
    shared = (harmonic[ahead + count] - harmonic[ahead]) / count
    values = {f"recall@{k}": np.clip(k - ahead, 0, count) / count for k in ks}
    values |= {"mean_rank": ahead + (count + 1) / 2, "mrr": np.where(count == 1, 1 / (ahead + 1), shared)}
    return _pair_numbers(values)


def _pair_numbers(values):
    return values | {"map": values["mrr"]}  # one positive each


def top_items(queries: Rows, gallery: Rows, count: int, block_rows: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best gallery items of each query and their scores -> (Q, count) each; equal scores by number."""
    count = min(count, len(gallery))
    items, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), block_rows):
        for query, found in enumerate(all_scores(queries[start : start + block_rows], gallery), start):
            items[query] = first_places(found, count)
            scores[query] = found[items[query]]
    return items, scores


def all_scores(queries: Rows, gallery: Rows) -> np.ndarray:
    """The score of every gallery item for each query -> (Q, G) float32. Raises ValueError where one is not finite.

    Unlike the gallery, the scores tell of a broken item without a second pass over memory.
    """
    queries, gallery = (torch.as_tensor(rows).detach().to("cpu", torch.float32) for rows in (queries, gallery))
    scores = (queries @ gallery.T).numpy()
    if not np.isfinite(scores).all():
        raise ValueError(f"the scores of queries and gallery {BROKEN}")
    return scores


def first_places(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` best of scores (n,), best first; equal ones in their order."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    near = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return near[np.argsort(-scores[near], kind="stable")[:count]]


def nearest_items(queries: Rows, gallery: Rows, block_rows: int = 1024) -> np.ndarray:
    """The number of the best gallery item of each query -> (Q,)."""
    queries, gallery = _matrix(queries, "query"), _matrix(gallery, "gallery")
    blocks = [(block @ gallery.T).argmax(dim=1) for block in queries.split(block_rows)]
    return torch.cat(blocks).numpy()


def rank_candidates(queries: Rows, candidates: Rows) -> Ranks:
    """Rank candidate 0, the positive, among each query's own candidates: (Q, D) and (Q, C, D) -> Ranks."""
    scores = torch.einsum("qcd,qd->qc", _matrix(candidates, "candidate"), _matrix(queries, "query"))
    best = 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)
    return Ranks(best.numpy(), (1 / best.double()).numpy())


# ------------------------------------------------------------------------------------------------- numbers


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
