"""The numbers of `pair`, where a sample's own image and own text alone are a hit, though samples share their texts."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from clip_finetuning.retrieval.positives import Positives, by_group, joined, transposed
from clip_finetuning.retrieval.ranking import above_all, ask, at_least, counted
from clip_finetuning.retrieval.tiles import Rows, Shape


def pair_values(
    images: Rows,
    texts: Rows,
    text_of: np.ndarray,
    ks: Sequence[int],
    *,
    device: torch.device | None = None,
    shape: Shape | None = None,
    shared: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of each sample where its own image and its own text alone are a hit -> {direction: {name: (N,)}}.

    images (N, D), distinct texts (U, D), text_of (N,): the text of each image. Samples that share a text cannot be told
    apart by it. Their m ranks, told from the others' as in `rank_positives`, come in any order alike: each of the samples
    gets the share of the m ranks that are hits, and the mean of the m ranks. That is what open_clip's get_clip_metrics,
    which sorts equal texts as they happen to come, gives in expectation. `device` and `shared` are those of
    `rank_positives`.
    """
    found = pair_truths(images, texts, text_of, ks, device=device, shape=shape, shared=shared)
    return {direction: by_truth["strict"] for direction, by_truth in found.items()}


def pair_truths(
    images: Rows,
    texts: Rows,
    text_of: np.ndarray,
    ks: Sequence[int],
    alike: Positives | None = None,
    *,
    device: torch.device | None = None,
    shape: Shape | None = None,
    shared: bool = False,
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{direction: {truth: {name: (N,)}}}, `strict` as in `pair_values`, the others (see `truth`) where something may be alike.

    `alike`: for each text the images that are none of its own but could as well be.
    """
    options = {"device": device, "shape": shape, "shared": shared}
    back = None if alike is None else transposed(alike, len(images))
    return {
        "text_to_image": _values_of_texts(texts, images, text_of, ks, alike, options),
        "image_to_text": _values_of_images(images, texts, text_of, ks, back, options),
    }


def _values_of_texts(texts, images, text_of, ks, alike, options):
    """Each distinct text asks once for the ranks of all its images."""
    positives = by_group(np.arange(len(texts)), text_of)
    parts = ask(partial(_means_of_texts, ks=ks), texts, images, positives, alike, **options)
    found = {
        truth: {name: np.concatenate([part[truth][name] for part in parts])[text_of] for name in parts[0][truth]}
        for truth in parts[0]
    }
    return found | {"strict": _pair_numbers(found["strict"])}


def _means_of_texts(block, positives, alike, *_, ks):
    """{truth: {name: (texts,)}}: means over the images of each text of a block."""
    query, own = positives.queries(), block.scores(positives)
    own = own[np.lexsort((-own, query))]
    number = np.arange(len(own)) - positives.offsets[query]
    wanted, counts = [(query, own), (query, above_all(own))], np.maximum(np.diff(positives.offsets), 1)

    def means(values):
        return {name: np.bincount(query, column, len(counts)) / counts for name, column in values.items()}

    if alike is None:
        (ahead, above), _ = counted(block, wanted, positives)
        others = {}
    else:
        scores, alike_query, nearest, best = _nearest(block, alike)
        (ahead, above, beaten), _ = counted(block, [*wanted, (nearest, best)], joined(positives, alike))
        without = ahead + 1 + number
        ahead = ahead + at_least(alike_query, scores, query, own)
        above = above + at_least(alike_query, scores, query, above_all(own))
        rank, reached = _spread(beaten + 1 + at_least(query, own, nearest, best), best, nearest, len(counts))
        tolerant = np.where(own > reached[query], ahead + 1 + number, rank[query] - (own == reached[query]))
        others = {"tolerant": means(_of_ranks(tolerant, ks)), "without": means(_of_ranks(without, ks))}
    ranks = ahead + 1 + number
    is_new = np.diff(query, prepend=-1).astype(bool) | (np.diff(own, prepend=np.float32(np.nan)) != 0)
    tied = np.diff(np.flatnonzero(np.append(is_new, True)))  # how many of a text's images share each of its scores
    first = number[is_new]
    above, group = above + np.repeat(first, tied), ahead - above + np.repeat(tied, tied)
    values = {f"recall@{k}": ranks <= k for k in ks}
    values |= {f"expected_recall@{k}": _share(k, above, group) for k in ks}
    values |= {f"ndcg@{k}": np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0) for k in ks}
    values |= {"mean_rank": ranks, "mrr": 1 / ranks, "r_precision": ranks == 1}
    return {"strict": means(values), **others}


def _values_of_images(images, texts, text_of, ks, alike, options):
    """Each image asks for its own text, which stands m times in the gallery: at `ahead` + 1 ... `ahead` + m."""
    copies = np.bincount(text_of, minlength=len(texts))
    own_text = Positives(np.arange(len(text_of) + 1), text_of)
    parts = ask(partial(_counts_of_images, copies=copies), images, texts, own_text, alike, **options)
    ahead, above, *spared = (np.concatenate(column) for column in zip(*parts))
    count, ranks = copies[text_of], np.arange(1, len(text_of) + 1)
    others = {}
    if alike is not None:
        alone, nearest = spared
        own = {f"recall@{k}": _share(k, ahead, count) for k in ks}
        own |= {"mrr": _mean(1 / ranks, ahead, count), "mean_rank": ahead + (count + 1) / 2}
        theirs = _of_ranks(np.where(nearest, nearest, 1), ks)
        others["tolerant"] = {name: np.where(nearest, theirs[name], own[name]) for name in own}
        others["without"] = {f"recall@{k}": _share(k, alone, count) for k in ks}
        others["without"] |= {"mrr": _mean(1 / ranks, alone, count), "mean_rank": alone + (count + 1) / 2}
    values = {f"recall@{k}": _share(k, ahead, count) for k in ks}
    values |= {f"expected_recall@{k}": _share(k, above, ahead - above + count) for k in ks}
    values |= {f"ndcg@{k}": _mean(np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0), ahead, count) for k in ks}
    values |= {"mean_rank": ahead + (count + 1) / 2, "mrr": _mean(1 / ranks, ahead, count)}
    return {"strict": _pair_numbers(values | {"r_precision": _share(1, ahead, count)}), **others}


def _counts_of_images(block, positives, alike, *_, copies):
    """Of a block: the texts ahead of each image's own and above it, copies counted; with alike ones also the same without
    these, and the rank of the best of them, 0 where the own text is better or there is none."""
    scores, query = block.scores(positives), positives.queries()
    wanted = [(query, scores), (query, above_all(scores))]
    if alike is None:
        return counted(block, wanted, positives, copies)[0]
    theirs, _, nearest, best = _nearest(block, alike)
    (alone, above, beaten), _ = counted(block, [*wanted, (nearest, best)], joined(positives, alike), copies)
    times = copies[alike.items]
    theirs, alike_query = np.repeat(theirs, times), np.repeat(alike.queries(), times)
    ahead = alone + at_least(alike_query, theirs, query, scores)
    above = above + at_least(alike_query, theirs, query, above_all(scores))
    rank, reached = _spread(beaten + 1, best, nearest, len(scores))
    rank = rank + np.where(scores == reached, copies[positives.items] - 1, 0)  # its other copies tie with it
    return ahead, above, alone, np.where(scores > reached, 0, rank)


def _nearest(block, alike):
    """(scores of all alike items, their queries, the queries that have some, the best score of each of these)."""
    scores, queries = block.scores(alike), np.flatnonzero(np.diff(alike.offsets))
    best = np.maximum.reduceat(scores, alike.offsets[queries]) if len(queries) else scores[:0]
    return scores, alike.queries(), queries, best


def _spread(ranks, scores, queries, count):
    """(rank, score) of `count` queries, of which only some have one: no score reaches as low as the others'."""
    every, reached = np.ones(count, np.int64), np.full(count, -np.inf, np.float32)
    every[queries], reached[queries] = ranks, scores
    return every, reached


def _of_ranks(ranks, ks):
    return {f"recall@{k}": (ranks <= k).astype(float) for k in ks} | {"mrr": 1 / ranks, "mean_rank": ranks}


def _share(k, ahead, group):
    """How many of a group of ranks that begins behind `ahead` items lie within the first k, as a share."""
    return np.clip(k - ahead, 0, group) / group


def _mean(of_rank, ahead, count):
    """The mean of a number of each rank, from 1, over the ranks ahead + 1 ... ahead + count."""
    running = np.concatenate([[0.0], np.cumsum(of_rank)])
    return np.where(count == 1, of_rank[ahead], (running[ahead + count] - running[ahead]) / count)


def _pair_numbers(values):
    """With one positive each, the reciprocal rank is the average precision, and what is first is all of R."""
    return values | {"map": values["mrr"], "map_at_r": values["r_precision"]}
