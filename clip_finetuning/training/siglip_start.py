"""Where the sigmoid loss starts on weights that were trained with the softmax loss.

SigLIP's own start, scale 10 and bias -10 (Zhai et al. 2023, section 3.2), is for random weights: the similarities of
trained ones ask for another scale and bias, and a fine-tuning rate of 1e-5 would take the whole training to get there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from clip_finetuning.model import clip_model as clip
from clip_finetuning.runtime import distributed
from clip_finetuning.training import first_batches, losses

# From SigLIP's start to CLIP's bound: pairs that a scale separates perfectly want an infinite one.
SCALES = (10.0, 100.0)
BINS = 20_000  # similarities are counted in steps of 1e-4
ROWS_AT_ONCE = 1024


def set_scale_and_bias(
    clip_model: clip.ClipModel, loader: Any, precision: str, micro_batch_size: int | None = None
) -> tuple[float, float]:
    """Set the model's logit scale and bias to what minimises `losses.siglip_loss` on the first batches -> (scale, bias).

    The same on every rank. The loader's next epoch and its counts of lost samples stay as they are.
    """
    batches = [
        (*pair, ids[:, 0]) for *pair, ids in first_batches.embedded(clip_model, loader, precision, micro_batch_size)
    ]
    scale, bias = distributed.agree(best_scale_and_bias(batches) if distributed.rank() == 0 else None)
    model: Any = clip_model.model
    print(
        f"LOSS=siglip on weights without a logit bias: scale {scale:.4g} and "
        f"bias {bias:.4g} minimise the loss of the first {len(batches)} batches (scales from {SCALES[0]:g} to {SCALES[1]:g})"
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(scale))
        model.logit_bias.fill_(bias)
    return scale, bias


def best_scale_and_bias(
    batches: Sequence[Sequence[torch.Tensor]], scales: tuple[float, float] = SCALES
) -> tuple[float, float]:
    """The scale within `scales` and the bias that minimise the mean `siglip_loss` of batches -> two floats.

    batches: of (image embeddings (N, D), text embeddings (N, D), products (N,) or (N, 1 + C)). The loss is convex in both: logistic
    regression on the similarities of all pairs. For each scale one bias is best, where the derivative passes zero; the
    derivative of the loss along these biases passes zero at the best scale.
    """
    counted = [_count_similarities(*batch) for batch in batches]
    pairs, positives = (torch.stack(counts).sum(0) for counts in zip(*counted))
    similarities = (torch.arange(BINS, dtype=torch.float64) + 0.5) * 2 / BINS - 1
    met = pairs > 0
    similarities, pairs, positives = similarities[met], pairs[met], positives[met]

    def slopes(scale, bias):
        excess = pairs * torch.sigmoid(scale * similarities + bias) - positives
        return excess.sum(), excess @ similarities

    def best_bias(scale):
        return _root(lambda bias: slopes(scale, bias)[0], -scale - 30, scale + 30)

    scale = _root(lambda scale: slopes(scale, best_bias(scale))[1], *scales)
    return scale, best_bias(scale)


def _count_similarities(images, texts, products):
    """(pairs that count, pairs of one product), each (BINS,): how many of every similarity."""
    pairs, positives = (torch.zeros(BINS, dtype=torch.int64) for _ in range(2))
    for first in range(0, len(images), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        bins = ((images[rows].float() @ texts.float().T + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        same, counts = losses.sigmoid_pairs(products, rows)
        pairs += torch.bincount(bins[counts], minlength=BINS)
        positives += torch.bincount(bins[same], minlength=BINS)
    return pairs, positives


def _root(increasing, low, high, halvings=40):
    """Where a function that increases passes zero between two numbers; the nearer end if it does not."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return (low + high) / 2
