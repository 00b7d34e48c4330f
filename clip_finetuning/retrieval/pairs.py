"""The numbers of `pair`, where a sample's own image and own text alone are a hit, though samples share their texts."""

from collections.abc import Sequence

import numpy as np
import torch

from clip_finetuning.retrieval.positives import Positives, by_group
from clip_finetuning.retrieval.ranking import Search
from clip_finetuning.retrieval.tiles import Rows, Tile


def pair_values(
    images: Rows,
    texts: Rows,
    text_of: np.ndarray,
    ks: Sequence[int],
    *,
    device: torch.device | None = None,
    tile: Tile | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of each sample where its own image and its own text alone are a hit -> {direction: {name: (N,)}}.

    images (N, D), distinct texts (U, D), text_of (N,): the text of each image. Samples that share a text cannot be told
    apart by it. Their m ranks, told from the others' as in `rank_positives`, come in any order alike: each of the samples
    gets the share of the m ranks that are hits, and the mean of the m ranks. That is what open_clip's get_clip_metrics,
    which sorts equal texts as they happen to come, gives in expectation.
    """
    return {
        "text_to_image": _values_of_texts(Search(texts, images, device, tile), text_of, ks),
        "image_to_text": _values_of_images(Search(images, texts, device, tile), text_of, ks),
    }


def _values_of_texts(search, text_of, ks):
    """Each distinct text asks once for the ranks of all its images."""
    positives = by_group(np.arange(len(search.queries)), text_of)
    query, own = positives.queries(), search.scores(positives)
    own = own[np.lexsort((-own, query))]
    (ahead,) = search.counts([(query, own)], positives)
    number = np.arange(len(own)) - positives.offsets[query]
    ranks = ahead + 1 + number
    numbers = {f"recall@{k}": ranks <= k for k in ks} | {"mean_rank": ranks, "mrr": 1 / ranks}
    counts = np.maximum(np.diff(positives.offsets), 1)
    means = {name: np.bincount(query, column, len(counts)) / counts for name, column in numbers.items()}
    return _pair_numbers({name: column[text_of] for name, column in means.items()})


def _values_of_images(search, text_of, ks):
    """Each image asks for its own text, which stands m times in the gallery: at `ahead` + 1 ... `ahead` + m."""
    copies = np.bincount(text_of, minlength=len(search.gallery))
    own_text = Positives(np.arange(len(text_of) + 1), text_of)
    scores, query = search.scores(own_text), np.arange(len(text_of))
    (ahead,) = search.counts([(query, scores)], own_text, copies)
    count = copies[text_of]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(text_of) + 1))])
    shared = (harmonic[ahead + count] - harmonic[ahead]) / count
    values = {f"recall@{k}": np.clip(k - ahead, 0, count) / count for k in ks}
    values |= {"mean_rank": ahead + (count + 1) / 2, "mrr": np.where(count == 1, 1 / (ahead + 1), shared)}
    return _pair_numbers(values)


def _pair_numbers(values):
    return values | {"map": values["mrr"]}  # one positive each
