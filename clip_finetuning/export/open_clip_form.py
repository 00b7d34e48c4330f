"""The form `open_clip`: open_clip_config.json, safetensors and tokenizer, as `local-dir:` and `hf-hub:` names load them."""

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from clip_finetuning.export.form import Facts, Options, half_if, unit
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.weights import quiet

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def require(options: Options) -> None:
    """open_clip is always there."""


def refuse(clip_model: ClipModel) -> None:
    """ValueError if the model's architecture alone says nothing to open_clip."""
    if clip_model.config["text_cfg"].get("hf_tokenizer_name") and not hasattr(clip_model.tokenizer, "save_pretrained"):
        raise ValueError(
            f"{clip_model.name}: its tokenizer {type(clip_model.tokenizer).__name__} cannot be written down"
        )


def write(clip_model: ClipModel, folder: Path, options: Options) -> Facts:
    """Config, weights, and the tokenizer if it is not open_clip's own."""
    config, weights = copy.deepcopy(clip_model.config), dict(clip_model.model.state_dict())
    facts = Facts([WEIGHTS])
    if "logit_bias" in weights and config.get("init_logit_bias") is None:
        if type(clip_model.model).__name__ == "CoCa":  # which has no such field
            del weights["logit_bias"]
            facts.notes.append("The logit bias of the sigmoid loss is left out: open_clip's CoCa has none.")
        else:
            config["init_logit_bias"] = float(weights["logit_bias"].reshape(-1)[0])
    _forget_downloads(config)
    if hasattr(clip_model.tokenizer, "save_pretrained"):
        clip_model.tokenizer.save_pretrained(folder)  # pyright: ignore[reportFunctionMemberAccess]
        name, told = _tokenizer_name(config["text_cfg"].get("hf_tokenizer_name") or clip_model.name)
        config["text_cfg"]["hf_tokenizer_name"] = name
        facts.notes += told
    facts.notes += _needs_elsewhere(config["text_cfg"].get("hf_model_name"))
    preprocess = {key: value for key, value in clip_model.preprocess.items() if key != "size"}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(half_if(options, weights), folder / WEIGHTS, metadata={"format": "pt"})
    return facts


def _tokenizer_name(name: str) -> tuple[str, list[str]]:
    """(what the config calls the tokenizer, what one should know of it).

    open_clip takes a folder's own files whatever the name is, and by `hf-hub:` those of the repository that it names.
    """
    if not os.path.exists(name):
        return name, []
    return os.path.basename(os.path.abspath(name)), [
        f"To load it by an `hf-hub:` name, set `hf_tokenizer_name` in {CONFIG} to the repository that it is pushed to."
    ]


def _needs_elsewhere(name: str | None) -> list[str]:
    """What of a text tower of transformers no folder of open_clip can hold."""
    if not name:
        return []
    where = "this machine's folder" if os.path.exists(name) else "the repository"
    return [
        f"open_clip reads the text tower's architecture from {where} {name}, which must be in reach where it is loaded."
    ]


def _forget_downloads(config: dict[str, Any]) -> None:
    """The folder has all weights: nothing is to be fetched for a tower before they are loaded."""
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False


def load(folder: Path) -> "LocalFolder":
    """The folder by `open_clip.create_model_and_transforms("local-dir:...")`, in fp32."""
    return LocalFolder(folder)


class LocalFolder:
    """A folder as open_clip loads it."""

    def __init__(self, folder: Path) -> None:
        with quiet():
            loaded: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            self.model, _, self.preprocess = loaded
            self.tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.model.eval()

    @torch.inference_mode()
    def encode_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return unit(self.model.encode_image(torch.stack([self.preprocess(picture) for picture in pictures])))

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        return unit(self.model.encode_text(self.tokenizer(list(captions))))


def usage(name: str, options: Options) -> str:
    """Ten lines of Python at most that embed a picture and a caption, with the folder of that name."""
    return f"""\
import sys, torch, open_clip
folder = {name!r}  # where this folder lies
sys.path.insert(0, folder)
from preprocess import prepare
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}")
with torch.inference_mode():
    images = model.eval().encode_image(preprocess(prepare("photo.jpg"))[None], normalize=True)
    texts = model.encode_text(tokenizer(["red leather ankle boots"]), normalize=True)
print(images @ texts.T)
"""
