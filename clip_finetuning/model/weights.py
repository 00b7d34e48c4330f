"""Checkpoint files: written whole or not at all, read without running code from them.

A checkpoint keeps the weights under open_clip's own names, so a fine-tuned model needs nothing of this suite. Each one
holds the `version` of the suite that wrote it (none: 0.1.0), and the two calls of plain open_clip that load it, under
`open_clip_model` and `open_clip_tokenizer`; saving prints them: for a ViT-B-32 `open_clip.create_model_and_transforms('ViT-B-32', pretrained='checkpoints/final_checkpoint.pt')`,
with further arguments where mean, resizing or activation are not open_clip's defaults. One difference stays: open_clip
lays transparent pictures on black, this suite on white.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch

from clip_finetuning.model import lora_file, peft_layout
from clip_finetuning.model.clip_model import ClipModel, add_logit_bias
from clip_finetuning.model.lora import merged
from clip_finetuning.model.low_rank import additions
from clip_finetuning.model.open_clip_call import open_clip_calls
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.version import version


def save_checkpoint(
    path: str | os.PathLike,
    clip_model: ClipModel,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    alone: bool = False,
    **fields: Any,
) -> None:
    """Write a checkpoint whole or not at all: weights, architecture, preprocessing, and `fields` (plain data, tensors).

    `state_dict` replaces the model's current weights (an average of them, for example). A logit bias that the
    architecture does not have goes beside the weights, so that open_clip can load them. Of a model with low-rank
    additions the merged weights and the additions are written, or `alone` the additions.
    """
    weights = dict(clip_model.model.state_dict() if state_dict is None else state_dict)
    extra = {}
    if clip_model.lora is not None and additions(weights):
        fields = {name: lora_file.trained(v) if name.endswith("_state_dict") else v for name, v in fields.items()}
        extra["lora"] = lora_file.content(clip_model.lora, weights)
        if alone:
            _write(path, {"version": version(), **_head(clip_model), **extra, **fields})
            print(f"{path} holds LoRA additions alone, to {clip_model.name} with {clip_model.lora.base.pretrained}")
            return
        weights = merged({name: weight.cpu() for name, weight in weights.items()}, clip_model.lora.settings.scale)
    if clip_model.config.get("init_logit_bias") is None and "logit_bias" in weights:
        extra["logit_bias"] = weights.pop("logit_bias")
    name, config, preprocess = clip_model.name, clip_model.config, clip_model.preprocess
    model_call, tokenizer_call = open_clip_calls(name, config, preprocess, path)
    content = {
        "version": version(),
        "state_dict": weights,
        **_head(clip_model),
        "open_clip_model": model_call,
        "open_clip_tokenizer": tokenizer_call,
        **extra,
        **fields,
    }
    _write(path, content)
    padding = preprocess["fill_color"] if preprocess["resize_mode"] == "longest" else 0
    but = f" (but it pads pictures with 0, this suite with {padding})" if padding else ""
    print(f"plain open_clip loads {path} with{but}:\n  {model_call}\n  {tokenizer_call}")


def _head(clip_model):
    """What every checkpoint says of its model."""
    return {
        "model_name": clip_model.name,
        "model_config": clip_model.config,
        "pretrained": clip_model.pretrained,
        "preprocess": clip_model.preprocess,
    }


def _write(path, content):
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch's zip writer makes of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def read_checkpoint(path: str | os.PathLike, mapped: bool = False) -> dict:
    """A checkpoint file as a dictionary with at least `state_dict`, on the CPU, without running code from it.

    `state_dict` is empty if there are LoRA's additions alone: of this suite, or a folder that PEFT wrote.
    Takes this suite's files, open_clip_train's, files with `model_state_dict` or `model`, bare state dicts and safetensors.
    `mapped` reads a tensor only when it is looked at, out of pages that all processes share: for whoever needs a few
    numbers of gigabytes, or copies each tensor once. Until the last of them is gone the file must not be written to.
    Raises FileNotFoundError, or ValueError if the file is damaged or holds no weights.
    """
    path = Path(path)
    if peft_layout.is_adapter(path):
        return peft_layout.read(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; train first, or give its path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = _contents(path, mapped)
    except Exception as error:  # zip, pickle and safetensors errors have no common class
        reason = str(error).split("\n")[0][:160]
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged or holds more than plain weights ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds no weights: expected a dictionary, found {type(content).__name__}")
    if isinstance(content.get("lora"), dict) and "state_dict" not in content:  # additions alone
        return {**content, "state_dict": {}}
    found = next(
        (key for key in ("state_dict", "model_state_dict", "model") if isinstance(content.get(key), dict)), None
    )
    checkpoint = {**content, "state_dict": content.pop(found)} if found else {"state_dict": content}
    checkpoint["state_dict"] = {
        _bare_key(str(key)): value for key, value in checkpoint["state_dict"].items() if isinstance(value, torch.Tensor)
    }
    if not checkpoint["state_dict"]:
        raise ValueError(f"checkpoint {path} holds no weights: no tensors under 'state_dict' or at its top level")
    return checkpoint


def _contents(path: Path, mapped: bool) -> object:
    """The contents of a torch file, if asked for with its tensors mapped; it says so where a whole file cannot be."""
    refused = None
    if mapped:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a file of before torch 1.6, a file system without maps, damage: no common class
            refused = str(error).split("\n")[0][:100]
    content = torch.load(path, map_location="cpu", weights_only=True)
    if refused:
        print(f"{path} cannot be mapped into memory ({refused}), so it is read as a whole")
    return content


def _bare_key(key: str) -> str:
    """A parameter's name without what DistributedDataParallel and torch.compile put before it, in either order."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", key)


def load_weights(clip_model: ClipModel, checkpoint: dict, path: str | os.PathLike) -> None:
    """Strictly load a checkpoint's weights; what does not fit is refused in one line."""
    model, weights = clip_model.model, dict(checkpoint["state_dict"])
    if isinstance(checkpoint.get("logit_bias"), torch.Tensor) or "logit_bias" in weights:
        add_logit_bias(clip_model)
    if isinstance(checkpoint.get("logit_bias"), torch.Tensor):
        weights["logit_bias"] = checkpoint["logit_bias"]
    for name in ("logit_scale", "logit_bias"):  # a scalar for some trainers, one element for others
        wanted = getattr(model, name, None)
        if name in weights and isinstance(wanted, torch.Tensor) and weights[name].numel() == wanted.numel():
            weights[name] = weights[name].reshape(wanted.shape)
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    misshapen = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    if missing or unexpected or misshapen:
        try:  # OpenAI's, Apple's and others' layouts, position embeddings of another size: open_clip converts them
            with quiet():
                open_clip.load_checkpoint(model, str(path), strict=True)
            return
        except Exception as error:  # a conversion may fail in any way
            counts = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
            differences = "; ".join(f"{len(keys)} {what} ({keys[0]} ...)" for what, keys in counts.items() if keys)
            raise ValueError(
                f"{path} does not hold the weights of {clip_model.name}: {differences}; set MODEL_NAME to its architecture"
            ) from error
    model.load_state_dict(weights)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """open_clip logs each failure before it raises it, and warns of what `create_model` says better."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
