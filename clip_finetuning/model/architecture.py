"""Architectures and preprocessing that came in a file: accepted field by field, or refused in one line.

A file from elsewhere is data. Its architecture goes to open_clip, which hands some fields on to timm and transformers:
they download what a field names, and may run code that lies there. So every field must be one of open_clip's own, of
its type and of a size that can be built, and a source of code or weights must be one that a config of open_clip names,
or what the user named. `trust_remote_code` never passes.

First come the questions that other modules ask, then the check of one field, then what open_clip itself declares.
"""

import copy
import functools
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from open_clip.coca_model import MultimodalCfg
from open_clip.transform import PreprocessCfg

from clip_finetuning.runtime.text import printable

SECTIONS = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
WORD = re.compile(r"[\w.-]*")
# Twice and more what the largest published models have. `least_parameters` bounds their product.
LIMITS = {
    "embed_dim": 16_384,
    "width": 16_384,
    "layers": 128,
    "heads": 256,
    "head_width": 1024,
    "dim_head": 1024,
    "mlp_ratio": 32,
    "image_size": 2048,
    "patch_size": 2048,
    "context_length": 4096,
    "vocab_size": 2_000_000,
    "attn_pooler_queries": 4096,
    "n_queries": 4096,
    "attn_pooler_heads": 256,
}
LARGEST = 2_000_000  # any other number
LONGEST_GRID = 128  # patches along a side of a picture
# What a file may say to a tokenizer: open_clip's own options, none of which is a source. What its layers may be told.
OPTIONS = {
    "tokenizer_kwargs": {
        "clean": ("lower", "whitespace", "canonicalize"),
        "reduction_mask": ("simple", "random", "shuffle", "syntax", ""),
        "strip_sep_token": bool,
    },
    "act_kwargs": {"approximate": ("none", "tanh")},
    "norm_kwargs": {"eps": float, "elementwise_affine": bool, "bias": bool},
}
HUB_FIELDS = ("hf_model_name", "hf_tokenizer_name")
IMAGE_CHOICES = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),
    "resize_mode": ("shortest", "longest", "squash"),
}


class Architecture(NamedTuple):
    """An OpenCLIP architecture, as open_clip's config files have it, under the name that it goes by."""

    name: str
    config: dict


def is_architecture(config: object) -> bool:
    """Whether a value of a file has the parts of an architecture."""
    return isinstance(config, dict) and all(key in config for key in ("embed_dim", "vision_cfg", "text_cfg"))


def check_name(name: object, where: object) -> str:
    """`name` if it is a plain name such as ViT-B-32; else ValueError: it may become a path or a download."""
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and name.strip("."):
        return name
    raise ValueError(
        f"{where}: {_shown(name)} is no name of a model; a name has letters, digits, '_', '-' and '.' alone"
    )


def check_architecture(config: Any, where: object, own: dict | None = None) -> dict:
    """A copy of an open_clip architecture in which nothing but known fields of their types and sizes is left to see.

    `own` is an architecture whose sources the user named. Raises ValueError naming `where`, the field and the rule.
    """
    if not is_architecture(config):
        raise ValueError(f"{where} holds no OpenCLIP architecture: it needs embed_dim, vision_cfg and text_cfg")
    for key, value in config.items():
        if key in SECTIONS:
            _check_section(key, value, where, (own or {}).get(key) or {})
        else:
            _check_field("", key, value, _top_level_hints(), where)
    _check_grid(config["vision_cfg"], where)
    return copy.deepcopy(config)


def least_parameters(config: dict) -> int:
    """A lower bound of the numbers that an accepted architecture holds; 0 for a tower of timm or transformers."""
    count = 0
    for section, defaults in SECTIONS.items():
        if section not in config or config[section].get("timm_model_name") or config[section].get("hf_model_name"):
            continue
        fields = {name: getattr(defaults, name) for name in defaults.__dataclass_fields__} | config[section]
        width, layers = fields["width"], fields["layers"]
        if isinstance(layers, (list, tuple)):  # a ResNet, whose stages double the width
            count += sum(13 * blocks * (width * 2**stage) ** 2 for stage, blocks in enumerate(layers))
            continue
        count += int(layers * width**2 * (4 + 2 * fields["mlp_ratio"]))
        if section == "text_cfg":
            count += (fields["vocab_size"] + fields["context_length"]) * width
        count += config["embed_dim"] * width
    return count


def check_preprocess(preprocess: Any, where: object, size: Any) -> dict:
    """open_clip's preprocessing config if each field is sound and made for pictures of the model's `size`."""
    wanted = set(PreprocessCfg.__dataclass_fields__)
    if not isinstance(preprocess, dict) or set(preprocess) != wanted:
        raise ValueError(f"{where}: its preprocessing must have {', '.join(sorted(wanted))}, not {_shown(preprocess)}")
    for key, choices in IMAGE_CHOICES.items():
        if not isinstance(preprocess[key], str) or preprocess[key] not in choices:
            raise ValueError(f"{where}: {key}={_shown(preprocess[key])} is not one of {', '.join(choices)}")
    for key in ("mean", "std"):
        check_colours(preprocess[key], f"{where}: {key}", above=0 if key == "std" else None)
    if type(preprocess["fill_color"]) is not int or not 0 <= preprocess["fill_color"] <= 255:
        raise ValueError(f"{where}: fill_color={_shown(preprocess['fill_color'])} is not a whole number from 0 to 255")
    if _pair(preprocess["size"]) != _pair(size):
        raise ValueError(f"{where}: size={_shown(preprocess['size'])} is not the size of the model's pictures, {size}")
    return {**preprocess, "size": size}


def check_colours(values: Any, what: str, above: float | None = None) -> None:
    """ValueError unless there are three finite numbers, of red, green and blue."""
    good = isinstance(values, (list, tuple)) and len(values) == 3 and all(_fits(value, float) for value in values)
    if not good or (above is not None and min(values) <= above) or max(map(abs, values)) > 1000:
        rule = "three numbers, for red, green and blue" + (f", above {above}" if above is not None else "")
        raise ValueError(f"{what}={_shown(values)} is not allowed: it takes {rule}")


def _pair(size):
    return list(size) if isinstance(size, (list, tuple)) else [size, size]


# ------------------------------------------------------------------------------------------------------------- a field


def _check_section(section: str, fields: Any, where: object, own: dict[str, Any]) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: {section} must be an object, not {_shown(fields)}")
    hints = typing.get_type_hints(SECTIONS[section])
    for key, value in fields.items():
        if key == "tokenizer_kwargs" and isinstance(value, dict) and "trust_remote_code" in value:
            raise ValueError(
                f"{where}: {section}.{key} asks for trust_remote_code, which runs code from a download; remove it"
            )
        if key in (*HUB_FIELDS, "timm_model_name", "tokenizer_kwargs") and value is not None and value == own.get(key):
            continue
        if key in OPTIONS and value is not None:
            _check_options(section, key, value, where)
        else:
            _check_field(section, key, value, hints, where)
        if key in HUB_FIELDS and value and value not in _named_on_the_hub():
            rule = "no config of open_clip names it, so it may be anybody's"
            raise ValueError(f"{where}: {section}.{key}={_shown(value)} is refused: {rule}; {_remedy(where)}")
        if key == "timm_model_name" and value and not _is_timm_architecture(value):
            rule = "it must be the plain name of an architecture that timm knows"
            raise ValueError(f"{where}: {section}.{key}={_shown(value)} is refused: {rule}; {_remedy(where)}")


def _remedy(where):
    return f"if you trust {where}, name its architecture yourself: MODEL_NAME=CONFIG.json"


def _check_options(section: str, key: str, options: Any, where: object) -> None:
    for option, value in options.items() if isinstance(options, dict) else [(None, options)]:
        wanted = OPTIONS[key].get(option) if isinstance(option, str) else None
        if not (
            isinstance(value, str) and value in wanted if isinstance(wanted, tuple) else wanted and _fits(value, wanted)
        ):
            known = ", ".join(OPTIONS[key])
            raise ValueError(f"{where}: {section}.{key} holds {_shown(option)}={_shown(value)}; a file may set {known}")


def _check_field(section: str, key: Any, value: Any, hints: dict[str, Any], where: object) -> None:
    """ValueError unless a value has the type that open_clip declares and a size in bounds."""
    field = ".".join(filter(None, (section, key if isinstance(key, str) else _shown(key))))
    if key not in hints:
        raise ValueError(
            f"{where}: {printable(field)} is no field of an architecture in open_clip {open_clip.__version__}"
        )
    if value is None and (section, key) in _sometimes_null():
        return
    if not _fits(value, hints[key]):
        raise ValueError(f"{where}: {field}={_shown(value)} is not allowed: open_clip takes {_in_words(hints[key])}")
    for part in value if isinstance(value, (list, tuple)) else [value]:
        limit = LIMITS.get(key, LARGEST)
        lowest = 0 if key == "mlp_ratio" else 1 if key in LIMITS else -limit
        if isinstance(part, (int, float)) and not lowest <= part <= limit:
            raise ValueError(f"{where}: {field}={_shown(value)} is not allowed: it must be from {lowest} to {limit:,}")
        if isinstance(part, str) and key not in HUB_FIELDS and not WORD.fullmatch(part):
            raise ValueError(f"{where}: {field}={_shown(value)} is not allowed: it must be one plain word")


def _check_grid(vision, where):
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16) or 16
    longest = max(size) if isinstance(size, (list, tuple)) else size
    if longest > LONGEST_GRID * patch and not vision.get("timm_model_name"):
        raise ValueError(
            f"{where}: vision_cfg has {longest // patch} patches of {patch} pixels along a side of {longest}; it must have "
            f"at most {LONGEST_GRID}"
        )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file or a checkpoint is of a declared type; a whole number is a float too."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        wanted = typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or (wanted[-1] is not ... and len(value) != len(wanted)):
            return False
        return all(_fits(part, wanted[0]) for part in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _in_words(hint):
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _shown(value: object) -> str:
    """A value of any type for a message, short and harmless to a terminal."""
    return printable(
        repr(value) if isinstance(value, (str, int, float, list, tuple, dict, type(None))) else type(value).__name__
    )[:80]


# ----------------------------------------------------------------------------------------------------- open_clip's own


@functools.cache
def _top_level_hints() -> dict[str, Any]:
    hints = {"custom_text": bool}
    for model in (open_clip.CoCa, open_clip.CustomTextCLIP, open_clip.CLIP):
        hints |= typing.get_type_hints(model.__init__)
    return {key: hint for key, hint in hints.items() if key not in ("cast_dtype", "return", *SECTIONS)}


@functools.cache
def _published() -> list[dict]:
    """The architectures that the installed open_clip brings."""
    folder = Path(open_clip.__file__).parent / "model_configs"
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


@functools.cache
def _named_on_the_hub() -> set[str]:
    """The tokenizers and text towers that open_clip's own configs name."""
    return {config["text_cfg"][key] for config in _published() for key in HUB_FIELDS if config["text_cfg"].get(key)}


@functools.cache
def _sometimes_null() -> set[tuple[str, str]]:
    """Fields that are declared otherwise but null in a config of open_clip."""
    sections = [(section, config.get(section, {})) for config in _published() for section in SECTIONS]
    return {(section, key) for section, fields in sections for key, value in fields.items() if value is None}


def _is_timm_architecture(name: Any) -> bool:
    """Whether timm builds it from its own code; `hf-hub:` and `local-dir:` names it would fetch."""
    if any(config["vision_cfg"].get("timm_model_name") == name for config in _published()):
        return True
    try:
        import timm
    except ImportError:
        return False
    return timm.is_model(name)
