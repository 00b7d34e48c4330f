"""open_clip's weights under the names of transformers' CLIPModel and SiglipModel, and what these do not have.

A tower is taken apart by its weights' names: whatever is left over is something that the target has no place for.
"""

from typing import Any

import torch
from open_clip.transformer import TextTransformer, VisionTransformer

from clip_finetuning.model import hf_names
from clip_finetuning.model.hf_names import Weights


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

    def finish(self, harmless: tuple[str, ...] = ()) -> None:
        """Lacking, if something is left."""
        left = [name for name in self.weights if name not in harmless]
        if left:
            raise Lacking(f"it has {left[0]}{' and others' if len(left) > 1 else ''}")


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
    weights = hf_names.to_theirs(hf_names.clip_vision(len(tower.transformer.resblocks)), source.take)
    source.finish()
    return config, weights


def clip_text(model: Any) -> tuple[dict[str, Any], Weights]:
    """(text_config, weights) of a causal text transformer of CLIP."""
    tower, source = _text_tower(model)
    pooling = getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", "argmax")
    demand(pooling in ("argmax", "eos"), f"its text tower is pooled by '{pooling}'")
    demand(tower.attn_mask is not None, "its text tower sees later words (no causal mask)")
    config = _text_config(tower)
    linear = "text_projection" not in source.weights
    if linear:
        demand("text_projection.bias" not in source.weights, "its text projection has a bias")
    weights = hf_names.to_theirs(hf_names.clip_text(len(tower.transformer.resblocks), linear=linear), source.take)
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
    weights = hf_names.to_theirs(hf_names.siglip_vision(len(trunk.blocks)), source.take)
    source.finish()
    return config, weights


def siglip_text(model: Any) -> tuple[dict[str, Any], Weights]:
    """(text_config, weights) of SigLIP's text transformer, which sees all words and is read at the last place."""
    tower, source = _text_tower(model)
    demand(
        getattr(tower, "pool_type", "") == "last",
        f"its text tower is pooled by '{getattr(tower, 'pool_type', 'argmax')}'",
    )
    demand(tower.attn_mask is None, "its text tower does not see later words (causal mask)")
    demand(isinstance(tower.text_projection, torch.nn.Linear), "its text projection has no bias")
    weights = hf_names.to_theirs(hf_names.siglip_text(len(tower.transformer.resblocks)), source.take)
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


def _kind(tower: Any) -> str:
    """What a tower is: timm's and transformers' by what they wrap."""
    trunk, body = getattr(tower, "trunk", None), getattr(tower, "transformer", None)
    if trunk is not None:
        return f"timm {type(trunk).__name__}"
    model_type = getattr(getattr(body, "config", None), "model_type", None)
    return f"{model_type} of transformers" if model_type else type(tower).__name__
