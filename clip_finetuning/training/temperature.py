"""FIT_TEMPERATURE: the temperature that a training begins with, set to where the loss of its first batches is lowest.

Trained weights bring the temperature of the data they were trained on. On a domain they know less of it is far too sure of
itself: the loss stands above that of guessing, and the first steps, whatever their rate, tear down what makes the model so
sure. The right temperature is known without a step.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from clip_finetuning.model import clip_model as clip
from clip_finetuning.runtime import distributed
from clip_finetuning.training import first_batches, losses, siglip_start

SCALES = {"clip": (1.0, 100.0), "siglip": (1.0, 200.0)}  # the softmax loss is trained within its bounds
HALVINGS = 30

Batches = Sequence[Sequence[torch.Tensor]]  # as `first_batches.embedded` returns them


def fit(clip_model: clip.ClipModel, loader: Any, loss: str, precision: str, micro_batch_size: int | None = None) -> str:
    """`fit_to` the first batches of a training; the loader stays where it is."""
    return fit_to(clip_model, first_batches.embedded(clip_model, loader, precision, micro_batch_size), loss)


def fit_to(clip_model: clip.ClipModel, batches: Batches, loss: str) -> str:
    """Set the model's logit scale, and the sigmoid loss's bias, to what minimises the mean loss of batches -> what to say.

    The same on every rank.
    """
    model: Any = clip_model.model
    before = model.logit_scale.exp().item(), _item(getattr(model, "logit_bias", None))
    found = None
    if distributed.rank() == 0:
        scale, bias = best(batches, loss, clip_model.device)
        were, are = (mean_loss(batches, loss, *pair, clip_model.device) for pair in (before, (scale, bias)))
        found = scale, bias, were, are
    scale, bias, were, are = distributed.agree(found)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(scale))
        if bias is not None:
            model.logit_bias.fill_(bias)
    names = f"logit scale {before[0]:.4g} -> {scale:.4g}"
    if bias is not None:
        names += f", bias {before[1]:.4g} -> {bias:.4g}"
    low, high = SCALES[loss]
    bound = f"; it may be from {low:g} to {high:g}" if scale < 1.001 * low or scale > 0.999 * high else ""
    many = f"{len(batches)} batches" if len(batches) > 1 else "batch"
    return f"{names}: the loss of the first {many} goes from {were:.4g} to {are:.4g}{bound}"


def best(batches: Batches, loss: str, device: torch.device | str = "cpu") -> tuple[float, float | None]:
    """The scale, and for `siglip` the bias, else None, that minimise the mean loss of batches of `first_batches.embedded`."""
    if loss == "siglip":
        return siglip_start.best_scale_and_bias(batches, SCALES["siglip"])
    low, high = map(math.log, SCALES["clip"])
    for _ in range(HALVINGS):  # the loss is convex in the scale, as every log-sum-exp of linear functions is
        middle = torch.tensor((low + high) / 2, requires_grad=True)
        slope = sum(
            torch.autograd.grad(losses.clip_loss(*_on(device, batch), logit_scale=middle.exp().to(device)), middle)[
                0
            ].item()
            for batch in batches
        )
        low, high = (middle.item(), high) if slope < 0 else (low, middle.item())
    return math.exp((low + high) / 2), None


def mean_loss(
    batches: Batches, loss: str, scale: float, bias: float | None, device: torch.device | str = "cpu"
) -> float:
    """The mean loss of batches of `first_batches.embedded` at a temperature."""
    function = {"clip": losses.clip_loss, "siglip": losses.siglip_loss}[loss]
    by = {"logit_scale": torch.tensor(scale, device=device), "logit_bias": torch.tensor(bias or 0.0, device=device)}
    return sum(function(*_on(device, batch), **by).item() for batch in batches) / len(batches)


def _on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


def _item(value):
    return None if value is None else value.item()
