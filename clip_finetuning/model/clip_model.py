"""An OpenCLIP model with what belongs to it, its embeddings, and what training wants to know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from clip_finetuning.model import fast_towers, tuning
from clip_finetuning.model.fast_towers import OpenClip
from clip_finetuning.model.lora import Added
from clip_finetuning.model.preprocessing import ImageTransform, normalize

Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass
class ClipModel:
    """An OpenCLIP model with what belongs to it."""

    model: OpenClip
    tokenizer: Tokenizer  # N captions -> (N, context_length) int64
    preprocess: dict  # open_clip's preprocessing config: size, mean, std, interpolation, resize_mode, fill_color
    name: str  # OpenCLIP's name of the architecture
    pretrained: str  # tag or file of the starting weights, empty for random ones
    device: torch.device
    config: dict  # the architecture, as open_clip's config files have it
    lora: Added | None = None  # the low-rank additions that its towers have


# ---------------------------------------------------------------------------------------------------------- embeddings


def image_transform(
    clip_model: ClipModel, train: bool, reduced_decode: bool = False, *, crop_scale: float = 0.9, flip: bool = False
) -> ImageTransform:
    """The picture pipeline of the model, encoded bytes -> (3, H, W) uint8; a random crop, or a mirrored one, only if `train`.

    `reduced_decode` lets training decode large JPEGs at a fraction of their size; for the others see `ImageTransform`.
    """
    wanted = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
    config = {key: clip_model.preprocess[key] for key in wanted}
    return ImageTransform(**config, train=train, crop_scale=crop_scale, flip=flip, reduced_decode=reduced_decode)


def encode_images(clip_model: ClipModel, images: torch.Tensor, fast: bool = False) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> (B, D) float32 of unit length, on the model's device.

    In training, and if `fast`, without what the last block computes for nobody; else exactly open_clip's embeddings.
    """
    images = images.to(clip_model.device, non_blocking=True)
    pixels = normalize(images, clip_model.preprocess["mean"], clip_model.preprocess["std"])
    model = clip_model.model
    features = fast_towers.encode_image(model, pixels) if fast or model.training else model.encode_image(pixels)
    return F.normalize(features.float(), dim=-1)


def encode_texts(clip_model: ClipModel, tokens: torch.Tensor, fast: bool = False) -> torch.Tensor:
    """(B, context_length) int64 -> (B, D) float32 of unit length, on the model's device.

    In training, and if `fast`, without the padding, which differs in the last bits; else exactly open_clip's embeddings.
    """
    tokens = tokens.to(clip_model.device, non_blocking=True)
    model = clip_model.model
    features = fast_towers.encode_text(model, tokens) if fast or model.training else model.encode_text(tokens)
    return F.normalize(features.float(), dim=-1)


# ------------------------------------------------------------------------------------------------------------ training


def has_logit_bias(clip_model: ClipModel) -> bool:
    """Whether a model has SigLIP's bias."""
    return getattr(clip_model.model, "logit_bias", None) is not None


def checkpoint_gradients(clip_model: ClipModel) -> None:
    """Let both towers compute their activations again in the backward pass: less memory, slower."""
    model: Any = clip_model.model
    model.set_grad_checkpointing()
    encoder = getattr(getattr(model, "text", None), "transformer", None)
    if encoder is not None and hasattr(encoder, "gradient_checkpointing_enable"):
        # The kind that transformers took before 5.0 sees no gradient behind inputs that need none: locked embeddings.
        encoder.gradient_checkpointing_enable({"use_reentrant": False})


def is_finite(model: torch.nn.Module) -> bool:
    """Whether every weight is a number."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def is_untrained(model: torch.nn.Module) -> bool:
    """Whether a model still has random weights, wherever they came from: no bias of a normalisation has left zero.

    A model without such biases counts as trained.
    """
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
    biases = [m.bias for m in model.modules() if isinstance(m, norms) and m.bias is not None]
    return bool(biases) and not any(bias.any() for bias in biases)


def training_mode(model: torch.nn.Module, learn_statistics: bool) -> None:
    """Switch to training, but for what is locked; the statistics of BatchNorm layers stay unless `learn_statistics`.

    Statistics of a whole pre-training would be drowned by those of a few small batches, and would make a sample's
    embedding depend on how a batch is cut into micro-batches and processes.
    """
    model.train()
    if not learn_statistics:
        for norm in batch_norms(model):
            norm.eval()
    tuning.lock_modes(model)


def batch_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The BatchNorm layers of a model, as ResNets have them."""
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def add_logit_bias(clip_model: ClipModel) -> None:
    """Give a model without one SigLIP's logit bias, -10, and its starting scale, ln 10 (Zhai et al. 2023, section 3.2)."""
    model = clip_model.model
    if not has_logit_bias(clip_model):
        model.logit_bias = torch.nn.Parameter(torch.full_like(model.logit_scale.data, -10.0))
        with torch.no_grad():
            model.logit_scale.fill_(torch.tensor(10.0).log())


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all parameters, trainable parameters) of a module."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)
