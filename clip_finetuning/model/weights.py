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
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch

from clip_finetuning.model import (
    beside,
    conversion,
    layouts,
    lora_file,
    peft_layout,
    sources,
    tokenizer_files,
    weight_files,
)
from clip_finetuning.model.clip_model import ClipModel, add_logit_bias
from clip_finetuning.model.fingerprint import SCALARS
from clip_finetuning.model.lora import merged
from clip_finetuning.model.low_rank import additions
from clip_finetuning.model.open_clip_call import open_clip_calls
from clip_finetuning.model.torch_archive import Thing
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import printable
from clip_finetuning.runtime.version import version

OURS = ("model_config", "preprocess", "version", "open_clip_model")  # what stands beside the name in this suite's files
START = "start.pt"  # beside the checkpoints of a run that is held to its start, or keeps a share of it


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
    extra: dict[str, object] = {}
    name, config, preprocess = clip_model.name, clip_model.config, clip_model.preprocess
    source = config["text_cfg"].get("hf_tokenizer_name")
    # A tokenizer of the user's own: whoever reads the checkpoint must not have to look for it.
    if source and (sources.is_source(name) or os.path.isdir(source)):
        extra[tokenizer_files.FIELD] = tokenizer_files.packed(clip_model.tokenizer)
    if clip_model.lora is not None and additions(weights):
        fields = {name: lora_file.trained(v) if name.endswith("_state_dict") else v for name, v in fields.items()}
        extra["lora"] = lora_file.content(clip_model.lora, weights)
        if alone:
            write(path, {"version": version(), **_head(clip_model), **extra, **fields})
            print(f"{path} holds LoRA additions alone, to {clip_model.name} with {clip_model.lora.base.pretrained}")
            return
        weights = merged({name: weight.cpu() for name, weight in weights.items()}, clip_model.lora.settings.scale)
    if clip_model.config.get("init_logit_bias") is None and "logit_bias" in weights:
        extra["logit_bias"] = weights.pop("logit_bias")
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
    write(path, content)
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


def write(path: str | os.PathLike, content: Mapping[str, object]) -> None:
    """Write a torch file whole or not at all; OSError if the disk does not take it."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch's zip writer makes of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def read_checkpoint(path: str | os.PathLike, mapped: bool = False) -> dict:
    """A checkpoint file as a dictionary with at least `state_dict`, on the CPU, without running code from it.

    `state_dict` is empty if there are LoRA's additions alone: of this suite, or a folder that PEFT wrote.
    Takes this suite's files, open_clip_train's, those of other trainers as `layouts.find` says, TorchScript, bare state
    dicts, safetensors, and folders of the hub. What had to be chosen or left out is printed.
    `mapped` reads a tensor only when it is looked at, out of pages that all processes share: for whoever needs a few
    numbers of gigabytes, or copies each tensor once. Until the last of them is gone the file must not be written to.
    Raises FileNotFoundError, or ValueError if the file is damaged or holds no weights.
    """
    if peft_layout.is_adapter(Path(path)):
        return peft_layout.read(Path(path))
    file = weight_files.resolve(Path(path))
    content, quick_gelu, remark = weight_files.read(file, mapped)
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds no weights: expected a dictionary, found {type(content).__name__}")
    if isinstance(content.get("lora"), dict) and "state_dict" not in content:  # additions alone
        return {**content, "state_dict": {}}
    if isinstance(content.get("state_dict"), dict) and isinstance(content.get("model_name"), str) and _is_ours(content):
        checkpoint, weights = content, content["state_dict"]
        weights = {str(key): value for key, value in weights.items() if isinstance(value, torch.Tensor)}
        if not weights:
            raise ValueError(f"checkpoint {path} holds no weights: no tensors under 'state_dict'")
        return {**checkpoint, "state_dict": weights}
    try:
        found = layouts.find(content)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} {error}") from None
    if told := "; ".join(filter(None, (remark, found.remark))):
        print(f"{path}: {told}")
    if isinstance(content, Thing) or not found.key:
        content = {}
    is_openai = quick_gelu or conversion.is_openai(found.weights)
    return {
        **{name: value for name, value in content.items() if name not in (*OURS, "model_name")},
        "state_dict": found.weights,
        "said": beside.look(file, found.weights),
        "is_openai": is_openai,
    }


def _is_ours(content):
    """Whether a file is as this suite writes it: other trainers have a `model_name` too, of their own words and with prefixes."""
    if any(name in content for name in OURS):
        return True
    is_plain = any(str(name).startswith("visual.") for name in content["state_dict"])
    return is_plain and content["model_name"] in open_clip.list_models()


def load_weights(clip_model: ClipModel, checkpoint: dict, path: str | os.PathLike) -> None:
    """Strictly load a checkpoint's weights; what does not fit is refused in one line, and what was computed anew is said."""
    model, weights = clip_model.model, dict(checkpoint["state_dict"])
    if isinstance(checkpoint.get("logit_bias"), torch.Tensor) or "logit_bias" in weights:
        add_logit_bias(clip_model)
    if isinstance(checkpoint.get("logit_bias"), torch.Tensor):
        weights["logit_bias"] = checkpoint["logit_bias"]
    for name, value in weights.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise ValueError(
                printable(f"{path}: {name} is no plain tensor of numbers (sparse, quantised, complex or without data)")
            )
    expected, told = model.state_dict(), []
    original = weights = conversion.without_buffers(weights, expected)
    if _differences(expected, weights):
        with quiet(), contextlib.suppress(Exception):  # a conversion may fail in any way: then it is no such layout
            # In single precision, since half-precision numbers cannot be interpolated.
            whole = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
            weights, told = conversion.converted(whole, model)
    for name in SCALARS:  # a scalar for some trainers, one element for others
        wanted = getattr(model, name, None)
        if name in weights and isinstance(wanted, torch.Tensor) and weights[name].numel() == wanted.numel():
            weights[name] = weights[name].reshape(wanted.shape)
    if differences := _differences(expected, weights):
        look = conversion.look_of(original)
        look = f"; its names are those of {look}" if look else ""
        raise ValueError(
            f"{path} does not hold the weights of {clip_model.name}: {differences}{look}; set MODEL_NAME to its architecture"
        )
    for name, value in weights.items():
        if expected[name].is_floating_point() and not value.is_floating_point():
            raise ValueError(
                printable(
                    f"{path}: {name} is in whole numbers ({value.dtype}), as quantised weights are, without the scale that makes "
                    "weights of them; save the model in floating point"
                )
            )
    if told:
        print(f"{path}: {'; '.join(told)}")
    model.load_state_dict(weights)


def _differences(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """How weights differ from those that a model has, in words; "" if only numbers do."""
    kinds = {
        "missing": [key for key in expected if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "of another shape": [
            key
            for key in expected
            if key in weights
            and weights[key].shape != expected[key].shape
            and not (key in SCALARS and weights[key].numel() == 1)
        ],
    }
    return "; ".join(f"{len(keys)} {what} ({printable(keys[0])} ...)" for what, keys in kinds.items() if keys)


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
