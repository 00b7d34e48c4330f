"""What transformers' config.json and preprocessor_config.json say, in open_clip's words."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg

from clip_finetuning.model.architecture import SECTIONS

Config = dict[str, Any]

# What CLIPConfig and SiglipConfig take for a field that a file leaves out.
CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
CLIP_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
SIGLIP_VISION = {"hidden_size": 768, "image_size": 224, "patch_size": 16}
SIGLIP_TEXT = {"vocab_size": 32000, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh"}
SIGLIP_SIZES = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}  # timm's words for widths
CLIP_EOS, ARGMAX = 49407, 2  # the end of a text is CLIP's largest number; 2 tells transformers to take the largest
TANH = "gelu_pytorch_tanh"
# Where a recipe for pictures is written, and under which key.
PICTURES = {"preprocessor_config.json": None, "processor_config.json": "image_processor"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def architecture_of(config: Config) -> Config | None:
    """open_clip's architecture of a config.json, None for one that open_clip does not have.

    Raises ValueError, TypeError or LookupError for values that are none.
    """
    kind = config.get("model_type")
    if kind == "clip":
        return _clip(config)
    return _siglip(config) if kind in ("siglip", "siglip2") else None


def _clip(config: Config) -> Config | None:
    vision, text = (_section(config, *which) for which in (("vision", CLIP_VISION), ("text", CLIP_TEXT)))
    if vision["hidden_act"] != text["hidden_act"] or vision["hidden_act"] not in ("quick_gelu", "gelu"):
        return None
    texts = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "heads": text["num_attention_heads"],
        **_tower(text),
    }
    if text["eos_token_id"] not in (CLIP_EOS, ARGMAX):
        texts |= {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    found = {
        "embed_dim": config.get("projection_dim", 512),
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_tower(vision),
        },
        "text_cfg": texts,
    }
    return {**found, "quick_gelu": True} if vision["hidden_act"] == "quick_gelu" else found


def _section(config: Config, which: str, defaults: Config) -> Config:
    """vision_config or text_config; older files have what they change under another key."""
    return {**defaults, **(config.get(f"{which}_config") or {}), **(config.get(f"{which}_config_dict") or {})}


def _tower(fields: Config) -> Config:
    width = fields["hidden_size"]
    tower = {"width": width, "layers": fields["num_hidden_layers"], "mlp_ratio": fields["intermediate_size"] / width}
    if fields["layer_norm_eps"] != 1e-5:  # open_clip's
        tower["norm_kwargs"] = {"eps": fields["layer_norm_eps"]}
    return tower


def _siglip(config: Config) -> Config | None:
    """That of open_clip's own SigLIP models which has these sizes."""
    vision, text = (_section(config, *which) for which in (("vision", SIGLIP_VISION), ("text", SIGLIP_TEXT)))
    timm = f"vit_{SIGLIP_SIZES.get(vision['hidden_size'])}_patch{vision['patch_size']}_siglip_{vision['image_size']}"
    sizes = {"vocab_size": text["vocab_size"], "context_length": text["max_position_embeddings"]}
    for name in open_clip.list_models():
        known = open_clip.get_model_config(name) or {}
        if known["vision_cfg"].get("timm_model_name") == timm and sizes.items() <= known["text_cfg"].items():
            return with_tanh(known) if text["hidden_act"] == TANH else known
    return None


def activation_of(config: Config) -> str:
    """The activation of a config.json, of its texts if the towers have two. Raises ValueError for one that open_clip lacks."""
    defaults = CLIP_TEXT if config.get("model_type") == "clip" else SIGLIP_TEXT
    activation = _section(config, "text", defaults)["hidden_act"]
    if config.get("model_type") == "clip" and _section(config, "vision", CLIP_VISION)["hidden_act"] != activation:
        raise ValueError("its towers have two activations, which open_clip's models do not")
    if activation not in ("quick_gelu", "gelu", TANH):
        raise ValueError(f"open_clip has no activation {str(activation)[:40]}")
    return activation


def with_tanh(config: Config) -> Config:
    """A SigLIP architecture whose texts are computed with the approximate GELU, as transformers does for all of them."""
    return {**config, "text_cfg": {**config["text_cfg"], "act_kwargs": {"approximate": "tanh"}}}


def published_name(config: Config) -> str | None:
    """open_clip's name of an architecture, None if it has none."""
    wanted = essentials(config)
    for name in open_clip.list_models():
        known: Config = open_clip.get_model_config(name) or {}
        if essentials(known) == wanted and bool(known.get("quick_gelu")) == bool(config.get("quick_gelu")):
            return name
    return None


def essentials(config: Config) -> Config:
    """What makes an architecture another one: everything but activation, tokenizer and where training starts."""
    other = (
        "act_kwargs",
        "hf_tokenizer_name",
        "tokenizer_kwargs",
        "tokenizer_mode",
        "timm_model_pretrained",
        "patch_dropout",
    )
    found = {"embed_dim": config["embed_dim"], "coca": "multimodal_cfg" in config}
    for section, defaults in SECTIONS.items():
        if section in config:
            fields = {name: getattr(defaults, name) for name in defaults.__dataclass_fields__} | config[section]
            if not fields.get("timm_model_name") and isinstance(fields["layers"], int):
                fields["mlp_ratio"] = int(fields["width"] * fields["mlp_ratio"])
            found[section] = {name: value for name, value in fields.items() if name not in other}
    return found


def recipe_in(folder: Path) -> Config | None:
    """What a folder says of how pictures are prepared: preprocessor_config.json, or what transformers 5 writes; None for nothing.

    Raises ValueError, LookupError, TypeError or AttributeError for a file that is none.
    """
    for name, key in PICTURES.items():
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            if key is None or key in found:
                return preprocess_of(found[key] if key else found)
    return None


def preprocess_of(config: Config) -> Config:
    """The preprocessing of a preprocessor_config.json but for the size, as open_clip has it.

    Raises LookupError or TypeError for values that are none.
    """
    size, crops = config.get("size", {}), config.get("do_center_crop", True)
    shortest = crops and (isinstance(size, int) or "shortest_edge" in size)
    return {
        "mode": "RGB",
        "mean": list(config["image_mean"]),
        "std": list(config["image_std"]),
        "interpolation": RESAMPLE.get(config.get("resample", 3), PreprocessCfg.interpolation),
        "resize_mode": "shortest" if shortest else "squash",
        "fill_color": asdict(PreprocessCfg())["fill_color"],
    }


def is_word(text: object) -> bool:
    """Whether a value is a plain name, as may become a model's."""
    return isinstance(text, str) and bool(re.fullmatch(r"[\w.-]+", text))
