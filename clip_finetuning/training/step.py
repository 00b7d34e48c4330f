"""One optimizer step: the gradient of the whole contrastive batch, then the update, unless a number is not finite."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model import tuning
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.console import warn
from clip_finetuning.training import gradient_cache, losses
from clip_finetuning.training import optimizer as optimizers
from clip_finetuning.training.plan import Plan

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


class TornUpdate(Exception):
    """An error, this one's cause, came while weights or statistics moved: they are those of no whole step."""


class Step(NamedTuple):
    """What a step did; the tensors have no dimension and are on the device."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    logit_scale: torch.Tensor
    learning_rate: float
    updated: bool  # False: the loss or its gradient was not finite, so the weights are as they were
    micro_batch_size: int  # that the device's memory held

    @property
    def record(self) -> dict[str, torch.Tensor | float]:
        """The numbers for the log."""
        names = ("loss", "learning_rate", "grad_norm", "logit_scale")
        return {name: getattr(self, name) for name in names}


def train_step(
    clip_model: clip.ClipModel,
    optimizer: torch.optim.Optimizer | optimizers.CombinedOptimizer,
    scaler: torch.amp.GradScaler,
    batch: Any,
    plan: Plan,
    *,
    step: int,
    micro_batch_size: int,
    average: AveragedModel | None = None,
    learns_statistics: bool = False,
) -> Step:
    """Step number `step`, counted from 0, on this process's share of a batch: images, tokens and identities.

    `average` follows the weights; `learns_statistics`: BatchNorm layers too learn from this batch. Raises TornUpdate for
    an error after which the model is no more that of a whole step.
    """
    model: Any = clip_model.model
    device = clip_model.device
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_function = {"clip": losses.clip_loss, "siglip": losses.siglip_loss}[plan.loss]

    locked, kept = tuning.locked_towers(model), {}

    def encoded(tower, encode, rows):
        if tower not in locked:
            return encode(clip_model, rows)
        if id(rows) not in kept:  # micro-batches come twice, and a locked tower embeds them alike
            kept[id(rows)] = rows, encode(clip_model, rows)
        return kept[id(rows)][1]

    def embed(images, tokens):
        with devices.autocast(device, plan.precision):
            return encoded("image", clip.encode_images, images), encoded("text", clip.encode_texts, tokens)

    def loss_of(image_embeddings, text_embeddings, identities):
        bias = getattr(model, "logit_bias", None)
        return loss_function(image_embeddings, text_embeddings, identities, model.logit_scale.exp(), bias)

    # ---- what this step starts from: the rate, the mode, the random state, so that dropout repeats after a resume
    learning_rate = plan.learning_rate_at(step)
    optimizers.set_learning_rate(optimizer, learning_rate)
    clip.training_mode(model, learns_statistics)
    statistics = [(b, b.clone()) for norm in clip.batch_norms(model) if norm.training for b in norm.buffers()]
    torch.manual_seed(step_seed(plan.seed, step, distributed.rank()))

    # ---- the gradient, in micro-batches where the device asks for them
    images, tokens, identities = (
        tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.tokens, batch.identities)
    )
    with _torn_on_error(bool(statistics)), devices.training_attention(device, plan.precision):
        loss, fits = gradient_cache.backward_with_retry(
            embed, loss_of, images, tokens, identities, parameters,
            micro_batch_size=micro_batch_size, scaler=scaler, say=warn,
        )  # fmt: skip

    with _torn_on_error():
        # ---- is it finite? The one value that is fetched from the device each step
        scaler.unscale_(optimizer)  # type: ignore[arg-type]
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, plan.grad_clip_norm or math.inf)
        finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
        # ---- the update
        if finite:
            scaler.step(optimizer)  # type: ignore[arg-type]
            with torch.no_grad():
                # SigLIP's paper does not bound the scale, and published ones are above 100.
                model.logit_scale.clamp_(0, MAX_LOGIT_SCALE if plan.loss == "clip" else None)
            if average is not None:
                average.update_parameters(model)
        else:
            for buffer, before in statistics:
                buffer.copy_(before)
        scaler.update()
    return Step(loss, grad_norm, model.logit_scale.detach().exp(), learning_rate, finite, fits or len(images))


@contextlib.contextmanager
def _torn_on_error(changes: bool = True) -> Iterator[None]:
    """Errors within become TornUpdate, if what stands within changes the model."""
    try:
        yield
    except Exception as error:
        if changes:
            raise TornUpdate from error
        raise


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one process: a resumed run needs no saved random state."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63
