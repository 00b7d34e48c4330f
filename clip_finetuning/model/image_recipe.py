"""How pictures are prepared for weights that do not say it themselves, and what the user says instead."""

import re
from dataclasses import asdict
from pathlib import Path

import open_clip

from clip_finetuning.model.architecture import check_colours
from clip_finetuning.model.open_clip_call import QUICK


def with_activation_of(name, config, tag):
    """OpenAI's and some other weights were trained with QuickGELU: (name, architecture) of the model that has it.

    open_clip only warns of the mismatch and then computes wrong embeddings.
    """
    if config.get("quick_gelu") or not open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"):
        return name, config
    print(f"{name}: weights '{tag}' were trained with QuickGELU, so the model is {name}{QUICK}")
    return f"{name}{QUICK}", open_clip.get_model_config(f"{name}{QUICK}") or {**config, "quick_gelu": True}


def assume(path, name, config):
    """((name, architecture), preprocessing but for the size) of weights that do not say how pictures are prepared.

    A tag in the file's name tells it. Else it is what all published weights of the architecture have in common, or
    open_clip's default. Either way one line says so.
    """
    tag = _tag_in(Path(path).stem, name)
    published = [open_clip.get_pretrained_cfg(name, t) for t in open_clip.list_pretrained_tags_by_model(name)]
    recipes = [_recipe(known) for known in published]
    if tag is not None:
        recipe = _recipe(open_clip.get_pretrained_cfg(name, tag))
        name, config = with_activation_of(name, config, tag)
        why = f"taken, because its name tells the tag '{tag}'"
    elif recipes and all(recipe == recipes[0] for recipe in recipes):
        recipe, why = recipes[0], f"assumed, because all published weights of {name} have this preprocessing"
    else:
        recipe, why = _recipe({}), "assumed, because the file does not tell"
    activation = "QuickGELU" if config.get("quick_gelu") else "GELU"
    if tag is None and f"{name}{QUICK}" in open_clip.list_models():
        activation += f" (MODEL_NAME={name}{QUICK} for QuickGELU)"
    change = "" if tag else "; IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION change it"
    how = (
        f"mean {recipe['mean']}, std {recipe['std']}, {recipe['resize_mode']}, {recipe['interpolation']}, {activation}"
    )
    print(f"{path}: {how} {why}{change}")
    return (name, config), recipe


def _recipe(known):
    """A preprocessing config without its size, from the entries of a tag; the rest is open_clip's default."""
    default = plain(asdict(open_clip.transform.PreprocessCfg()))
    return {key: plain(known.get(key) or value) for key, value in default.items() if key != "size"}


def _tag_in(stem, name):
    """The tag that a file's name begins with, alone or after the name of the model, as in `vit_b_32-laion2b_e16-af8d`."""
    stem, model = _folded(stem), _folded(name.removesuffix(QUICK))
    for prefix in (f"{model}_quickgelu_", f"{model}_"):
        stem = stem.removeprefix(prefix)
    tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if f"{stem}_".startswith(f"{_folded(tag)}_")]
    return max(tags, key=len, default=None)


def _folded(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def image_settings(args):
    """The preprocessing that IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION ask for, {} for none."""
    asked = {}
    for key in ("mean", "std"):
        text = getattr(args, f"image_{key}")
        if text is not None:
            knob = f"IMAGE_{key.upper()}"
            try:
                asked[key] = [float(part) for part in text.split(",")]
            except ValueError:
                raise ValueError(f"{knob}={text} is not allowed: it takes three numbers such as 0.5,0.5,0.5") from None
            check_colours(asked[key], knob, above=0 if key == "std" else None)
    for key in ("resize_mode", "interpolation"):
        if getattr(args, f"image_{key}") is not None:
            asked[key] = getattr(args, f"image_{key}")
    return asked


def with_image_settings(clip_model, image):
    """The model with the preprocessing that the user asked for; a line says what that replaces."""
    for key, value in (image or {}).items():
        if clip_model.preprocess[key] != value:
            print(f"{clip_model.name}: IMAGE_{key.upper()}={value} takes the place of {clip_model.preprocess[key]}")
            clip_model.preprocess[key] = value
    return clip_model


def plain(value):
    """Tuples become lists, as they do in a checkpoint that is read back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
