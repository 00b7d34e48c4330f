"""The numbers of `pair`, where a sample's own image and own text alone are a hit, though samples share their texts."""

from collections.abc import Sequence

import numpy as np
import torch

from clip_finetuning.retrieval.positives import Positives, by_group
from clip_finetuning.retrieval.ranking import above_all, asked, counted
from clip_finetuning.retrieval.tiles import Rows, Shape


def pair_values(
    images: Rows,
    texts: Rows,
    text_of: np.ndarray,
    ks: Sequence[int],
    *,
    device: torch.device | None = None,
    shape: Shape | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of each sample where its own image and its own text alone are a hit -> {direction: {name: (N,)}}.

    images (N, D), distinct texts (U, D), text_of (N,): the text of each image. Samples that share a text cannot be told
    apart by it. Their m ranks, told from the others' as in `rank_positives`, come in any order alike: each of the samples
    gets the share of the m ranks that are hits, and the mean of the m ranks. That is what open_clip's get_clip_metrics,
    which sorts equal texts as they happen to come, gives in expectation.
    """
    options = {"device": device, "shape": shape}
    return {
        "text_to_image": _values_of_texts(texts, images, text_of, ks, options),
        "image_to_text": _values_of_images(images, texts, text_of, ks, options),
    }


def _values_of_texts(texts, images, text_of, ks, options):
    """Each distinct text asks once for the ranks of all its images."""
    positives = by_group(np.arange(len(texts)), text_of)
    parts = [_means_of_texts(block, mine, ks) for block, mine, *_ in asked(texts, images, positives, **options)]
    return _pair_numbers({name: np.concatenate([part[name] for part in parts])[text_of] for name in parts[0]})


def _means_of_texts(block, positives, ks):
    """{name: (texts,)}: means over the images of each text of a block."""
    query, own = positives.queries(), block.scores(positives)
    own = own[np.lexsort((-own, query))]
    (ahead, above), _ = counted(block, [(query, own), (query, above_all(own))], positives)
    number = np.arange(len(own)) - positives.offsets[query]
    ranks = ahead + 1 + number
    is_new = np.diff(query, prepend=-1).astype(bool) | (np.diff(own, prepend=np.float32(np.nan)) != 0)
    tied = np.diff(np.flatnonzero(np.append(is_new, True)))  # how many of a text's images share each of its scores
    first = number[is_new]
    above, group = above + np.repeat(first, tied), ahead - above + np.repeat(tied, tied)
    values = {f"recall@{k}": ranks <= k for k in ks}
    values |= {f"expected_recall@{k}": _share(k, above, group) for k in ks}
    values |= {f"ndcg@{k}": np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0) for k in ks}
    values |= {"mean_rank": ranks, "mrr": 1 / ranks, "r_precision": ranks == 1}
    counts = np.maximum(np.diff(positives.offsets), 1)
    return {name: np.bincount(query, column, len(counts)) / counts for name, column in values.items()}


def _values_of_images(images, texts, text_of, ks, options):
    """Each image asks for its own text, which stands m times in the gallery: at `ahead` + 1 ... `ahead` + m."""
    copies = np.bincount(text_of, minlength=len(texts))
    own_text = Positives(np.arange(len(text_of) + 1), text_of)
    parts = []
    for block, mine, *_ in asked(images, texts, own_text, **options):
        scores, query = block.scores(mine), mine.queries()
        parts.append(counted(block, [(query, scores), (query, above_all(scores))], mine, copies)[0])
    ahead, above = (np.concatenate(column) for column in zip(*parts))
    count, ranks = copies[text_of], np.arange(1, len(text_of) + 1)
    values = {f"recall@{k}": _share(k, ahead, count) for k in ks}
    values |= {f"expected_recall@{k}": _share(k, above, ahead - above + count) for k in ks}
    values |= {f"ndcg@{k}": _mean(np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0), ahead, count) for k in ks}
    values |= {"mean_rank": ahead + (count + 1) / 2, "mrr": _mean(1 / ranks, ahead, count)}
    return _pair_numbers(values | {"r_precision": _share(1, ahead, count)})


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
