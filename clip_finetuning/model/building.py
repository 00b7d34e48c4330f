"""Building a model: what a name, a tag or a file stands for, and what of it is for a file to say."""

import contextlib
import difflib
import json
import re
from pathlib import Path

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf

from clip_finetuning.model.architecture import check_architecture, check_name, check_preprocess, least_parameters
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.image_recipe import assume, plain, with_activation_of, with_image_settings
from clip_finetuning.model.weights import load_weights, quiet, read_checkpoint
from clip_finetuning.runtime.text import printable


def create_model(name, pretrained="", cache_dir=None, device="cpu", seed=0, image=None):
    """Build a model with its tokenizer and preprocessing.

    `name` is an OpenCLIP name, a `hf-hub:` or `local-dir:` one, or the path of a config JSON; `pretrained` a tag, a
    weights file, or empty for random weights drawn from `seed`; `image` what `image_settings` returned. Raises ValueError
    or FileNotFoundError naming the remedy.
    """
    if cache_dir and not Path(cache_dir).is_dir():
        raise FileNotFoundError(f"MODEL_CACHE_DIR={cache_dir} is no folder; create it, or unset it for the default one")
    name, config = _named(name, cache_dir)
    pretrained = pretrained or ""
    is_tag = bool(pretrained) and _is_tag(name, pretrained)
    if pretrained and not is_tag:
        if not Path(pretrained).is_file():
            tags = (
                ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none, this model has no published weights"
            )
            raise ValueError(
                f"MODEL_PRETRAINED={pretrained} is neither a file nor a tag of {name}; its tags: {tags}; "
                "empty means random weights"
            )
        return _load(pretrained, read_checkpoint(pretrained), device, cache_dir, (name, config), None, image)
    if is_tag:
        name, config = with_activation_of(name, config, pretrained)
    clip_model = _build(name, config, pretrained, cache_dir, device, seed)
    if not pretrained and ":" not in name:
        print(f"{name}: random weights, because MODEL_PRETRAINED is empty (seed {seed})")
    return with_image_settings(clip_model, image)


def load_model(path, device="cpu", cache_dir=None, name=None, default_name=None, checkpoint=None, image=None):
    """Build the model of a checkpoint file and load its weights.

    The architecture comes from the checkpoint. A `name` that contradicts it is refused; a file that does not say what
    it holds (bare weights, another trainer's file) is taken to be of `name`, else of `default_name`. `checkpoint` is what
    `read_checkpoint(path)` returned, if it was read already; `image` what `image_settings` returned.
    """
    checkpoint = checkpoint or read_checkpoint(path, mapped=True)
    named = None if name is None else _named(name, cache_dir)
    return _load(path, checkpoint, device, cache_dir, named, name or default_name, image)


def _load(path, checkpoint, device, cache_dir, named, user_name, image):
    """The model of a checkpoint; `named` is the (name, config) that it must be of, if any, `user_name` what the user said."""
    saved = _saved_architecture(checkpoint, path, named, user_name, cache_dir)
    if saved is not None and named is not None and saved[1] != named[1]:
        if saved[1] != {**named[1], "quick_gelu": True}:
            raise ValueError(
                f"{path} is a checkpoint of {saved[0]}, but MODEL_NAME is {named[0]}; set MODEL_NAME={saved[0]}, "
                "or choose a checkpoint of the model you named"
            )
        print(f"{path} is a checkpoint of {saved[0]}: {named[0]} with QuickGELU, as its weights were trained")
    if saved is None and user_name is None and named is None:
        raise ValueError(f"{path} does not say which architecture it holds; set MODEL_NAME")
    architecture = saved or named or _named(user_name, cache_dir)
    known, recipe = checkpoint.get("preprocess"), None
    if known is None:
        architecture, recipe = assume(path, *architecture)
    clip_model = _build(*architecture, "", cache_dir, device)
    clip_model.pretrained = str(path)
    size = clip_model.preprocess["size"]
    clip_model.preprocess = {**recipe, "size": size} if recipe else check_preprocess(known, path, size)
    load_weights(clip_model, checkpoint, path)
    return with_image_settings(clip_model, image)


def _build(name, config, pretrained, cache_dir, device, seed=0):
    """Let open_clip build the model; its many ways to fail become one line each."""
    torch.manual_seed(seed)
    options = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
    try:
        with quiet(), _known_to_open_clip(name, config):
            model = open_clip.create_model(
                name, pretrained=pretrained or None, cache_dir=cache_dir, device=device, pretrained_text=False
            )
            tokenizer = open_clip.get_tokenizer(name, cache_dir=cache_dir, **options)
    except Exception as error:  # hub clients differ in what they raise
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"model {name} with weights '{pretrained}' could not be had ({reason}); the first use downloads weights and "
            "tokenizer: connect to the network once, or set MODEL_CACHE_DIR to a folder that holds them, or "
            "MODEL_PRETRAINED to a local file, or to nothing for random weights"
        ) from error
    preprocess = plain(open_clip.get_model_preprocess_cfg(model))
    preprocess = check_preprocess(preprocess, name, getattr(model.visual, "image_size", preprocess.get("size")))
    return ClipModel(model, tokenizer, preprocess, name, pretrained, torch.device(device), config)


@contextlib.contextmanager
def _known_to_open_clip(name, config):
    """Within the context open_clip finds this architecture under this name; no file is written, no other model changes."""
    if ":" in name:
        yield
        return
    models = open_clip.factory._MODEL_CONFIGS
    before = models.get(name)
    models[name] = config
    try:
        yield
    finally:
        if before is None:
            del models[name]
        else:
            models[name] = before


def _named(name, cache_dir=None):
    """(name, architecture) of what the user named; ValueError with the nearest names if there is no such model."""
    if _is_fetched(name):
        config = _fetched_config(name, cache_dir)
        return name, check_architecture(config, name, own=_own_sources(name, config))
    if name.endswith(".json"):
        config = _read_config(name)
        return re.sub(r"[^\w.-]", "-", Path(name).stem), check_architecture(config, f"MODEL_NAME={name}", own=config)
    name = name.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        near = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 3, 0.5)) or "ViT-B-32"
        raise ValueError(
            f"MODEL_NAME={name} is no OpenCLIP model; near names: {near}; or give the path of a config JSON"
        )
    return name, config


def _is_fetched(name):
    """Whether open_clip takes architecture, weights and tokenizer of a name from a folder or from the hub."""
    return isinstance(name, str) and name.startswith(("hf-hub:", "local-dir:"))


def _fetched_config(name, cache_dir):
    """The architecture of a `hf-hub:` or `local-dir:` name."""
    place, _, identifier = name.partition(":")
    try:
        if place == "hf-hub":
            path = download_pretrained_from_hf(identifier, filename="open_clip_config.json", cache_dir=cache_dir)
        else:
            path = Path(identifier, "open_clip_config.json")
        return json.loads(Path(path).read_text(encoding="utf-8"))["model_cfg"]
    except Exception as error:  # hub clients differ in what they raise
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"MODEL_NAME={name}: its open_clip_config.json with a model_cfg could not be had ({reason})"
        ) from error


def _own_sources(name, config):
    """What may come from where the user pointed: a repository's tokenizer from itself, a folder's whatever it is called."""
    place, _, identifier = name.partition(":")
    tokenizer = identifier if place == "hf-hub" else config["text_cfg"].get("hf_tokenizer_name")
    return {"text_cfg": {"hf_tokenizer_name": tokenizer}}


def _read_config(path):
    """The object of an OpenCLIP config JSON."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"MODEL_NAME={path}: there is no such config file")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"MODEL_NAME={path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or any(key not in config for key in ("embed_dim", "vision_cfg", "text_cfg")):
        raise ValueError(f"MODEL_NAME={path} is no OpenCLIP config: it needs embed_dim, vision_cfg and text_cfg")
    return config


def _saved_architecture(checkpoint, path, named, user_name, cache_dir):
    """(name, architecture) that a checkpoint says it holds, or None; ValueError if it is not for a file to say."""
    name, config = checkpoint.get("model_name"), checkpoint.get("model_config")
    if name is None:
        return None
    if _is_fetched(name):
        if named is not None and named[0] == name:
            return named
        if name == user_name:
            return _named(name, cache_dir)
        raise ValueError(
            f"{path} is a checkpoint of {printable(name)}, which would be fetched; if you trust that, set MODEL_NAME to it"
        )
    check_name(name, path)
    if config is None:
        config = open_clip.get_model_config(name)
        if config is None:
            raise ValueError(f"{path} is a checkpoint of {name}, which open_clip does not know; set MODEL_NAME")
        return name, config
    own = named[1] if named else _read_config(user_name) if (user_name or "").endswith(".json") else None
    config = check_architecture(config, path, own)
    held = _bytes_held(checkpoint["state_dict"])
    if least_parameters(config) > held:
        raise ValueError(
            f"{path} says that it holds a model of {least_parameters(config):,} parameters, but has {held:,} bytes of them"
        )
    return name, config


def _bytes_held(weights):
    """The memory of some tensors; what they share counts once, and a repeated number as one."""
    storages = (tensor.untyped_storage() for tensor in weights.values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _is_tag(name, pretrained):
    return pretrained.lower().replace("-", "_") in [t.lower() for t in open_clip.list_pretrained_tags_by_model(name)]
