"""open_clip's weights under the names of transformers' CLIPModel and SiglipModel, and what these do not have.

A tower is taken apart by its weights' names: whatever is left over is something that the target has no place for.
"""

from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import TextTransformer, VisionTransformer

Weights = dict[str, torch.Tensor]


class Lacking(ValueError):
    """The target has no such part; the message names it."""


class Source:
    """The weights of a tower, each taken once."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        self.weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    def take(self, name: str) -> torch.Tensor:
        if name not in self.weights:
            raise Lacking(f"it has no {name}")
        return self.weights.pop(name)

    def move(self, names: dict[str, str], suffixes: tuple[str, ...] = ("weight", "bias")) -> Weights:
        """{new name: weight} of modules by {new: old}."""
        return {f"{new}.{suffix}": self.take(f"{old}.{suffix}") for new, old in names.items() for suffix in suffixes}

    def finish(self, harmless: tuple[str, ...] = ()) -> None:
        """Lacking, if something is left."""
        left = [name for name in self.weights if name not in harmless]
        if left:
            raise Lacking(f"it has {left[0]}{' and others' if len(left) > 1 else ''}")


def _attention(source: Source, new: str, old: str, packed: str = "in_proj_") -> Weights:
    """Queries, keys and values, which open_clip keeps in one matrix, in three."""
    weights: Weights = {}
    for suffix in ("weight", "bias"):
        parts = source.take(f"{old}.{packed}{suffix}").chunk(3)
        weights |= {f"{new}.{name}_proj.{suffix}": part for name, part in zip("qkv", parts)}
    return weights


def block(source: Source, new: str, old: str) -> Weights:
    """A residual attention block of open_clip."""
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    moved = source.move({f"{new}.{a}": f"{old}.{b}" for a, b in names.items()})
    return moved | _attention(source, f"{new}.self_attn", f"{old}.attn")


def timm_block(source: Source, new: str, old: str) -> Weights:
    """A block of timm's vision transformer."""
    names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    names["self_attn.out_proj"] = "attn.proj"
    moved = source.move({f"{new}.{a}": f"{old}.{b}" for a, b in names.items()})
    return moved | _attention(source, f"{new}.self_attn", f"{old}.attn.qkv", packed="")


def blocks(count: int, one: Callable[[Source, str, str], Weights], source: Source, new: str, old: str) -> Weights:
    found: Weights = {}
    for number in range(count):
        found |= one(source, f"{new}.encoder.layers.{number}", f"{old}.{number}")
    return found


def demand(condition: bool, what: str) -> None:
    """Lacking, unless."""
    if not condition:
        raise Lacking(what)


def activation(module: Any) -> str:
    """transformers' name of an activation module."""
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    demand(name in ("GELU", "GELUTanh"), f"its activation is {name}")
    tanh = name == "GELUTanh" or getattr(module, "approximate", "none") == "tanh"
    return "gelu_pytorch_tanh" if tanh else "gelu"


def tower_config(transformer: Any, eps: float) -> dict[str, Any]:
    """Width, depth, heads, MLP and activation of an open_clip transformer."""
    first = transformer.resblocks[0]
    demand(type(first.attn) is torch.nn.MultiheadAttention, f"its attention is a {type(first.attn).__name__}")
    return {
        "hidden_size": transformer.width,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.c_fc.out_features,
        "hidden_act": activation(first.mlp.gelu),
        "layer_norm_eps": eps,
        "attention_dropout": 0.0,
    }


# ---------------------------------------------------------------------------------------------------------------- CLIP


def clip_vision(tower: Any) -> tuple[dict[str, Any], Weights]:
    """(vision_config, weights) of a vision transformer of CLIP."""
    demand(type(tower) is VisionTransformer, f"its image tower is a {_kind(tower)}, not CLIP's vision transformer")
    demand(tower.attn_pool is None, "its image tower has attention pooling")
    demand(tower.pool_type == "tok", f"its image tower is pooled by '{tower.pool_type}'")
    demand(not getattr(tower, "final_ln_after_pool", False), "its image tower has a norm after the pooling")
    demand(len(set(tower.image_size)) == 1, f"its pictures are no squares, but {tower.image_size}")
    demand(len(set(tower.patch_size)) == 1, f"its patches are no squares, but {tower.patch_size}")
    source = Source(tower.state_dict())
    eps = tower.ln_post.eps
    config = tower_config(tower.transformer, eps) | {
        "image_size": tower.image_size[0],
        "patch_size": tower.patch_size[0],
    }
    weights = {
        "embeddings.class_embedding": source.take("class_embedding"),
        "embeddings.position_embedding.weight": source.take("positional_embedding"),
        "embeddings.patch_embedding.weight": source.take("conv1.weight"),
    }
    weights |= source.move({"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"})
    weights |= blocks(len(tower.transformer.resblocks), block, source, "", "transformer.resblocks")
    found = {f"vision_model.{name.removeprefix('.')}": weight for name, weight in weights.items()}
    found["visual_projection.weight"] = source.take("proj").T
    source.finish()
    return config, found


def clip_text(model: Any) -> tuple[dict[str, Any], Weights]:
    """(text_config, weights) of a causal text transformer of CLIP."""
    tower, source = _text_tower(model)
    pooling = getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", "argmax")
    demand(pooling in ("argmax", "eos"), f"its text tower is pooled by '{pooling}'")
    demand(tower.attn_mask is not None, "its text tower sees later words (no causal mask)")
    config = _text_config(tower)
    weights = _text_body(tower, source)
    projection = source.take("text_projection") if "text_projection" in source.weights else None
    if projection is None:
        demand("text_projection.bias" not in source.weights, "its text projection has a bias")
        weights["text_projection.weight"] = source.take("text_projection.weight")
    else:
        weights["text_projection.weight"] = projection.T
    source.finish(harmless=("logit_scale", "logit_bias", "attn_mask"))
    return config, weights


# -------------------------------------------------------------------------------------------------------------- SigLIP


def siglip_vision(tower: Any) -> tuple[dict[str, Any], Weights]:
    """(vision_config, weights) of SigLIP's vision transformer, which is timm's."""
    trunk: Any = getattr(tower, "trunk", None)
    demand(type(trunk).__name__ == "VisionTransformer", f"its image tower is a {_kind(tower)}")
    demand(
        trunk.global_pool == "map" and trunk.num_prefix_tokens == 0, "its image tower has no attention pooling alone"
    )
    demand(type(trunk.norm_pre).__name__ == "Identity", "its image tower has a norm before the blocks")
    demand(not list(tower.head.state_dict()), "its image tower has a projection")
    source, first, pool = Source(trunk.state_dict()), trunk.blocks[0], trunk.attn_pool
    demand(activation(pool.mlp.act) == activation(first.mlp.act), "its pooling has another activation")
    config = {
        "hidden_size": trunk.embed_dim,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features,
        "hidden_act": activation(first.mlp.act),
        "layer_norm_eps": trunk.norm.eps,
        "attention_dropout": 0.0,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "vision_use_head": True,
    }
    demand(len(set(trunk.patch_embed.img_size)) == 1, f"its pictures are no squares, but {trunk.patch_embed.img_size}")
    weights = {
        "embeddings.position_embedding.weight": source.take("pos_embed")[0],
        "head.probe": source.take("attn_pool.latent"),
    }
    moved = {
        "embeddings.patch_embedding": "patch_embed.proj",
        "post_layernorm": "norm",
        "head.layernorm": "attn_pool.norm",
    }
    moved |= {"head.mlp.fc1": "attn_pool.mlp.fc1", "head.mlp.fc2": "attn_pool.mlp.fc2"}
    moved["head.attention.out_proj"] = "attn_pool.proj"
    weights |= source.move(moved)
    for suffix in ("weight", "bias"):
        both = [source.take(f"attn_pool.{name}.{suffix}") for name in ("q", "kv")]
        weights[f"head.attention.in_proj_{suffix}"] = torch.cat(both)
    weights |= blocks(len(trunk.blocks), timm_block, source, "", "blocks")
    source.finish()
    return config, {f"vision_model.{name.removeprefix('.')}": weight for name, weight in weights.items()}


def siglip_text(model: Any) -> tuple[dict[str, Any], Weights]:
    """(text_config, weights) of SigLIP's text transformer, which sees all words and is read at the last place."""
    tower, source = _text_tower(model)
    demand(
        getattr(tower, "pool_type", "") == "last",
        f"its text tower is pooled by '{getattr(tower, 'pool_type', 'argmax')}'",
    )
    demand(tower.attn_mask is None, "its text tower does not see later words (causal mask)")
    demand(isinstance(tower.text_projection, torch.nn.Linear), "its text projection has no bias")
    weights = _text_body(tower, source)
    weights |= source.move({"text_model.head": "text_projection"})
    config = _text_config(tower) | {"projection_size": tower.text_projection.out_features}
    source.finish(harmless=("logit_scale", "logit_bias", "attn_mask"))
    return config, weights


# ---------------------------------------------------------------------------------------------------------------- both


def _text_tower(model: Any) -> tuple[Any, Source]:
    """(tower, its weights): of `CLIP`, which is its own text tower, or `CustomTextCLIP`."""
    tower = getattr(model, "text", None)
    if tower is None:
        demand(hasattr(model, "token_embedding"), "its text tower is unknown")
        own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("visual.")}
        return model, Source(own)
    demand(type(tower) is TextTransformer, f"its text tower is a {_kind(tower)}")
    demand(getattr(tower, "cls_emb", None) is None, "its text tower has a class token")
    return tower, Source(tower.state_dict())


def _text_config(tower: Any) -> dict[str, Any]:
    config = tower_config(tower.transformer, tower.ln_final.eps)
    return config | {
        "vocab_size": tower.token_embedding.num_embeddings,
        "max_position_embeddings": len(tower.positional_embedding),
    }


def _text_body(tower: Any, source: Source) -> Weights:
    weights = {
        "embeddings.token_embedding.weight": source.take("token_embedding.weight"),
        "embeddings.position_embedding.weight": source.take("positional_embedding"),
    }
    weights |= source.move({"final_layer_norm": "ln_final"})
    weights |= blocks(len(tower.transformer.resblocks), block, source, "", "transformer.resblocks")
    return {f"text_model.{name.removeprefix('.')}": weight for name, weight in weights.items()}


def _kind(tower: Any) -> str:
    """What a tower is: timm's and transformers' by what they wrap."""
    trunk, body = getattr(tower, "trunk", None), getattr(tower, "transformer", None)
    if trunk is not None:
        return f"timm {type(trunk).__name__}"
    model_type = getattr(getattr(body, "config", None), "model_type", None)
    return f"{model_type} of transformers" if model_type else type(tower).__name__
