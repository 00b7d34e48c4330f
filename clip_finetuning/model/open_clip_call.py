"""The calls of plain open_clip that load a checkpoint of this suite, spelled out with every argument that matters.

open_clip knows a tag's preprocessing but not a file's, and ignores the weights it is given for a `hf-hub:` name: the
right call depends on the model. It needs neither this suite nor the file that the architecture came from.
"""

from os import PathLike

import open_clip
from open_clip.transform import PreprocessCfg

QUICK = "-quickgelu"
# By whether it is a CoCa; any two models: an own architecture takes the place of all they say.
BASES = {False: "ViT-B-32", True: "coca_ViT-B-32"}


def open_clip_calls(name: str, config: dict, preprocess: dict, path: str | PathLike) -> tuple[str, str]:
    """(call that gives model and transforms, call that gives the tokenizer) as Python for a checkpoint at `path`."""
    base, architecture = _architecture(name, config)
    arguments = {"pretrained": str(path), **architecture, **_image_arguments(preprocess)}
    tokenizer = _tokenizer(name, config) if base != name and ":" not in name else _call("get_tokenizer", name)
    if architecture == {"force_quick_gelu": True}:
        tokenizer = _call("get_tokenizer", base)
    return _call("create_model_and_transforms", base, **arguments), tokenizer


def _call(function: str, *values: object, **arguments: object) -> str:
    parts = [*map(repr, values), *(f"{key}={value!r}" for key, value in arguments.items())]
    return f"open_clip.{function}({', '.join(parts)})"


def _architecture(name: str, config: dict) -> tuple[str, dict]:
    """(a model that open_clip knows, the arguments that make it this architecture)."""
    if _is_known(name, config):
        return name, {}
    plain = {key: value for key, value in config.items() if key != "quick_gelu"}
    if config.get("quick_gelu") is True and _is_known(name.removesuffix(QUICK), plain):
        return name.removesuffix(QUICK), {"force_quick_gelu": True}
    towers = {key: dict(value) for key, value in config.items() if isinstance(value, dict)}
    others = {key: value for key, value in config.items() if key not in towers and key != "custom_text"}
    if towers["vision_cfg"].get("timm_model_name"):
        towers["vision_cfg"]["timm_model_pretrained"] = False
    if towers["text_cfg"].get("hf_model_name"):
        towers["text_cfg"]["hf_model_pretrained"] = False
    custom = config.get("custom_text") or towers["text_cfg"].get("hf_model_name")
    return BASES["multimodal_cfg" in config], {**({"force_custom_text": True} if custom else {}), **others, **towers}


def _is_known(name: str, config: dict) -> bool:
    """Whether open_clip has this architecture under this name."""
    return ":" not in name and open_clip.get_model_config(name) == config


def _image_arguments(preprocess: dict) -> dict:
    """The arguments for what differs from open_clip's defaults for a file; a padding colour has none."""
    arguments = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        value = tuple(preprocess[key]) if isinstance(preprocess[key], list) else preprocess[key]
        if value != getattr(PreprocessCfg, key):
            arguments[f"image_{key}"] = value
    return arguments


def _tokenizer(name: str, config: dict) -> str:
    """The tokenizer of an architecture that open_clip does not know, by the rules of open_clip.get_tokenizer."""
    text = config["text_cfg"]
    length = text.get("context_length", open_clip.CLIPTextCfg.context_length)
    options = {"context_length": length, **(text.get("tokenizer_kwargs") or {})}
    if text.get("hf_tokenizer_name"):
        mode = {"tokenizer_mode": text["tokenizer_mode"]} if text.get("tokenizer_mode") else {}
        return _call("tokenizer.HFTokenizer", text["hf_tokenizer_name"], **mode, **options)
    if "siglip" in name.lower():
        vocabulary = "gemma" if "siglip2" in name.lower() else "mc4" if "i18n" in name.lower() else "c4-en"
        return _call("tokenizer.SigLipTokenizer", vocabulary, context_length=length)
    return _call("get_tokenizer", BASES[False], **options)
