"""Weights under others' names, or for pictures of another size, made to fit a model; and what a stranger's names look like."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

from clip_finetuning.model import hf_names
from clip_finetuning.model.hf_names import Weights

# Buffers that some versions of a model save: a mask, a numbering, OpenAI's sizes, how often an average was taken.
NO_WEIGHTS = re.compile(r"(.*\.)?(attn_mask|position_ids)|input_resolution|context_length|vocab_size|n_averaged")
OPENAI = ("input_resolution", "context_length", "vocab_size")
VISION, TEXT = "vision_model.", "text_model."  # transformers'


def _begins(*prefixes: str) -> Callable[[Weights], bool]:
    return lambda weights: all(any(name.startswith(prefix) for name in weights) for prefix in prefixes)


def _holds(part: str) -> Callable[[Weights], bool]:
    return lambda weights: any(part in name for name in weights)


# Layouts that no model of open_clip has, the most particular first.
STRANGERS: list[tuple[Callable[[Weights], bool], str]] = [
    (
        _holds("lora_A"),
        "an adapter (LoRA) of PEFT, which is nothing without its base: merge it with `merge_and_unload`",
    ),
    (_begins("qformer."), "transformers' BLIP-2, which is no two towers"),
    (_begins("language_model."), "a language model that sees, as LLaVA; its image tower alone is no CLIP"),
    (_begins("model.language_model."), "a language model that sees; its image tower alone is no CLIP"),
    (_begins(VISION, "text_decoder."), "transformers' BLIP"),
    (_begins(VISION, "text_encoder."), "transformers' BLIP"),
    (_begins(VISION, f"{TEXT}roberta."), "transformers' AltCLIP"),
    (_begins(VISION, f"{TEXT}encoder.layer."), "transformers' ChineseCLIPModel"),
    (_begins(VISION, TEXT, "multiview_vision_model."), "transformers' X-CLIP"),
    (_begins(VISION, TEXT), "transformers' CLIPModel or SiglipModel, of other sizes or with other parts"),
    (
        _begins(VISION),
        "the image tower of transformers alone (CLIPVisionModel or SiglipVisionModel); take the whole model",
    ),
    (_begins(TEXT), "the text tower of transformers alone (CLIPTextModel or SiglipTextModel); take the whole model"),
    (_begins("visual.blocks."), "EVA-CLIP in its own repository's names; open_clip's EVA models have tags"),
    (_begins("visual_encoder.", "text_encoder."), "BLIP or ALBEF in its own repository's names"),
    (_begins("image_encoder.", "text_encoder."), "MobileCLIP in its own repository's names"),
    (_begins("img/"), "big_vision, as Google publishes SigLIP"),
    (_begins("params/img/"), "big_vision, as Google publishes SigLIP"),
    (_begins("down_blocks."), "a diffusion model's network"),
    (_begins("patch_embed."), "an image model of timm alone, without a text tower"),
    (_begins("embeddings.patch_embeddings."), "an image model of transformers alone, as ViT or DINOv2"),
    (_begins("embeddings.word_embeddings."), "a text model of transformers alone, as BERT"),
    (_begins("0.auto_model."), "a text model of sentence-transformers"),
    (_begins("conv1.", "layer1."), "a ResNet of torchvision, without a text tower"),
    (_begins("features."), "an image model of torchvision, without a text tower"),
]


def look_of(weights: Weights) -> str:
    """Which layout the names are of, for whoever could not load them; "" if it is none that is known."""
    return next((words for fits, words in STRANGERS if fits(weights)), "")


def is_transformers(weights: Iterable[str]) -> bool:
    """Whether the names are of CLIPModel or SiglipModel."""
    names = list(weights)
    return all(any(name.startswith(prefix) for name in names) for prefix in (VISION, TEXT))


def is_openai(weights: Iterable[str]) -> bool:
    """Whether OpenAI's own sizes stand beside the weights."""
    return set(OPENAI) <= set(weights)


def without_buffers(weights: Weights, expected: Iterable[str]) -> Weights:
    """The weights but for buffers that the model does not keep and computes itself."""
    return {name: value for name, value in weights.items() if name in expected or not NO_WEIGHTS.fullmatch(name)}


def converted(weights: Weights, model: Any) -> tuple[Weights, list[str]]:
    """(weights under the names of an open_clip model, what was computed anew in words).

    Raises LookupError, ValueError or whatever open_clip's conversions raise, if it is no layout of such a model.
    """
    if is_transformers(weights):
        weights = _from_transformers(weights, model)
    else:
        weights = convert_state_dict(model, dict(weights))
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    told = []
    if "logit_bias" not in weights and getattr(model, "logit_bias", None) is not None:
        weights["logit_bias"] = torch.zeros_like(model.logit_bias)
        told.append("it has no logit bias, so that is 0")
    before = {name: len(value) for name, value in weights.items() if name.endswith("positional_embedding")}
    resize_pos_embed(weights, model)
    resize_text_pos_embed(weights, model)
    for name, length in before.items():
        if len(weights[name]) != length:
            told.append(f"{name} is interpolated from {length} to {len(weights[name])} places")
    return weights, told


def _from_transformers(weights: Weights, model: Any) -> Weights:
    """open_clip's weights of transformers'; whatever has no place keeps its name."""
    left = dict(weights)
    vision, text = (_layers(left, prefix) for prefix in (VISION, TEXT))
    prefix = "text." if hasattr(model, "text") else ""
    if f"{VISION}head.probe" in left:
        pairs = hf_names.siglip_vision(vision, "visual.trunk.") + hf_names.siglip_text(text, prefix)
    else:
        linear = f"{prefix}text_projection.weight" in model.state_dict()
        pairs = hf_names.clip_vision(vision, "visual.") + hf_names.clip_text(text, prefix, linear)
    return {**hf_names.to_ours(pairs, left.pop), **left}


def _layers(weights: Weights, tower: str) -> int:
    """How many blocks a tower of transformers has."""
    found = (re.match(rf"{re.escape(tower)}encoder\.layers\.(\d+)\.", name) for name in weights)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
