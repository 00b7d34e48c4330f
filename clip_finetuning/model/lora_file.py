"""What a checkpoint holds of low-rank additions: under `lora` the additions alone, how they were made, and of what.

A periodic checkpoint has no other weights, and is as small as they are; it is read by loading its base and adding them.
The best and the final one hold the merged weights too, which are a plain open_clip checkpoint.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from clip_finetuning.model import low_rank
from clip_finetuning.model.fingerprint import SCALARS, fingerprint
from clip_finetuning.model.lora import Added, Base
from clip_finetuning.model.low_rank import PLACE, Lora
from clip_finetuning.runtime.text import printable


class Saved(NamedTuple):
    """The additions of a file."""

    settings: Lora
    base: Base
    additions: dict[str, torch.Tensor]  # WEIGHT.A (rank, in), WEIGHT.B (out, rank), and the scalars of the loss


def trained(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a parametrized model's state dict has trained: its additions and the scalars of the loss."""
    scalars = {name: state_dict[name] for name in SCALARS if name in state_dict}
    return {**low_rank.additions(state_dict), **scalars}


def content(added: Added, state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What goes into a checkpoint under `lora`, plain data and tensors."""
    return {**asdict(added.settings), "base": asdict(added.base), "additions": trained(state_dict)}


def rename_base(clip_model: Any, pretrained: str) -> None:
    """Say that the weights which a ClipModel began with, and which its additions belong to, are now elsewhere."""
    clip_model.pretrained = pretrained
    if clip_model.lora is not None:
        clip_model.lora = replace(clip_model.lora, base=replace(clip_model.lora.base, pretrained=pretrained))


def is_alone(checkpoint: Mapping[str, Any]) -> bool:
    """Whether what `read_checkpoint` returned has additions, but not the weights that they are added to."""
    return ("lora" in checkpoint or "peft" in checkpoint) and not checkpoint["state_dict"]


def read(path: object, checkpoint: Mapping[str, Any]) -> Saved:
    """The additions of a checkpoint; ValueError in one line if any field is not what it must be."""
    found = checkpoint["lora"]
    try:
        settings = Lora(**{name: found[name] for name in ("rank", "alpha", "dropout", "targets")})
        base, additions = Base(**found["base"]), found["additions"]
        sound = (
            type(settings.rank) is int
            and settings.rank > 0
            and 0 < float(settings.alpha) < float("inf")
            and all(isinstance(value, str) for value in (settings.targets, *asdict(base).values()))
            and all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in additions.values())
            and all(_is_whole(pairs, settings.rank) for pairs in _pairs(additions).values())
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            printable(f"{path} holds no LoRA additions that can be read: its field lora is not as this suite writes it")
        )
    return Saved(settings, base, dict(additions))


def _pairs(additions):
    return low_rank.by_weight({name: value for name, value in additions.items() if name not in SCALARS})


def _is_whole(pairs, rank):
    """Whether there is an A (rank, in) and a B (out, rank) for each part."""
    parts = low_rank.parts_of(pairs)
    if sorted(pairs) != sorted(f"{side}{part}" for side in "AB" for part in parts):
        return False
    ranks = {pairs[f"A{part}"].shape[0] for part in parts} | {pairs[f"B{part}"].shape[1] for part in parts}
    return all(value.ndim == 2 for value in pairs.values()) and ranks == {rank}


def check_base(model: nn.Module, saved: Saved, path: object) -> None:
    """ValueError unless a model without additions has the weights that the additions were trained on."""
    if fingerprint(model.state_dict()) != saved.base.fingerprint:
        raise ValueError(
            printable(
                f"{path} holds LoRA additions to other weights than those of {saved.base.pretrained or saved.base.name} here: "
                "their hashes differ; put the weights back that it was trained on"
            )
        )


def merge(model: nn.Module, saved: Saved, path: object) -> None:
    """Work the additions of a file into a model that has the weights of their base."""
    weights = model.state_dict()
    for name, pairs in _pairs(saved.additions).items():
        shape = sum(len(pairs[f"B{part}"]) for part in low_rank.parts_of(pairs)), next(iter(pairs.values())).shape[1]
        if name not in weights or weights[name].shape != shape:
            raise ValueError(
                printable(f"{path} holds LoRA additions to {name}, {shape[0]} x {shape[1]}, which its base has not")
            )
    scalars = {name: saved.additions[name] for name in SCALARS if name in saved.additions}
    added = {name: value for name, value in saved.additions.items() if name not in SCALARS}
    merged = low_rank.with_additions(weights, added, saved.settings.scale)
    for name, value in scalars.items():
        merged[name] = value.reshape(weights[name].shape)
    model.load_state_dict(merged)


# ------------------------------------------------------------------------------------------------------- going on


def resume(clip_model: Any, checkpoint: Mapping[str, Any], path: object) -> None:
    """Give a ClipModel that has additions those of a checkpoint; ValueError if its base or its additions are others."""
    saved, model = read(path, checkpoint), clip_model.model
    check_base(model, saved, path)
    own = trained(model.state_dict())
    if {name: value.shape for name, value in own.items()} != {
        name: value.shape for name, value in saved.additions.items()
    }:
        theirs, mine = saved.settings, clip_model.lora.settings
        raise ValueError(
            printable(
                f"{path} was written by another kind of training: LORA_RANK was {theirs.rank}, is {mine.rank}; "
                f"LORA_TARGETS was {theirs.targets}, is {mine.targets}; restore that, or start a new run with its "
                "final_checkpoint.pt as MODEL_PRETRAINED"
            )
        )
    model.load_state_dict(_whole(model, saved.additions))


def whole(model: nn.Module, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint whose further state dicts, of averages and the like, are whole again: what never trains is the model's."""
    if "lora" not in checkpoint:
        return dict(checkpoint)
    return {name: _whole(model, value) if name.endswith("_state_dict") else value for name, value in checkpoint.items()}


def _whole(model, additions):
    own = {}
    for name, value in additions.items():
        weight, _, pair = name.rpartition(".")
        module, _, attribute = weight.rpartition(".")
        own[name if name in SCALARS else f"{module}{PLACE}{attribute}.0.{pair}"] = value
    return {**model.state_dict(), **own}
