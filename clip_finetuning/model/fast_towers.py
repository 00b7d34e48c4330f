"""open_clip's towers without what nobody reads: the same embeddings and gradients from less arithmetic, for training.

The text tower leaves out the padding. A tokenizer fills every caption up to the context length (77), and the tower
computes all of it. Under a causal mask no token sees a later one, and the embedding is read at the end-of-text token, so
whatever stands behind it changes nothing. Here the linear layers, norms and activations run over the real tokens of all
captions packed into one matrix; only attention sees captions side by side with padding. That is a third less.

The last block of either tower computes only the token that is read. It needs the keys and values of all tokens, but the
query, output projection and MLP of that one alone. That leaves out five sixths of the block's matrix products: 7 % of
the image tower of a ViT-B, 28 % of one with three blocks.

An architecture that does not allow it takes open_clip's own way. What is read of open_clip here are private names:
`tests/model/test_fast_towers.py` says what to look at when a new version has others.
"""

from functools import partial
from typing import Any, TypeAlias

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils.checkpoint import checkpoint

OpenClip: TypeAlias = (
    Any  # CLIP, CustomTextCLIP or CoCa; what attributes a module has is nothing that torch's types tell
)
TextTower: TypeAlias = Any  # CLIP, which is its own text tower, or TextTransformer

# -------------------------------------------------------------------------------------------------- text


def encode_text(model: OpenClip, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """`model.encode_text(tokens, normalize)`, without padding where the architecture allows: (B, L) -> (B, D)."""
    tower = _packable_tower(model)
    if tower is None:
        return model.encode_text(tokens, normalize=normalize)
    features = _encode_packed(tower, tokens)
    return functional.normalize(features, dim=-1) if normalize else features


def is_text_fast(model: OpenClip) -> bool:
    """Whether `encode_text` leaves the padding out: causal text transformers of open_clip, read at the end of the text.

    True for the CLIP models with ViT, ResNet, ConvNeXt... image towers. SigLIP (no causal mask), CoCa (a class token
    behind the padding), Hugging Face towers and blocks with additions of their own take the model's own way.
    """
    return _packable_tower(model) is not None


def _packable_tower(model: OpenClip) -> TextTower | None:
    if type(model) is open_clip.CLIP:
        tower = model
    elif type(model) is open_clip.CustomTextCLIP and type(model.text) is TextTransformer:
        tower = model.text
    else:
        return None
    causal = tower.attn_mask is not None and getattr(tower, "cls_emb", None) is None
    read_at_end = not getattr(tower, "output_tokens", False) and _pooling(tower)[0] in ("argmax", "eos")
    return tower if causal and read_at_end and all(map(_is_plain, tower.transformer.resblocks)) else None


def _pooling(tower: TextTower) -> tuple[str, int]:
    """(pool type, end-of-text id), which `CLIP` and `TextTransformer` keep under different names."""
    if isinstance(tower, TextTransformer):
        return tower.pool_type, tower.eos_id
    return tower.text_pool_type, tower.text_eos_id


def _encode_packed(tower: TextTower, tokens: torch.Tensor) -> torch.Tensor:
    pool_type, end_id = _pooling(tower)
    ends = (tokens if pool_type == "argmax" else (tokens == end_id).int()).argmax(-1)  # (B,)
    # Here and at `nonzero` a GPU has to tell the CPU a size: twice a batch, not in every layer.
    longest = int(ends.max()) + 1
    tokens = tokens[:, :longest]
    real = torch.arange(longest, device=tokens.device) <= ends[:, None]  # (B, L)
    places = real.flatten().nonzero().squeeze(1)  # (T,) of each real token in the padded batch
    last = ends.add(1).cumsum(0).sub(1)  # (B,) of each end-of-text token among the packed ones

    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens.flatten()[places]).to(dtype)
    # Looked up like tokens, so that the gradient adds up in a fixed order; that of indexing is left to the threads' race.
    x = x + functional.embedding(places % longest, tower.positional_embedding.to(dtype))  # (T, W)
    blocks = tower.transformer.resblocks
    for block in blocks:
        wanted = last if block is blocks[-1] else None
        if tower.transformer.grad_checkpointing:
            x = checkpoint(_packed_block, block, x, places, real, wanted, use_reentrant=False)
        else:
            x = _packed_block(block, x, places, real, wanted)
    x = tower.ln_final(x)  # (B, W)
    if isinstance(tower.text_projection, torch.nn.Linear):
        return tower.text_projection(x)
    return x if tower.text_projection is None else x @ tower.text_projection


def _packed_block(block, x, places, real, wanted):
    """A block over the real tokens of all captions: (T, W) -> (T, W), or (B, W) for the `wanted` tokens alone.

    Side by side, the tokens are (B, L), of which those are `real` that are at these `places`.
    """
    if wanted is not None:  # the end of a caption sees all of its tokens
        return _last_block(
            block, x, wanted, partial(_side_by_side, places=places, shape=real.shape), real[:, None, None]
        )
    normed, attention = block.ln_1(x), block.attn
    packed = functional.linear(normed, attention.in_proj_weight, attention.in_proj_bias)  # (T, 3W)
    queries, keys, values = _by_heads(_side_by_side(packed, places, real.shape), 3, attention.num_heads)
    attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    x = x + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(2).flatten(0, 1)[places]))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _side_by_side(packed, places, shape):
    """Rows of real tokens (T, N) -> (B, L, N), zero where the padding is."""
    return packed.new_zeros(shape.numel(), packed.shape[1]).index_copy(0, places, packed).view(*shape, -1)


# ------------------------------------------------------------------------------------------------ images


def encode_image(model: OpenClip, pixels: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """`model.encode_image(pixels, normalize)`, shorter where the architecture allows: (B, 3, H, W) -> (B, D)."""
    if not is_image_fast(model):
        return model.encode_image(pixels, normalize=normalize)
    features = _encode_class_token(model.visual, pixels)
    return functional.normalize(features, dim=-1) if normalize else features


def is_image_fast(model: OpenClip) -> bool:
    """Whether `encode_image` leaves something out: open_clip's own vision transformers that are read at the class token.

    True for CLIP's ViTs. ResNets, timm towers (SigLIP, EVA, ConvNeXt...), attentional pooling (CoCa), averages of the
    patches and blocks with additions of their own take the model's own way.
    """
    tower = getattr(model, "visual", None)
    return (
        type(tower) is VisionTransformer
        and tower.pool_type == "tok"
        and tower.attn_pool is None
        and not tower.output_tokens
        and tower.transformer.batch_first
        and _is_plain(tower.transformer.resblocks[-1])
    )


def _encode_class_token(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    x = tower._embeds(pixels)  # (B, 1 + patches, W)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if tower.transformer.grad_checkpointing else block(x)
    x = tower.ln_post(_last_block(last, x, (slice(None), 0)))  # (B, W)
    return x if tower.proj is None else x @ tower.proj


# -------------------------------------------------------------------------------------------------- both


def _is_plain(block: Any) -> bool:
    """Whether a block is one whose arithmetic is that of the functions here."""
    return (
        type(block) is ResidualAttentionBlock
        and type_before_parametrizations(block.attn) is torch.nn.MultiheadAttention
        and block.attn._qkv_same_embed_dim  # its in_proj_weight is used, which is not looked at: LoRA's would be computed
        and block.attn.dropout == 0
    )


def _last_block(block, x, read, side_by_side=None, mask=None):
    """A block for the tokens alone that are `read`, one of each sample: (..., W) -> (B, W).

    `side_by_side` brings rows into the form (B, L, ...), if they are not; the `mask` says which of these are seen.
    """
    normed, attention = block.ln_1(x), block.attn
    width = x.shape[-1]
    weights = attention.in_proj_weight.split((width, 2 * width))
    biases = attention.in_proj_bias.split((width, 2 * width))
    query = functional.linear(normed[read], weights[0], biases[0])  # (B, W)
    query = query.view(len(query), attention.num_heads, 1, -1)
    packed = functional.linear(normed, weights[1], biases[1])  # (..., 2W)
    keys, values = _by_heads(side_by_side(packed) if side_by_side else packed, 2, attention.num_heads)
    attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)  # (B, H, 1, W / H)
    x = x[read] + block.ls_1(attention.out_proj(attended.flatten(1)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _by_heads(packed: torch.Tensor, parts: int, heads: int) -> torch.Tensor:
    """(B, L, parts * W) -> `parts` tensors (B, H, L, W / H)."""
    return packed.view(*packed.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4)
