"""What trains of a model that was trained before, and how fast: a factor of the learning rate for each parameter.

TUNE says which parameters train at all. LAYER_DECAY lets the rates of a tower fall from its last block to its first, by
its own depth, as BEiT does (Bao et al. 2021, arXiv:2106.08254): projection and final norm 1, the last block `decay`, the
one before it `decay` squared, embeddings one below the first block. IMAGE_RATE and TEXT_RATE multiply a whole tower.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clip_finetuning.model import towers
from clip_finetuning.model.fast_towers import OpenClip
from clip_finetuning.model.lora import add
from clip_finetuning.model.low_rank import Lora

TOWERS = ("image", "text")


@dataclass(frozen=True)
class Tuning:
    """What trains: the settings TUNE, LAYER_DECAY, IMAGE_RATE, TEXT_RATE, and LoRA's own."""

    tune: str = "full"  # full, image, text, head or lora
    layer_decay: float = 1.0
    image_rate: float = 1.0
    text_rate: float = 1.0
    lora: Lora | None = None  # with tune="lora" alone


FULL = Tuning()


def apply(clip_model: Any, tuning: Tuning, seed: int = 0) -> dict[str, float]:
    """Lock what does not train of a ClipModel, after LoRA's additions, drawn from `seed`, came to it -> `rates_of` it.

    ValueError if no tower has anything left to train.
    """
    model = clip_model.model
    if tuning.lora is not None:
        add(clip_model, tuning.lora, seed)
    factors = rates_of(model, tuning)
    if not any(factor and towers.tower_of(name) in TOWERS for name, factor in factors.items()):
        raise ValueError(f"TUNE={tuning.tune} leaves nothing of {clip_model.name} to train: choose another TUNE")
    for name, parameter in model.named_parameters():
        if not factors[name]:
            parameter.requires_grad_(False)
    return factors


def rates_of(model: OpenClip, tuning: Tuning) -> dict[str, float]:
    """`rates` of a tuning."""
    return rates(
        model,
        tune=tuning.tune,
        layer_decay=tuning.layer_decay,
        image_rate=tuning.image_rate,
        text_rate=tuning.text_rate,
    )


def rates(
    model: OpenClip, *, tune: str = "full", layer_decay: float = 1.0, image_rate: float = 1.0, text_rate: float = 1.0
) -> dict[str, float]:
    """{name of each parameter of the model: factor of its learning rate, 0 for those that do not train}.

    What is locked already stays so: fixed tables of positions, and with `lora` all but the additions. Scale and bias of the
    logits train in every mode, CoCa's decoder, which no contrastive loss reads, with `full` alone. Raises ValueError if a
    `layer_decay` below 1 meets a tower whose blocks are not known.
    """
    of_tower = {"image": image_rate, "text": text_rate, "decoder": text_rate, "both": 1.0}
    places = towers.places(model)
    factors = dict.fromkeys(places, 0.0)
    for name, parameter in model.named_parameters():
        place = places[name]
        if parameter.requires_grad and _trains(place, tune) and of_tower[place.tower]:
            factors[name] = of_tower[place.tower] * _decay(model, place, 1.0 if tune == "head" else layer_decay)
    return factors


def _trains(place, tune):
    if tune in ("full", "lora") or place.tower == "both":
        return True
    return place.is_head if tune == "head" else place.tower == tune


def _decay(model, place, layer_decay):
    if layer_decay == 1:
        return 1.0
    if place.below is None:
        kind = towers.kind_of(model, place.tower)
        raise ValueError(
            f"LAYER_DECAY={layer_decay:g} needs to know the blocks of the {place.tower} tower, which are not found in a "
            f"{kind}: set LAYER_DECAY=1, or lock the tower with {place.tower.upper()}_RATE=0"
        )
    return layer_decay**place.below


def locked_towers(model: nn.Module) -> set[str]:
    """Which of the two towers have nothing that trains."""
    training = {towers.tower_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {*TOWERS} - training


def lock_modes(model: nn.Module) -> None:
    """Switch what is locked to evaluation: dropout and statistics of its BatchNorm layers belong to training.

    A module without parameters, such as a dropout, goes by those beside it: it is locked if nothing trains before it.
    """
    if not all(parameter.requires_grad for parameter in model.parameters()):
        _lock_modes_below(model)


def _lock_modes_below(module):
    children = list(module.children())
    states = [{parameter.requires_grad for parameter in child.parameters()} for child in children]
    held = [state for state in states if state]
    before: list[set[bool]] = []
    for child, state in zip(children, states):
        beside = before or held
        if state == {False} or (not state and beside and all(other == {False} for other in beside)):
            child.eval()
        else:
            _lock_modes_below(child)
        before += [state] * bool(state)


def summary(model: OpenClip, tuning: Tuning) -> str:
    """What a run says of its tuning, on one line; empty if everything trains at the same rate."""
    if tuning == FULL:
        return ""
    places, factors = towers.places(model), rates_of(model, tuning)
    parts = (
        [", ".join(_in_short([name for name, factor in factors.items() if factor]))] if tuning.tune == "head" else []
    )
    for tower in TOWERS:
        own = {name: place for name, place in places.items() if place.tower == tower}
        reached = [factors[name] for name in own if factors[name]]
        if not reached:
            parts.append(f"{tower} tower locked")
        elif {*reached} != {1.0}:
            low, high = min(reached), max(reached)
            blocks = max(place.below or 0 for place in own.values()) - 1 if tuning.layer_decay != 1 else 0
            over = f" over {blocks} blocks" if blocks else ""
            parts.append(f"{tower} tower at {low:.3g}{f' to {high:.3g}' if low < high else ''} times the rate{over}")
    return f"{tuning.tune}: {'; '.join(parts)}" if parts else ""  # of LoRA's additions the model says more


def _in_short(names):
    """Names of parameters, those of one module as one."""
    modules = dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names)
    shown = list(modules)
    return shown if len(shown) <= 6 else [*shown[:5], f"and {len(shown) - 5} more"]
