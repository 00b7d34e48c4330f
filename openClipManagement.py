"""The OpenCLIP model: building it, its preprocessing and tokenizer, its embeddings, and its checkpoints.

A checkpoint keeps the weights under open_clip's own names, so a fine-tuned model needs nothing of this suite:
`open_clip.create_model_and_transforms("ViT-B-32", pretrained="checkpoints/final_checkpoint.pt")`.
"""

import contextlib
import difflib
import json
import logging
import math
import re
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import class_token
import packed_text
from atomic_write import atomic_write
from image_transforms import ImageTransform, normalize

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

    @property
    def config(self):
        """The architecture as a dictionary, or None for a `hf-hub:` or `local-dir:` name."""
        return None if ":" in self.name else open_clip.get_model_config(self.name)


# ----------------------------------------------------------------------------------------------- building


def create_model(name, pretrained="", cache_dir=None, device="cpu", seed=0):
    """Build a model with its tokenizer and preprocessing.

    `name` is an OpenCLIP name, a `hf-hub:` or `local-dir:` one, or the path of a config JSON; `pretrained` a tag, a
    weights file, or empty for random weights drawn from `seed`. Raises ValueError or FileNotFoundError naming the remedy.
    """
    if cache_dir and not Path(cache_dir).is_dir():
        raise FileNotFoundError(f"MODEL_CACHE_DIR={cache_dir} is no folder; create it, or unset it for the default one")
    name, pretrained = _known_name(name), pretrained or ""
    name = _matching_activation(name, pretrained)
    weights_file = pretrained if pretrained and not _is_tag(name, pretrained) else None
    if weights_file and not Path(weights_file).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none, this model has no published weights"
        raise ValueError(
            f"MODEL_PRETRAINED={pretrained} is neither a file nor a tag of {name}; its tags: {tags}; "
            "empty means random weights"
        )
    if weights_file:
        return load_model(weights_file, device, cache_dir, name=name)
    clip_model = _build(name, pretrained, cache_dir, device, seed)
    if not pretrained and ":" not in name:
        print(f"{name}: random weights, because MODEL_PRETRAINED is empty (seed {seed})")
    return clip_model


def load_model(path, device="cpu", cache_dir=None, name=None, default_name=None, checkpoint=None):
    """Build the model of a checkpoint file and load its weights.

    The architecture comes from the checkpoint. A `name` that contradicts it is refused; a file that does not say what
    it holds (bare weights, another trainer's file) is taken to be of `name`, else of `default_name`. `checkpoint` is what
    `read_checkpoint(path)` returned, if it was read already.
    """
    checkpoint = checkpoint or read_checkpoint(path, mapped=True)
    saved_name, saved_config = checkpoint.get("model_name"), checkpoint.get("model_config")
    if name is not None and saved_name is not None:
        name = _known_name(name)
        if open_clip.get_model_config(name) != saved_config if saved_config else name != saved_name:
            raise ValueError(
                f"{path} is a checkpoint of {saved_name}, but MODEL_NAME is {name}; set MODEL_NAME={saved_name}, "
                "or choose a checkpoint of the model you named"
            )
    if saved_name is not None:
        name = _register_config(saved_name, saved_config) if saved_config else saved_name
    elif name is None and default_name is None:
        raise ValueError(f"{path} does not say which architecture it holds; set MODEL_NAME")
    clip_model = _build(_known_name(name or default_name), "", cache_dir, device)
    clip_model.pretrained = str(path)
    if checkpoint.get("preprocess"):
        clip_model.preprocess = dict(checkpoint["preprocess"])
    _load_weights(clip_model, checkpoint, path)
    return clip_model


def _build(name, pretrained, cache_dir, device, seed=0):
    """Let open_clip build the model; its many ways to fail become one line each."""
    torch.manual_seed(seed)
    try:
        with _quiet():
            model = open_clip.create_model(
                name, pretrained=pretrained or None, cache_dir=cache_dir, device=device, pretrained_text=False
            )
            tokenizer = open_clip.get_tokenizer(name, cache_dir=cache_dir)
    except Exception as error:  # hub clients differ in what they raise
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"model {name} with weights '{pretrained}' could not be had ({reason}); the first use downloads weights and "
            "tokenizer: connect to the network once, or set MODEL_CACHE_DIR to a folder that holds them, or "
            "MODEL_PRETRAINED to a local file, or to nothing for random weights"
        ) from error
    preprocess = _plain(open_clip.get_model_preprocess_cfg(model))
    return ClipModel(model, tokenizer, preprocess, name, pretrained, torch.device(device))


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


def _known_name(name):
    """The registered OpenCLIP name for a name or a config JSON; ValueError with the nearest names if there is none."""
    if ":" in name and name.split(":")[0] in ("hf-hub", "local-dir"):
        return name
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"MODEL_NAME={name}: there is no such config file")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            complete = all(key in config for key in ("embed_dim", "vision_cfg", "text_cfg"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"MODEL_NAME={name} is not valid JSON: {error}") from error
        if not complete:
            raise ValueError(f"MODEL_NAME={name} is no OpenCLIP config: it needs embed_dim, vision_cfg and text_cfg")
        open_clip.add_model_config(path)
        return path.stem
    name = name.replace("/", "-")
    if open_clip.get_model_config(name) is None:
        near = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 3, 0.5)) or "ViT-B-32"
        raise ValueError(
            f"MODEL_NAME={name} is no OpenCLIP model; near names: {near}; or give the path of a config JSON"
        )
    return name


def _register_config(name, config):
    """Make open_clip know an architecture that came inside a checkpoint; returns the name it is known by."""
    if open_clip.get_model_config(name) != config:
        folder = Path(tempfile.mkdtemp())
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(folder / f"{name}.json")
        shutil.rmtree(folder)  # the registry has read it
    return name


def _is_tag(name, pretrained):
    return pretrained.lower().replace("-", "_") in [t.lower() for t in open_clip.list_pretrained_tags_by_model(name)]


def _matching_activation(name, pretrained):
    """OpenAI's and some other weights were trained with QuickGELU: name the architecture that has it.

    open_clip only warns of the mismatch and then computes wrong embeddings.
    """
    quick = f"{name}-quickgelu"
    tag_is_quick = pretrained and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False)
    if tag_is_quick and quick in open_clip.list_models():
        print(f"{name}: weights '{pretrained}' were trained with QuickGELU, so the model is {quick}")
        return quick
    return name


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
    if clip_model.config is not None and "init_logit_bias" not in clip_model.config and "logit_bias" in weights:
        extra["logit_bias"] = weights.pop("logit_bias")
    content = {
        "state_dict": weights,
        "model_name": clip_model.name,
        "model_config": clip_model.config,
        "pretrained": clip_model.pretrained,
        "preprocess": clip_model.preprocess,
        **extra,
        **fields,
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch's zip writer makes of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


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
        _bare_key(key): value for key, value in checkpoint["state_dict"].items() if isinstance(value, torch.Tensor)
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
    if "logit_bias" in checkpoint or "logit_bias" in weights:
        add_logit_bias(clip_model)
    if "logit_bias" in checkpoint:
        weights["logit_bias"] = checkpoint["logit_bias"]
    for name in ("logit_scale", "logit_bias"):  # a scalar for some trainers, one element for others
        if name in weights and isinstance(getattr(model, name, None), torch.Tensor):
            weights[name] = weights[name].reshape(getattr(model, name).shape)
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
