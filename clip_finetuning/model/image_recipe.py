"""How pictures are prepared for weights that do not say it themselves, and what the user says instead.

open_clip knows mean, standard deviation, resizing and activation of each published tag, but of a file nothing. A file of
this suite's brings them along; of any other they are assumed, aloud, and IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and
IMAGE_INTERPOLATION have the last word.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip

from clip_finetuning.model import conversion, hf_config
from clip_finetuning.model.architecture import Architecture, check_colours
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.open_clip_call import QUICK

CHANGES = "; IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION change it"
METACLIP = re.compile(r"[blhg]\d\d_(400m|fullcc)")  # as in b32_400m.pt and l14_fullcc2.5b.pt
OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}

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


def assume(path: str | Path, architecture: Architecture, checkpoint: Mapping[str, Any]) -> tuple[Architecture, dict]:
    """(architecture, preprocessing but for the size) of weights that do not say how pictures are prepared.

    A config beside them tells it, or OpenAI's layout, or a tag in the file's name. Else it is what all published weights
    of the architecture have in common, or open_clip's default. Either way one line says so.
    """
    name, weights = architecture.name, checkpoint["state_dict"]
    said, is_openai = checkpoint.get("said"), checkpoint.get("is_openai") is True
    tag = "openai" if is_openai else tag_in(path, name)
    change = ""
    if said is not None:
        recipe, why = _recipe(said.preprocess or {}), f"taken from {said.where}"
        if said.preprocess is None:
            recipe, unsaid = _usual_recipe(name)
            why = f"{unsaid}, and activation taken from {said.where}"
            change = CHANGES
        architecture = _with_activation(architecture, said.activation, str(said.where))
    elif tag is not None:
        recipe = _recipe(OPENAI if is_openai else _known(name, tag))
        architecture = _quick(architecture) if is_openai else with_activation_of(architecture, tag)
        why = (
            "taken, because it is laid out as OpenAI publishes CLIP"
            if is_openai
            else (f"taken, because its name tells the tag '{tag}'")
        )
    else:
        recipe, why = _usual_recipe(name)
        change = CHANGES
        if conversion.is_transformers(weights) and "vision_model.head.probe" in weights:
            architecture = _with_activation(architecture, hf_config.TANH, "every SigLIP of transformers")
    activation = _activation(architecture, choose=said is None and tag is None)
    how = (
        f"mean {recipe['mean']}, std {recipe['std']}, {recipe['resize_mode']}, {recipe['interpolation']}, {activation}"
    )
    print(f"{path}: {how} {why}{change}")
    return architecture, recipe


def _activation(architecture: Architecture, choose: bool) -> str:
    """The activation in words and, where it is to be chosen, how."""
    name, config = architecture
    plain = name.removesuffix(QUICK)
    if config.get("quick_gelu"):
        how = f" (MODEL_NAME={plain} for GELU)" if plain != name else ' (a config JSON without "quick_gelu" for GELU)'
        return f"QuickGELU{how if choose else ''}"
    tanh = (config["text_cfg"].get("act_kwargs") or {}).get("approximate") == "tanh"
    if config["vision_cfg"].get("timm_model_name") or tanh:  # such were never trained with another
        return "GELU"
    how = (
        f"MODEL_NAME={name}{QUICK}"
        if f"{name}{QUICK}" in open_clip.list_models()
        else 'a config JSON with "quick_gelu": true'
    )
    return f"GELU{f' ({how} for QuickGELU)' if choose else ''}"


def _with_activation(architecture: Architecture, activation: str, where: str) -> Architecture:
    """The architecture with the activation that something says; a QuickGELU that the user named stays."""
    if activation == "quick_gelu":
        return _quick(architecture)
    if architecture.config.get("quick_gelu"):
        print(f"{where} has {activation}, but {architecture.name}, which MODEL_NAME says, has QuickGELU: that is taken")
    elif activation == hf_config.TANH and not architecture.config["text_cfg"].get("hf_model_name"):
        return Architecture(architecture.name, hf_config.with_tanh(architecture.config))
    return architecture


def _quick(architecture: Architecture) -> Architecture:
    """The architecture with QuickGELU."""
    name, config = architecture
    if config.get("quick_gelu"):
        return architecture
    quick, wanted = f"{name}{QUICK}", {**config, "quick_gelu": True}
    return Architecture(quick if open_clip.get_model_config(quick) == wanted else name, wanted)


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


def tag_in(path: str | Path, name: str) -> str | None:
    """The tag that a file's name begins with, alone or after the name of the model, as in `vit_b_32-laion2b_e16-af8d`.

    Or that of the repository on the hub whose name a folder above it ends with, or MetaCLIP's own file names.
    """
    stem, model = _folded(Path(path).stem), _folded(name.removesuffix(QUICK))
    for prefix in (f"{model}_quickgelu_", f"{model}_"):
        stem = stem.removeprefix(prefix)
    if match := METACLIP.match(stem):
        stem = f"metaclip_{match[1]}"
    known = open_clip.list_pretrained_tags_by_model(name)
    tags = [tag for tag in known if f"{stem}_".startswith(f"{_folded(tag)}_")]
    if not tags:
        folders = [_folded(part) for part in Path(path).absolute().parts]
        tags = [
            tag
            for tag in known
            if any(folder.endswith(f"_{_repository(name, tag)}") for folder in map("_{}".format, folders))
        ]
    return max(tags, key=len, default=None)


def _repository(name: str, tag: str) -> str:
    """The name of a tag's repository without its owner, folded; never empty."""
    return _folded(str(_known(name, tag).get("hf_hub") or "").rstrip("/").rpartition("/")[2]) or "no repository"


def _known(name: str, tag: str) -> dict:
    """What open_clip knows of the weights of a tag."""
    return open_clip.get_pretrained_cfg(name, tag) or {}


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
