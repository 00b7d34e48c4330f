"""LoRA additions in the files of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors, both ways.

Modules are named as in transformers' CLIPModel and SiglipModel, where queries, keys and values are apart as our pairs are; an
adapter to open_clip's own modules is read too. What a PEFT file may hold beside (DoRA, biases, whole modules) is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_finetuning.model.fingerprint import SCALARS
from clip_finetuning.model.lora import Base, matrices
from clip_finetuning.model.lora_file import Saved
from clip_finetuning.model.low_rank import Lora, by_weight, parts_of
from clip_finetuning.runtime.text import printable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Ways to begin the pairs that leave the base's weights as they are; the others that have a name change them.
LEAVE_THE_BASE = ("gaussian", "orthogonal", "eva")
# Up to this version, PEFT adds the pair of nn.MultiheadAttention's output twice whenever it computes (its pull request 3774).
TWICE, TWICE_UP_TO = ".base_layer.out_proj", (0, 21, 2)
KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
BLOCKS = {
    r"visual\.(?:transformer\.resblocks|trunk\.blocks)\.(\d+)\.(.+)": "vision_model.encoder.layers",
    r"(?:text\.)?transformer\.resblocks\.(\d+)\.(.+)": "text_model.encoder.layers",
}
LAYERS = {
    "attn.in_proj_weight": "self_attn.{}_proj",
    "attn.qkv.weight": "self_attn.{}_proj",
    "attn.out_proj.weight": "self_attn.out_proj",
    "attn.proj.weight": "self_attn.out_proj",
    **dict.fromkeys(("mlp.c_fc.weight", "mlp.fc1.weight"), "mlp.fc1"),
    **dict.fromkeys(("mlp.c_proj.weight", "mlp.fc2.weight"), "mlp.fc2"),
}
POOLING = {f"visual.trunk.attn_pool.mlp.fc{n}.weight": f"vision_model.head.mlp.fc{n}" for n in (1, 2)}


def module_name(weight: str, part: str) -> str | None:
    """The module of transformers that holds a weight of open_clip's, or its `part` q, k or v; None if there is none."""
    if weight in POOLING:
        return POOLING[weight]
    for pattern, layers in BLOCKS.items():
        match = re.fullmatch(pattern, weight)
        if match and match[2] in LAYERS:
            return f"{layers}.{match[1]}.{LAYERS[match[2]].format(part)}"
    return None


# ----------------------------------------------------------------------------------------------------------- writing


def adapter(saved: Saved, path: object) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(adapter_config.json, adapter_model.safetensors) of additions; ValueError where transformers has no such module.

    The scalars of the loss have no place there. Embeddings do not need them.
    """
    tensors: dict[str, torch.Tensor] = {}
    homeless = []
    for weight, pairs in by_weight({k: v for k, v in saved.additions.items() if k not in SCALARS}).items():
        for part in parts_of(pairs):
            module = module_name(weight, part)
            if module is None:
                homeless.append(weight)
                continue
            for side in "AB":
                tensors[f"{PREFIX}{module}.lora_{side}.weight"] = pairs[f"{side}{part}"].contiguous()
    if homeless:
        more = f" and {len(set(homeless)) - 1} others" if len(set(homeless)) > 1 else ""
        raise ValueError(
            f"{path} has additions to {homeless[0]}{more}, which are no modules of transformers' CLIPModel or SiglipModel that "
            "PEFT can add to: take the merged model, by --form open_clip"
        )
    modules = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": saved.base.pretrained,
        "r": saved.settings.rank,
        "lora_alpha": saved.settings.alpha,
        "lora_dropout": saved.settings.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    return config, tensors


# ----------------------------------------------------------------------------------------------------------- reading


def is_adapter(path: str | Path) -> bool:
    """Whether a path is a folder that PEFT wrote."""
    return Path(path, CONFIG).is_file()


def read(folder: str | Path) -> dict[str, Any]:
    """An adapter's folder as `read_checkpoint` returns a file: its config and tensors under `peft`, no weights.

    Raises ValueError, or FileNotFoundError for a folder without tensors.
    """
    from safetensors.torch import load_file

    if not Path(folder, WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} has {CONFIG} but no {WEIGHTS}: save the adapter as safetensors")
    try:
        config = json.loads(Path(folder, CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(Path(folder, WEIGHTS))
    except Exception as error:  # damage; json's and safetensors' errors have no common class
        raise ValueError(printable(f"{folder} is no adapter that can be read ({error})")[:300]) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is an adapter of another kind than LoRA: its peft_type must be LORA")
    return {"state_dict": {}, "peft": {"config": config, "tensors": tensors}}


def base_of(checkpoint: Mapping[str, Any]) -> str:
    """The weights that an adapter says it belongs to, which is for the user to have."""
    return str(checkpoint["peft"]["config"].get("base_model_name_or_path") or "")


def saved(folder: object, checkpoint: Mapping[str, Any], model: nn.Module) -> Saved:
    """The additions of an adapter for a model with the weights of its base; ValueError for what has no place there.

    Ranks and scales may differ between modules: all become pairs of the largest rank, with the scale worked into B.
    """
    config, tensors = checkpoint["peft"]["config"], checkpoint["peft"]["tensors"]
    begun = config.get("init_lora_weights", True)
    if not (begun is None or isinstance(begun, bool) or begun in LEAVE_THE_BASE):
        raise ValueError(
            printable(
                f"{folder}: its pairs began as {str(begun)[:40]}, which changes the weights that they add to: save it again with PEFT's "
                "path_initial_model_for_weight_conversion"
            )
        )
    places, found = _places(model), {matrix.name: matrix for matrix in matrices(model)}
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    twice = False
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        place = places.get(match["module"].replace(".base_layer", "")) if match else None
        if match is None or place is None or tensor.ndim != 2:
            raise ValueError(
                printable(f"{folder}: {key} has no place in this model; it takes LoRA pairs of its layers alone")
            )
        weight, part = place
        scale = _scale(folder, config, match["module"], tensor.shape[1]) if match["side"] == "B" else 1.0
        if match["side"] == "B" and match["module"].endswith(TWICE) and _adds_twice(config):
            scale, twice = 2 * scale, True
        pairs.setdefault(weight, {})[f"{match['side']}{part}"] = tensor.float() * scale
    if twice:
        what = f"is added twice, as PEFT {config.get('peft_version') or ''}".rstrip() + " did when it trained it"
        print(printable(f"{folder}: the pair of each attention's output {what}"))
    rank = max((side.shape[0] for sides in pairs.values() for name, side in sides.items() if name[0] == "A"), default=0)
    if not rank:
        raise ValueError(f"{folder} holds no LoRA pairs")
    additions = {}
    for weight, sides in pairs.items():
        additions |= _whole(folder, weight, sides, found[weight].parts, _shape(found[weight]), rank)
    return Saved(Lora(rank, float(rank)), Base("", base_of(checkpoint), ""), additions)


def _shape(matrix):
    return getattr(matrix.module, matrix.attribute).shape


def _places(model: nn.Module) -> dict[str, tuple[str, str]]:
    """{module of transformers or of the model itself: (weight, part)}."""
    found = {}
    for matrix in matrices(model):
        found[matrix.name.removesuffix(".weight").removesuffix(".in_proj_weight")] = matrix.name, ""
        for part in matrix.parts:
            name = module_name(matrix.name, part)
            if name:
                found[name] = matrix.name, part
    return found


def _adds_twice(config):
    """Whether the PEFT that trained an adapter is one that added the pair of nn.MultiheadAttention's output twice."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", str(config.get("peft_version") or ""))
    return match is None or tuple(map(int, match.groups())) <= TWICE_UP_TO


def _scale(folder, config, module, rank):
    """alpha / rank of a module, or alpha / sqrt(rank) with rsLoRA."""
    try:
        own = config.get("alpha_pattern") or {}
        if not all(re.fullmatch(r"[\w.]+", name) for name in own):
            raise ValueError("patterns")
        alpha = float(next((own[name] for name in own if f".{module}".endswith(f".{name}")), config["lora_alpha"]))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, KeyError, ValueError, ZeroDivisionError, AttributeError):
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(
            f"{folder}: lora_alpha in {CONFIG} must be a number, and alpha_pattern have plain names of modules"
        )
    return scale


def _whole(folder, weight, sides, parts, shape, rank):
    """Pairs of one rank for all parts of a weight: those that an adapter leaves out add nothing."""
    names = [""] if "A" in sides or "B" in sides else parts
    rows = shape[0] // len(names)
    whole = {}
    for part in names:
        a, b = sides.get(f"A{part}"), sides.get(f"B{part}")
        if a is None and b is None:
            a, b = torch.zeros(rank, shape[1]), torch.zeros(rows, rank)
        if a is None or b is None or a.shape[1] != shape[1] or b.shape[0] != rows or a.shape[0] != b.shape[1]:
            raise ValueError(printable(f"{folder}: the pair for {weight} does not fit its {rows} x {shape[1]}"))
        missing = rank - len(a)
        whole[f"{weight}.A{part}"] = nn.functional.pad(a, (0, 0, 0, missing))
        whole[f"{weight}.B{part}"] = nn.functional.pad(b, (0, missing))
    return whole
