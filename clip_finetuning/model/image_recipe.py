"""How pictures are prepared for weights that do not say it themselves, and what the user says instead.

open_clip knows mean, standard deviation, resizing and activation of each published tag, but of a file nothing. A file of
this suite's brings them along; of any other they are assumed, aloud, and IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and
IMAGE_INTERPOLATION have the last word.
"""

import re
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip

from clip_finetuning.model.architecture import Architecture, check_colours
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.open_clip_call import QUICK

# ----------------------------------------------------------------------------------------- what is known of weights


def with_activation_of(architecture: Architecture, tag: str) -> Architecture:
    """OpenAI's and some other weights were trained with QuickGELU: the architecture that has it.

    open_clip only warns of the mismatch and then computes wrong embeddings.
    """
    name, config = architecture
    if config.get("quick_gelu") or not open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"):
        return architecture
    quick = f"{name}{QUICK}"
    print(f"{name}: weights '{tag}' were trained with QuickGELU, so the model is {quick}")
    return Architecture(quick, open_clip.get_model_config(quick) or {**config, "quick_gelu": True})


def assume(path: str | Path, architecture: Architecture) -> tuple[Architecture, dict]:
    """(architecture, preprocessing but for the size) of weights that do not say how pictures are prepared.

    A tag in the file's name tells it. Else it is what all published weights of the architecture have in common, or
    open_clip's default. Either way one line says so.
    """
    name = architecture.name
    tag = _tag_in(Path(path).stem, name)
    if tag is not None:
        recipe = _recipe(open_clip.get_pretrained_cfg(name, tag))
        architecture = with_activation_of(architecture, tag)
        why, change = f"taken, because its name tells the tag '{tag}'", ""
    else:
        recipe, why = _usual_recipe(name)
        change = "; IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION change it"
    activation = "QuickGELU" if architecture.config.get("quick_gelu") else "GELU"
    if tag is None and f"{name}{QUICK}" in open_clip.list_models():
        activation += f" (MODEL_NAME={name}{QUICK} for QuickGELU)"
    how = (
        f"mean {recipe['mean']}, std {recipe['std']}, {recipe['resize_mode']}, {recipe['interpolation']}, {activation}"
    )
    print(f"{path}: {how} {why}{change}")
    return architecture, recipe


def _usual_recipe(name: str) -> tuple[dict, str]:
    """(preprocessing but for the size, why it is taken) of weights of a model of which nothing else is known."""
    recipes = [
        _recipe(open_clip.get_pretrained_cfg(name, tag)) for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    if recipes and all(recipe == recipes[0] for recipe in recipes):
        return recipes[0], f"assumed, because all published weights of {name} have this preprocessing"
    return _recipe({}), "assumed, because the file does not tell"


def _recipe(known: dict) -> dict:
    """A preprocessing config without its size, from the entries of a tag; the rest is open_clip's default."""
    default = plain(asdict(open_clip.transform.PreprocessCfg()))
    return {key: plain(known.get(key) or value) for key, value in default.items() if key != "size"}


def _tag_in(stem: str, name: str) -> str | None:
    """The tag that a file's name begins with, alone or after the name of the model, as in `vit_b_32-laion2b_e16-af8d`."""
    stem, model = _folded(stem), _folded(name.removesuffix(QUICK))
    for prefix in (f"{model}_quickgelu_", f"{model}_"):
        stem = stem.removeprefix(prefix)
    tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if f"{stem}_".startswith(f"{_folded(tag)}_")]
    return max(tags, key=len, default=None)


def _folded(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def plain(value: Any) -> Any:
    """Tuples become lists, as they do in a checkpoint that is read back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# --------------------------------------------------------------------------------------------- what the user says


def image_settings(args: Namespace) -> dict:
    """The preprocessing that IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION ask for, {} for none."""
    asked = {
        "mean": _colours(args.image_mean, "IMAGE_MEAN"),
        "std": _colours(args.image_std, "IMAGE_STD", above=0),
        "resize_mode": args.image_resize_mode,
        "interpolation": args.image_interpolation,
    }
    return {key: value for key, value in asked.items() if value is not None}


def _colours(text: str | None, knob: str, above: float | None = None) -> list[float] | None:
    """The three numbers of a knob, None for none."""
    if text is None:
        return None
    try:
        colours = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{knob}={text} is not allowed: it takes three numbers such as 0.5,0.5,0.5") from None
    check_colours(colours, knob, above)
    return colours


def with_image_settings(clip_model: ClipModel, image: dict | None) -> ClipModel:
    """The model with the preprocessing that the user asked for; a line says what that replaces."""
    for key, value in (image or {}).items():
        if clip_model.preprocess[key] != value:
            print(f"{clip_model.name}: IMAGE_{key.upper()}={value} takes the place of {clip_model.preprocess[key]}")
            clip_model.preprocess[key] = value
    return clip_model
