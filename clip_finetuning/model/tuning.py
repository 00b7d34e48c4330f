"""What trains of a model that was trained before, and how fast: a factor of the learning rate for each parameter.

TUNE says which parameters train at all. LAYER_DECAY lets the rates of a tower fall from its last block to its first, by
its own depth, as BEiT does (Bao et al. 2021, arXiv:2106.08254): projection and final norm 1, the last block `decay`, the
one before it `decay` squared, embeddings one below the first block. IMAGE_RATE and TEXT_RATE multiply a whole tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clip_finetuning.model import towers
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.fast_towers import OpenClip
from clip_finetuning.model.lora import add
from clip_finetuning.model.low_rank import Lora, is_addition


@dataclass(frozen=True)
class Tuning:
    """What trains: the settings TUNE, LAYER_DECAY, IMAGE_RATE, TEXT_RATE, and LoRA's own."""

    tune: str = "full"  # full, image, text, head or lora
    layer_decay: float = 1.0
    image_rate: float = 1.0
    text_rate: float = 1.0
    lora: Lora | None = None  # with tune="lora" alone


FULL = Tuning()


def of_settings(settings: Mapping[str, Any]) -> Tuning:
    """The tuning of a run's settings, {knob: value}."""
    lora = None
    if settings["TUNE"] == "lora":
        lora = Lora(settings["LORA_RANK"], settings["LORA_ALPHA"], settings["LORA_DROPOUT"], settings["LORA_TARGETS"])
    return Tuning(settings["TUNE"], settings["LAYER_DECAY"], settings["IMAGE_RATE"], settings["TEXT_RATE"], lora)


def apply(clip_model: ClipModel, tuning: Tuning, seed: int = 0) -> dict[str, float]:
    """Lock what does not train, after low-rank additions, drawn from `seed`, where they do -> `rates`.

    ValueError if nothing is left to train, or nothing is found to add to.
    """
    model = clip_model.model
    if tuning.lora is not None:
        add(clip_model, tuning.lora, seed)
    factors = rates_of(model, tuning)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(factors[name] > 0)
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
    """{name of each parameter of the model: factor of the learning rate, 0 for those that are locked}."""
    of_tower = {"image": image_rate, "text": text_rate, "decoder": text_rate, "both": 1.0}
    return {
        name: of_tower[place.tower] * _decay(place, tune, layer_decay) if _trains(name, place, tune) else 0.0
        for name, place in towers.places(model).items()
    }


def _trains(name, place, tune):
    if tune == "full" or place.tower == "both":
        return True
    if tune == "lora":
        return is_addition(name)
    return place.is_head if tune == "head" else place.tower == tune


def _decay(place, tune, layer_decay):
    return 1.0 if layer_decay == 1 or tune == "head" else layer_decay**place.below
