"""Names of transformers' CLIPModel and SiglipModel beside open_clip's: one table, read both ways.

A `Pair` says which tensors of one are which of the other, and how they are cut: open_clip keeps queries, keys and values
in one matrix, transformers in three, and some projections lie transposed.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

Weights = dict[str, torch.Tensor]
Tensors = list[torch.Tensor]


class Form(NamedTuple):
    """How the tensors of a pair become each other."""

    to_theirs: Callable[[Tensors], Tensors]
    to_ours: Callable[[Tensors], Tensors]


class Pair(NamedTuple):
    """Tensors of open_clip, those of transformers that hold the same numbers, and how."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


SAME = Form(lambda own: own, lambda other: other)
TRANSPOSED = Form(lambda own: [own[0].T], lambda other: [other[0].T])
BATCHED = Form(lambda own: [own[0][0]], lambda other: [other[0][None]])  # a first dimension of one
THIRDS = Form(lambda own: list(own[0].chunk(3)), lambda other: [torch.cat(other)])


def _query_apart(packed: Tensors) -> Tensors:
    query = len(packed[0]) // 3
    return [packed[0][:query], packed[0][query:]]


JOINED = Form(lambda own: [torch.cat(own)], _query_apart)  # queries, and keys with values -> all three


def to_theirs(pairs: Iterable[Pair], take: Callable[[str], torch.Tensor]) -> Weights:
    """{transformers' name: tensor} of open_clip's tensors, which `take` gives by name."""
    return {
        name: tensor
        for pair in pairs
        for name, tensor in zip(pair.theirs, pair.form.to_theirs([take(own) for own in pair.ours]))
    }


def to_ours(pairs: Iterable[Pair], take: Callable[[str], torch.Tensor]) -> Weights:
    """{open_clip's name: tensor} of transformers' tensors, which `take` gives by name."""
    return {
        name: tensor
        for pair in pairs
        for name, tensor in zip(pair.ours, pair.form.to_ours([take(other) for other in pair.theirs]))
    }


def _tensor(ours: str, theirs: str, form: Form = SAME) -> list[Pair]:
    return [Pair((ours,), (theirs,), form)]


def _modules(ours: str, theirs: str, names: dict[str, str]) -> list[Pair]:
    """Weight and bias of modules, {open_clip's name: transformers'}."""
    suffixes = ("weight", "bias")
    return [
        Pair((f"{ours}{own}.{end}",), (f"{theirs}{other}.{end}",), SAME)
        for own, other in names.items()
        for end in suffixes
    ]


def _attention(packed: str, theirs: str) -> list[Pair]:
    return [
        Pair((f"{packed}{end}",), tuple(f"{theirs}.{part}_proj.{end}" for part in "qkv"), THIRDS)
        for end in ("weight", "bias")
    ]


BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
TIMM_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.proj": "self_attn.out_proj",
}


def _blocks(layers: int, ours: str, theirs: str, timm: bool = False) -> list[Pair]:
    """The residual attention blocks of a tower."""
    pairs = []
    for number in range(layers):
        own, other = f"{ours}.{number}.", f"{theirs}.encoder.layers.{number}."
        pairs += _modules(own, other, TIMM_BLOCK if timm else BLOCK)
        pairs += _attention(f"{own}attn.{'qkv.' if timm else 'in_proj_'}", f"{other}self_attn")
    return pairs


def clip_vision(layers: int, prefix: str = "") -> list[Pair]:
    """CLIP's vision transformer; open_clip's names begin with `prefix`."""
    theirs = "vision_model.embeddings."
    return [
        *_tensor(f"{prefix}class_embedding", f"{theirs}class_embedding"),
        *_tensor(f"{prefix}positional_embedding", f"{theirs}position_embedding.weight"),
        *_tensor(f"{prefix}conv1.weight", f"{theirs}patch_embedding.weight"),
        *_modules(prefix, "vision_model.", {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}),
        *_blocks(layers, f"{prefix}transformer.resblocks", "vision_model"),
        *_tensor(f"{prefix}proj", "visual_projection.weight", TRANSPOSED),
    ]


def _text_body(layers: int, prefix: str) -> list[Pair]:
    theirs = "text_model.embeddings."
    return [
        *_tensor(f"{prefix}token_embedding.weight", f"{theirs}token_embedding.weight"),
        *_tensor(f"{prefix}positional_embedding", f"{theirs}position_embedding.weight"),
        *_modules(prefix, "text_model.", {"ln_final": "final_layer_norm"}),
        *_blocks(layers, f"{prefix}transformer.resblocks", "text_model"),
    ]


def clip_text(layers: int, prefix: str = "", linear: bool = False) -> list[Pair]:
    """CLIP's text transformer; `linear`: its projection is a module, no bare matrix."""
    last = (f"{prefix}text_projection.weight", SAME) if linear else (f"{prefix}text_projection", TRANSPOSED)
    return _text_body(layers, prefix) + _tensor(last[0], "text_projection.weight", last[1])


def siglip_vision(layers: int, prefix: str = "") -> list[Pair]:
    """SigLIP's vision transformer, which is timm's in open_clip."""
    moved = {
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm",
        "attn_pool.norm": "head.layernorm",
        "attn_pool.mlp.fc1": "head.mlp.fc1",
        "attn_pool.mlp.fc2": "head.mlp.fc2",
        "attn_pool.proj": "head.attention.out_proj",
    }
    pool = f"{prefix}attn_pool."
    joined = [
        Pair((f"{pool}q.{end}", f"{pool}kv.{end}"), (f"vision_model.head.attention.in_proj_{end}",), JOINED)
        for end in ("weight", "bias")
    ]
    return [
        *_tensor(f"{prefix}pos_embed", "vision_model.embeddings.position_embedding.weight", BATCHED),
        *_tensor(f"{pool}latent", "vision_model.head.probe"),
        *_modules(prefix, "vision_model.", moved),
        *joined,
        *_blocks(layers, f"{prefix}blocks", "vision_model", timm=True),
    ]


def siglip_text(layers: int, prefix: str = "") -> list[Pair]:
    """SigLIP's text transformer."""
    return _text_body(layers, prefix) + _modules(prefix, "", {"text_projection": "text_model.head"})
