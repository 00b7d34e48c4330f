"""The OpenCLIP model: building it, its preprocessing and tokenizer, its embeddings, and its checkpoints.

A checkpoint keeps the weights under open_clip's own names, so a fine-tuned model needs nothing of this suite. Each one
holds the two calls of plain open_clip that load it, under `open_clip_model` and `open_clip_tokenizer`, and saving prints
them: for a ViT-B-32 `open_clip.create_model_and_transforms('ViT-B-32', pretrained='checkpoints/final_checkpoint.pt')`,
with further arguments where mean, resizing or activation are not open_clip's defaults. One difference stays: open_clip
lays transparent pictures on black, this suite on white.
"""

import contextlib
import difflib
import json
import logging
import math
import re
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import download_pretrained_from_hf
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_finetuning.model import class_token, packed_text
from clip_finetuning.model.architecture import (
    check_architecture,
    check_colours,
    check_name,
    check_preprocess,
    least_parameters,
)
from clip_finetuning.model.open_clip_call import QUICK, open_clip_calls
from clip_finetuning.model.preprocessing import ImageTransform, normalize
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import printable

AUTOCAST_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class ClipModel:
    """An OpenCLIP model with what belongs to it."""

    model: torch.nn.Module
    tokenizer: object  # list of N captions -> (N, context_length) int64
    preprocess: dict  # open_clip's preprocessing config: size, mean, std, interpolation, resize_mode, fill_color
    name: str  # OpenCLIP's name of the architecture
    pretrained: str  # tag or file of the starting weights, empty for random ones
    device: torch.device
    config: dict  # the architecture, as open_clip's config files have it


# ----------------------------------------------------------------------------------------------- building


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
        name, config = _with_activation_of(name, config, pretrained)
    clip_model = _build(name, config, pretrained, cache_dir, device, seed)
    if not pretrained and ":" not in name:
        print(f"{name}: random weights, because MODEL_PRETRAINED is empty (seed {seed})")
    return _with_image_settings(clip_model, image)


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
        architecture, recipe = _assume(path, *architecture)
    clip_model = _build(*architecture, "", cache_dir, device)
    clip_model.pretrained = str(path)
    size = clip_model.preprocess["size"]
    clip_model.preprocess = {**recipe, "size": size} if recipe else check_preprocess(known, path, size)
    _load_weights(clip_model, checkpoint, path)
    return _with_image_settings(clip_model, image)


def _build(name, config, pretrained, cache_dir, device, seed=0):
    """Let open_clip build the model; its many ways to fail become one line each."""
    torch.manual_seed(seed)
    options = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
    try:
        with _quiet(), _known_to_open_clip(name, config):
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
    preprocess = _plain(open_clip.get_model_preprocess_cfg(model))
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


@contextlib.contextmanager
def _quiet():
    """open_clip logs each failure before it raises it, and warns of what `create_model` says better."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


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


def _with_activation_of(name, config, tag):
    """OpenAI's and some other weights were trained with QuickGELU: (name, architecture) of the model that has it.

    open_clip only warns of the mismatch and then computes wrong embeddings.
    """
    if config.get("quick_gelu") or not open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"):
        return name, config
    print(f"{name}: weights '{tag}' were trained with QuickGELU, so the model is {name}{QUICK}")
    return f"{name}{QUICK}", open_clip.get_model_config(f"{name}{QUICK}") or {**config, "quick_gelu": True}


# ---------------------------------------------------------------------------------------- preprocessing


def _assume(path, name, config):
    """((name, architecture), preprocessing but for the size) of weights that do not say how pictures are prepared.

    A tag in the file's name tells it. Else it is what all published weights of the architecture have in common, or
    open_clip's default. Either way one line says so.
    """
    tag = _tag_in(Path(path).stem, name)
    published = [open_clip.get_pretrained_cfg(name, t) for t in open_clip.list_pretrained_tags_by_model(name)]
    recipes = [_recipe(known) for known in published]
    if tag is not None:
        recipe = _recipe(open_clip.get_pretrained_cfg(name, tag))
        name, config = _with_activation_of(name, config, tag)
        why = f"taken, because its name tells the tag '{tag}'"
    elif recipes and all(recipe == recipes[0] for recipe in recipes):
        recipe, why = recipes[0], f"assumed, because all published weights of {name} have this preprocessing"
    else:
        recipe, why = _recipe({}), "assumed, because the file does not tell"
    activation = "QuickGELU" if config.get("quick_gelu") else "GELU"
    if tag is None and f"{name}{QUICK}" in open_clip.list_models():
        activation += f" (MODEL_NAME={name}{QUICK} for QuickGELU)"
    change = "" if tag else "; IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION change it"
    how = (
        f"mean {recipe['mean']}, std {recipe['std']}, {recipe['resize_mode']}, {recipe['interpolation']}, {activation}"
    )
    print(f"{path}: {how} {why}{change}")
    return (name, config), recipe


def _recipe(known):
    """A preprocessing config without its size, from the entries of a tag; the rest is open_clip's default."""
    default = _plain(asdict(open_clip.transform.PreprocessCfg()))
    return {key: _plain(known.get(key) or value) for key, value in default.items() if key != "size"}


def _tag_in(stem, name):
    """The tag that a file's name begins with, alone or after the name of the model, as in `vit_b_32-laion2b_e16-af8d`."""
    stem, model = _folded(stem), _folded(name.removesuffix(QUICK))
    for prefix in (f"{model}_quickgelu_", f"{model}_"):
        stem = stem.removeprefix(prefix)
    tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if f"{stem}_".startswith(f"{_folded(tag)}_")]
    return max(tags, key=len, default=None)


def _folded(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def image_settings(args):
    """The preprocessing that IMAGE_MEAN, IMAGE_STD, IMAGE_RESIZE_MODE and IMAGE_INTERPOLATION ask for, {} for none."""
    asked = {}
    for key in ("mean", "std"):
        text = getattr(args, f"image_{key}")
        if text is not None:
            knob = f"IMAGE_{key.upper()}"
            try:
                asked[key] = [float(part) for part in text.split(",")]
            except ValueError:
                raise ValueError(f"{knob}={text} is not allowed: it takes three numbers such as 0.5,0.5,0.5") from None
            check_colours(asked[key], knob, above=0 if key == "std" else None)
    for key in ("resize_mode", "interpolation"):
        if getattr(args, f"image_{key}") is not None:
            asked[key] = getattr(args, f"image_{key}")
    return asked


def _with_image_settings(clip_model, image):
    """The model with the preprocessing that the user asked for; a line says what that replaces."""
    for key, value in (image or {}).items():
        if clip_model.preprocess[key] != value:
            print(f"{clip_model.name}: IMAGE_{key.upper()}={value} takes the place of {clip_model.preprocess[key]}")
            clip_model.preprocess[key] = value
    return clip_model


def add_logit_bias(clip_model):
    """Give a model without one SigLIP's logit bias, -10, and its starting scale, ln 10 (Zhai et al. 2023, section 3.2)."""
    model = clip_model.model
    if getattr(model, "logit_bias", None) is None:
        model.logit_bias = torch.nn.Parameter(torch.full_like(model.logit_scale.data, -10.0))
        with torch.no_grad():
            model.logit_scale.fill_(torch.tensor(10.0).log())


def is_untrained(model):
    """Whether a model still has random weights, wherever they came from: no bias of a normalisation has left zero.

    A model without such biases counts as trained.
    """
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
    biases = [m.bias for m in model.modules() if isinstance(m, norms) and m.bias is not None]
    return bool(biases) and not any(bias.any() for bias in biases)


def training_mode(model, learn_statistics):
    """Switch to training; the statistics of BatchNorm layers stay what they are unless `learn_statistics`.

    Statistics of a whole pre-training would be drowned by those of a few small batches, and would make a sample's
    embedding depend on how a batch is cut into micro-batches and processes.
    """
    model.train()
    if not learn_statistics:
        for norm in batch_norms(model):
            norm.eval()


def batch_norms(model):
    """The BatchNorm layers of a model, as ResNets have them."""
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def count_parameters(model):
    """(all parameters, trainable parameters) of a module."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)


# ----------------------------------------------------------------------------------- device and precision


def pick_device(name="auto", local_rank=0):
    """The torch device of a name; `auto` takes CUDA, then Apple's MPS, then the CPU. `local_rank` chooses the GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0][:120]
        raise ValueError(f"DEVICE={name} cannot be used here ({reason}); set DEVICE=auto or cpu") from error
    return device


def pick_precision(name, device):
    """`fp16`, `bf16` or `fp32`; `auto` takes what is fast and safe on the device.

    CUDA: bf16 where the hardware has it (Ampere and later), else fp16. CPU: bf16 if it multiplies matrices faster here.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and _bf16_is_faster() else "fp32"


def _bf16_is_faster(rounds=15):
    """Whether the CPU multiplies matrices of a small transformer's size faster in bf16.

    Best times of many turns, so that what else runs on the machine does not decide.
    """
    best = {}
    for _ in range(rounds):
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            start = time.perf_counter()
            a @ b
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.bfloat16] < 0.8 * best[torch.float32]


def autocast(device, precision):
    """The autocast context of a precision; none for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES[precision])


def training_attention(device, precision):
    """The context of a training step, forward and backward, that chooses its attention kernels.

    On the CPU in bf16 the fused kernel's backward pass takes 3 to 8 times as long as that of its parts (torch 2.15), up
    to half of a step. In fp32, and on a GPU, the choice is torch's.
    """
    if device.type == "cpu" and precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


# ---------------------------------------------------------------------------------------------- embedding


def image_transform(clip_model, train, reduced_decode=False):
    """The picture pipeline of the model, encoded bytes -> (3, H, W) uint8; a random crop only if `train`.

    `reduced_decode` lets training decode large JPEGs at a fraction of their size.
    """
    wanted = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
    return ImageTransform(
        **{key: clip_model.preprocess[key] for key in wanted}, train=train, reduced_decode=reduced_decode
    )


def encode_images(clip_model, images):
    """(B, 3, H, W) uint8 -> (B, D) float32 of unit length, on the model's device.

    In training without what the last block computes for nobody; else exactly open_clip's embeddings.
    """
    images = images.to(clip_model.device, non_blocking=True)
    pixels = normalize(images, clip_model.preprocess["mean"], clip_model.preprocess["std"])
    model = clip_model.model
    features = class_token.encode_image(model, pixels) if model.training else model.encode_image(pixels)
    return F.normalize(features.float(), dim=-1)


def encode_texts(clip_model, tokens):
    """(B, context_length) int64 -> (B, D) float32 of unit length, on the model's device.

    In training without the padding, which is faster and differs in the last bits; else exactly open_clip's embeddings.
    """
    tokens = tokens.to(clip_model.device, non_blocking=True)
    model = clip_model.model
    features = packed_text.encode_text(model, tokens) if model.training else model.encode_text(tokens)
    return F.normalize(features.float(), dim=-1)


# -------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path, clip_model, state_dict=None, **fields):
    """Write a checkpoint whole or not at all: weights, architecture, preprocessing, and `fields` (plain data, tensors).

    `state_dict` replaces the model's current weights (an average of them, for example). A logit bias that the
    architecture does not have goes beside the weights, so that open_clip can load them.
    """
    weights = dict(clip_model.model.state_dict() if state_dict is None else state_dict)
    extra = {}
    if clip_model.config.get("init_logit_bias") is None and "logit_bias" in weights:
        extra["logit_bias"] = weights.pop("logit_bias")
    name, config, preprocess = clip_model.name, clip_model.config, clip_model.preprocess
    model_call, tokenizer_call = open_clip_calls(name, config, preprocess, path)
    content = {
        "state_dict": weights,
        "model_name": name,
        "model_config": config,
        "pretrained": clip_model.pretrained,
        "preprocess": preprocess,
        "open_clip_model": model_call,
        "open_clip_tokenizer": tokenizer_call,
        **extra,
        **fields,
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch's zip writer makes of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    padding = preprocess["fill_color"] if preprocess["resize_mode"] == "longest" else 0
    but = f" (but it pads pictures with 0, this suite with {padding})" if padding else ""
    print(f"plain open_clip loads {path} with{but}:\n  {model_call}\n  {tokenizer_call}")


def read_checkpoint(path, mapped=False):
    """A checkpoint file as a dictionary with at least `state_dict`, on the CPU, without running code from it.

    Takes this suite's files, open_clip_train's, files with `model_state_dict` or `model`, bare state dicts and safetensors.
    `mapped` reads a tensor only when it is looked at, out of pages that all processes share: for whoever needs a few
    numbers of gigabytes, or copies each tensor once. Until the last of them is gone the file must not be written to.
    Raises FileNotFoundError, or ValueError if the file is damaged or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; train first, or give its path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = _load(path, mapped)
    except Exception as error:  # zip, pickle and safetensors errors have no common class
        reason = str(error).split("\n")[0][:160]
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged or holds more than plain weights ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds no weights: expected a dictionary, found {type(content).__name__}")
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


def _load(path, mapped):
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


def _bare_key(key):
    """A parameter's name without what DistributedDataParallel and torch.compile put before it, in either order."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", key)


def _load_weights(clip_model, checkpoint, path):
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
            with _quiet():
                open_clip.load_checkpoint(model, str(path), strict=True)
            return
        except Exception as error:  # a conversion may fail in any way
            counts = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
            differences = "; ".join(f"{len(keys)} {what} ({keys[0]} ...)" for what, keys in counts.items() if keys)
            raise ValueError(
                f"{path} does not hold the weights of {clip_model.name}: {differences}; set MODEL_NAME to its architecture"
            ) from error
    model.load_state_dict(weights)


def _plain(value):
    """Tuples become lists, as they do in a checkpoint that is read back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
