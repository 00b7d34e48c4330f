"""The weights that a run evaluates and saves, where they are others than those that train.

They may be a moving average of the trained ones (EMA_DECAY), and may hold a share of the start (START_SHARE): between a
fine-tuned model and its start lie weights that keep most of the gain and forget less (WiSE-FT, Wortsman et al. 2022,
arXiv:2109.01903). Both leave the training as it is.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

LOW_RANK_B = re.compile(r"\.parametrizations\.\w+\.\d+\.B\w*$")


@dataclass
class Average:
    """What is made of a run's weights, step by step and before they are evaluated or saved."""

    moving: AveragedModel | None  # the moving average of the weights
    start: nn.Module | None  # the model as it began; wherever it is
    share: float  # of the start in what is evaluated and saved

    def update_parameters(self, model: nn.Module) -> None:
        """A step is done, which left these weights."""
        if self.moving is not None:
            self.moving.update_parameters(model)

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model to evaluate and to save: share x start + (1 - share) x (moving average, else current weights).

        Parameters that the start does not have, and all buffers, are those of the trained model.
        """
        trained = model if self.moving is None else self.moving.module
        return trained if self.start is None else mixed(trained, self.start, self.share)

    def checkpoint_fields(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint holds: `state_dict` is what was evaluated, the others are what the training goes on with."""
        fields: dict[str, Any] = {
            "state_dict": self.evaluated(model).state_dict(),
            "raw_state_dict": model.state_dict(),
        }
        if self.moving is not None:
            fields["averaged_steps"] = int(self.moving.n_averaged)
            if self.start is not None:
                fields["average_state_dict"] = self.moving.module.state_dict()
        return fields


def create(model: nn.Module, ema_decay: float | None, start: nn.Module | None, share: float) -> Average | None:
    """The average of a run before its first step, or None where the trained weights are what is evaluated."""
    moving = None
    if ema_decay is not None:  # buffers are copied: the attention mask's -inf has no average
        moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    start = start if share else None
    return None if moving is None and start is None else Average(moving, start, share)


def mixed(model: nn.Module, start: nn.Module, share: float) -> nn.Module:
    """A copy of a model whose parameters are share x the start's + (1 - share) x its own, by name.

    Low-rank additions are at their start where B is zero, whatever A is: B alone goes back, and the product with it.
    """
    theirs, result = dict(start.named_parameters()), copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if name in theirs:
                parameter.lerp_(theirs[name].to(parameter), share)
            elif LOW_RANK_B.search(name):
                parameter.mul_(1 - share)
    return result


def restore(average: Average | None, model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give a model that holds a checkpoint's `state_dict`, and its average, what the training goes on with."""
    raw = checkpoint.get("raw_state_dict")
    if raw is not None:
        model.load_state_dict(raw)
    if average is None or average.moving is None:
        return
    if "averaged_steps" not in checkpoint:  # it begins here
        average.moving.module.load_state_dict(model.state_dict())
        return
    if "average_state_dict" in checkpoint:  # else it is `state_dict`, which the average was copied from
        average.moving.module.load_state_dict(checkpoint["average_state_dict"])
    average.moving.n_averaged.fill_(checkpoint["averaged_steps"])
