"""What lies beside weights and speaks for them: the hub's config, open_clip's or transformers'."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from clip_finetuning.model import conversion, hf_config
from clip_finetuning.model.architecture import Architecture, check_architecture

OPEN_CLIP, TRANSFORMERS = "open_clip_config.json", "config.json"


class Said(NamedTuple):
    """What a config says of the weights beside it."""

    where: Path
    architecture: Architecture | None  # None for a SigLIP that open_clip does not have under any name
    preprocess: dict | None  # what it says of it, but for the size
    activation: str  # quick_gelu, gelu or gelu_pytorch_tanh; of the texts, if the towers differ


def look(path: str | Path, weights: dict[str, Any]) -> Said | None:
    """What the hub's config beside a file of weights, or in their folder, says; None where there is none, or another's.

    transformers' speaks for weights under transformers' names alone. A config that cannot be understood says nothing,
    and one line tells that.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    of_transformers = conversion.is_transformers(weights)
    where = folder / (TRANSFORMERS if of_transformers else OPEN_CLIP)
    if not where.is_file():
        return None
    try:
        config = _read(where)
        return _transformers(where, config, folder) if of_transformers else _open_clip(where, config)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        print(f"{where} lies beside {path}, but is not understood ({str(error)[:200]})")
        return None


def _read(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    return content


def _open_clip(where: Path, config: dict) -> Said:
    """open_clip_config.json: the architecture and how pictures are prepared."""
    architecture = _checked(config["model_cfg"], where)
    tanh = (architecture["text_cfg"].get("act_kwargs") or {}).get("approximate") == "tanh"
    activation = "quick_gelu" if architecture.get("quick_gelu") else hf_config.TANH if tanh else "gelu"
    return Said(where, _named(architecture, where), config.get("preprocess_cfg"), activation)


def _transformers(where: Path, config: dict, folder: Path) -> Said:
    """config.json, and how pictures are prepared where a file says it."""
    architecture, activation = hf_config.architecture_of(config), hf_config.activation_of(config)
    if architecture is not None:
        text = architecture["text_cfg"]
        if text["vocab_size"] != hf_config.CLIP_TEXT["vocab_size"] and "hf_tokenizer_name" not in text:
            text["hf_tokenizer_name"] = str(folder)
        architecture = _named(_checked(architecture, where), where)
    return Said(where, architecture, hf_config.recipe_in(folder), activation)


def _checked(architecture: dict, where: Path) -> dict:
    """An architecture of the user's own folder: its tokenizer may be the folder's."""
    own = {"text_cfg": {"hf_tokenizer_name": architecture["text_cfg"].get("hf_tokenizer_name")}}
    return check_architecture(architecture, where, own)


def _named(config: dict, where: Path) -> Architecture:
    """The architecture under open_clip's name, else under that of its folder."""
    folder = where.absolute().parent.name
    name = hf_config.published_name(config) or (folder if hf_config.is_word(folder) else "model")
    return Architecture(name, config)
