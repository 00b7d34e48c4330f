"""Which architecture it is: what the user names, and what a file says of itself or a config beside it.

What the user names may be fetched from where they point; what a file names is checked by `architecture.py`.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import open_clip
import torch

from clip_finetuning.model import beside, hf_config, lora_file, sources, tokenizer_files
from clip_finetuning.model.architecture import (
    Architecture,
    check_architecture,
    check_name,
    is_architecture,
    least_parameters,
)
from clip_finetuning.runtime.text import printable


def named(name: str, cache_dir: str | None = None) -> Architecture:
    """The architecture that the user named; ValueError with the nearest names if there is no such model."""
    if sources.is_source(name):
        return sources.look_up(name, cache_dir).architecture
    if name.endswith(".json"):
        config = _read_config(name)
        own_name = re.sub(r"[^\w.-]", "-", Path(name).stem)
        return Architecture(own_name, check_architecture(config, f"MODEL_NAME={name}", own=config))
    name = name.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        near = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 3, 0.5)) or "ViT-B-32"
        raise ValueError(
            f"MODEL_NAME={name} is no OpenCLIP model; near names: {near}; or give the path of a config JSON"
        )
    return Architecture(name, config)


def is_tag(name: str, pretrained: str) -> bool:
    """Whether open_clip has weights of this name for an architecture."""
    return pretrained.lower().replace("-", "_") in [t.lower() for t in open_clip.list_pretrained_tags_by_model(name)]


def _read_config(path: str) -> dict:
    """The object of an OpenCLIP config JSON."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"MODEL_NAME={path}: there is no such config file")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"MODEL_NAME={path} is not valid JSON: {error}") from error
    if not is_architecture(config):
        raise ValueError(f"MODEL_NAME={path} is no OpenCLIP config: it needs embed_dim, vision_cfg and text_cfg")
    return config


# ------------------------------------------------------------------------------------------ what a file says


def agreed(
    path: object,
    checkpoint: dict[str, Any],
    chosen: Architecture | None,
    default_name: str | None,
    cache_dir: str | None,
) -> Architecture:
    """The architecture of a checkpoint: its own, unless it contradicts the one that the user chose; else that, or the default.

    Raises ValueError naming MODEL_NAME.
    """
    saved = _saved(path, checkpoint, chosen, default_name, cache_dir)
    if saved is None:
        said = checkpoint.get("said")
        if said is not None and said.architecture is not None:
            return _named_or_said(path, chosen, said)
        chosen = chosen or (named(default_name, cache_dir) if default_name is not None else None)
        if chosen is None:
            raise ValueError(f"{path} does not say which architecture it holds; set MODEL_NAME")
        return chosen
    if chosen is not None and saved.config != chosen.config:
        if saved.config not in ({**chosen.config, "quick_gelu": True}, hf_config.with_tanh(chosen.config)):
            raise ValueError(
                f"{path} is a checkpoint of {saved.name}, but MODEL_NAME is {chosen.name}; set MODEL_NAME={saved.name}, "
                "or choose a checkpoint of the model you named"
            )
        activation = "QuickGELU" if saved.config.get("quick_gelu") else "the approximate GELU"
        print(f"{path} is a checkpoint of {saved.name}: {chosen.name} with {activation}, as its weights were trained")
    return saved


def _named_or_said(path, chosen: Architecture | None, said: beside.Said) -> Architecture:
    """The architecture that the user chose, unless the config beside the weights has another; that, if none was."""
    told = said.architecture
    assert told is not None
    if chosen is None:
        print(f"{path} holds {told.name}, as {said.where} says")
        return told
    if hf_config.essentials(told.config) != hf_config.essentials(chosen.config):
        folder = said.where.parent
        fix = told.name if open_clip.get_model_config(told.name) == told.config else f"local-dir:{folder}"
        raise ValueError(
            f"{path} holds {told.name}, as {said.where} says, but MODEL_NAME is {chosen.name}; set MODEL_NAME={fix}"
        )
    return chosen


def _saved(path, checkpoint, chosen: Architecture | None, default_name: str | None, cache_dir) -> Architecture | None:
    """The architecture that a checkpoint says it holds, or None; ValueError if it is not for a file to say."""
    name, config = checkpoint.get("model_name"), checkpoint.get("model_config")
    if name is None:
        return None
    if sources.is_source(name) and not is_whole(checkpoint):
        if chosen is not None and chosen.name == name:
            return chosen
        if chosen is None and name == default_name:
            return named(name, cache_dir)
        raise ValueError(
            f"{path} is a checkpoint of {printable(name)}, which would be fetched; if you trust that, set MODEL_NAME to it"
        )
    if not sources.is_source(name):
        check_name(name, path)
    if config is None:
        config = open_clip.get_model_config(name)
        if config is None:
            raise ValueError(f"{path} is a checkpoint of {name}, which open_clip does not know; set MODEL_NAME")
        return Architecture(name, config)
    own = chosen.config if chosen else None
    if own is None and default_name is not None and default_name.endswith(".json"):
        own = _read_config(default_name)
    if tokenizer_files.FIELD in checkpoint and isinstance(config, dict):  # what the config names is not looked up
        text = config.get("text_cfg")
        own = {"text_cfg": {"hf_tokenizer_name": text.get("hf_tokenizer_name") if isinstance(text, dict) else None}}
    config = check_architecture(config, path, own)
    held = _bytes_held(checkpoint["state_dict"])
    if least_parameters(config) > held and not lora_file.is_alone(checkpoint):  # its base says the same of itself
        raise ValueError(
            f"{path} says that it holds a model of {least_parameters(config):,} parameters, but has {held:,} bytes of them"
        )
    return Architecture(name, config)


def is_whole(checkpoint: dict) -> bool:
    """Whether a checkpoint holds its architecture, and its tokenizer's files if it needs any."""
    config = checkpoint.get("model_config")
    text = config.get("text_cfg") if isinstance(config, dict) else None
    if not isinstance(text, dict):
        return False
    return not text.get("hf_tokenizer_name") or tokenizer_files.FIELD in checkpoint


def _bytes_held(weights: dict[str, torch.Tensor]) -> int:
    """The memory of some tensors; what they share counts once, and a repeated number as one."""
    storages = (tensor.untyped_storage() for tensor in weights.values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
