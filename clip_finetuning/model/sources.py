"""`hf-hub:` and `local-dir:` names: what lies in the repository or the folder that the user named.

Both hold a config, open_clip's or transformers', weights, and the tokenizer if it is not open_clip's own.
"""

import json
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from open_clip.pretrained import download_pretrained_from_hf

from clip_finetuning.model import hf_config, hub, weight_files
from clip_finetuning.model.architecture import Architecture, check_architecture
from clip_finetuning.model.beside import OPEN_CLIP, TRANSFORMERS

HUB, FOLDER = "hf-hub:", "local-dir:"
TRANSFORMERS_WEIGHTS = "model.safetensors"


class Source(NamedTuple):
    """What a name stands for."""

    architecture: Architecture
    preprocess: dict  # what its config says of it
    tokenizer: str | None  # where its files are: a folder or a repository; None for open_clip's own


def is_source(name: object) -> bool:
    """Whether a name tells where architecture, weights and tokenizer are."""
    return isinstance(name, str) and name.startswith((HUB, FOLDER))


def look_up(name: str, cache_dir: str | None) -> Source:
    """Architecture, preprocessing and tokenizer of a name. Raises ValueError if they are not to be had."""
    place, _, identifier = name.partition(":")
    config, of_transformers = _config(name, cache_dir)
    if of_transformers:
        try:
            model_cfg = hf_config.architecture_of(config)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"MODEL_NAME={name}: its config.json is not understood ({in_short(error)})") from error
        if model_cfg is None:
            raise ValueError(f"MODEL_NAME={name}: open_clip has no such architecture as its config.json says")
        preprocess = _pictures(name, cache_dir)
        if model_cfg["text_cfg"]["vocab_size"] != hf_config.CLIP_TEXT["vocab_size"]:
            model_cfg["text_cfg"]["hf_tokenizer_name"] = identifier
    else:
        model_cfg, preprocess = config["model_cfg"], config.get("preprocess_cfg") or {}
    named = model_cfg["text_cfg"].get("hf_tokenizer_name")
    # A repository's tokenizer may come from itself, a folder's is its own whatever it is called.
    own = {"text_cfg": {"hf_tokenizer_name": identifier if place == "hf-hub" else named}}
    architecture = Architecture(name, check_architecture(model_cfg, name, own=own))
    return Source(architecture, preprocess, (identifier if place == "local-dir" else named) if named else None)


def weights_of(name: str, cache_dir: str | None) -> Path | None:
    """The file of weights; None for a folder that has none. Raises ValueError if a repository's are not to be had."""
    place, _, identifier = name.partition(":")
    if place == "local-dir":
        return weight_files.in_folder(Path(identifier))
    return Path(_fetched(name, [hub.WEIGHTS, TRANSFORMERS_WEIGHTS], cache_dir, "its weights"))


def is_cached(name: str, cache_dir: str | None) -> bool:
    """Whether nothing of a name would be downloaded."""
    place, _, identifier = name.partition(":")
    names = (hub.SAFE_WEIGHTS, hub.WEIGHTS, TRANSFORMERS_WEIGHTS)
    return place == "local-dir" or hub.of_repository(identifier, *names).is_cached(cache_dir)


def _config(name: str, cache_dir: str | None) -> tuple[dict[str, Any], bool]:
    """(the config, whether it is transformers')."""
    place, _, identifier = name.partition(":")
    try:
        if place == "local-dir":
            path = next((p for file in (OPEN_CLIP, TRANSFORMERS) if (p := Path(identifier, file)).is_file()), None)
            path = path or Path(identifier, OPEN_CLIP)
        else:
            path = Path(_fetched(name, [OPEN_CLIP, TRANSFORMERS], cache_dir, "its config"))
        config = json.loads(path.read_text(encoding="utf-8"))
        of_transformers = path.name == TRANSFORMERS
        if not of_transformers:
            config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")  # raises for what is none
        return config, of_transformers
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"MODEL_NAME={name}: its open_clip_config.json with a model_cfg could not be had ({in_short(error)})"
        ) from error


def _pictures(name: str, cache_dir: str | None) -> dict[str, Any]:
    """How pictures are prepared, {} where no file says it, which one line tells."""
    place, _, identifier = name.partition(":")
    reason = "there is no preprocessor_config.json"
    try:
        folder = Path(identifier)
        if place == "hf-hub":
            folder = Path(_fetched(name, list(hf_config.PICTURES), cache_dir, "how pictures are prepared")).parent
        if (recipe := hf_config.recipe_in(folder)) is not None:
            return recipe
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = in_short(error)
    print(f"{name} does not say how pictures are prepared, so OpenCLIP's usual way is assumed ({reason})")
    return {}


def _fetched(name: str, files: list[str], cache_dir: str | None, what: str) -> str:
    """The path of the first of some files that a repository has, downloaded if need be."""
    identifier = name.removeprefix(HUB)
    reason = ""
    with hub.looked_at([hub.of_repository(identifier, *_safe(files))], cache_dir) as unreachable:
        for file in files:
            try:
                return download_pretrained_from_hf(identifier, filename=file, cache_dir=cache_dir)
            except Exception as error:  # hub clients differ in what they raise
                reason = reason or in_short(error)
    raise ValueError(f"{name}: {what} could not be had ({unreachable or reason})")


def _safe(files: list[str]) -> list[str]:
    return [hub.SAFE_WEIGHTS, *files[1:], files[0]] if files[0] == hub.WEIGHTS else files[::-1]


def in_short(error: Exception) -> str:
    """What an error of many lines says, on one, and no word of it cut."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
