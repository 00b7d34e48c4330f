"""The text tower without its padding: the same embeddings and gradients from a third less arithmetic.

A tokenizer fills every caption up to the context length (77), and the tower computes all of it. Under a causal mask no
token sees a later one, and the embedding is read at the end-of-text token, so whatever stands behind it changes
nothing. Here the linear layers, norms and activations run over the real tokens of all captions packed into one matrix;
only attention sees captions side by side with padding. The last block computes its output for the one token that is
read, and so does the image tower's in `class_token.py`.
"""

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def encode_text(model, tokens, normalize=False):
    """`model.encode_text(tokens, normalize)`, packed where the architecture allows: (B, L) -> (B, D)."""
    tower = _packable_tower(model)
    if tower is None:
        return model.encode_text(tokens, normalize=normalize)
    features = _encode(tower, tokens)
    return functional.normalize(features, dim=-1) if normalize else features


def is_packable(model):
    """Whether `encode_text` packs: causal text transformers of open_clip that read the end-of-text token.

    True for the CLIP models with ViT, ResNet, ConvNeXt... image towers. SigLIP (no causal mask), CoCa (a class token
    behind the padding), Hugging Face towers and blocks with additions of their own take the model's own way.
    """
    return _packable_tower(model) is not None


def _packable_tower(model):
    tower = model if type(model) is open_clip.CLIP else getattr(model, "text", None)
    if type(model) not in (open_clip.CLIP, open_clip.CustomTextCLIP) or type(tower) not in (
        type(model),
        TextTransformer,
    ):
        return None
    causal = tower.attn_mask is not None and getattr(tower, "cls_emb", None) is None
    plain = not getattr(tower, "output_tokens", False) and _pooling(tower)[0] in ("argmax", "eos")
    return tower if causal and plain and all(map(_is_plain, tower.transformer.resblocks)) else None


def _is_plain(block):
    return (
        type(block) is ResidualAttentionBlock
        and type(block.attn) is torch.nn.MultiheadAttention
        and block.attn.in_proj_weight is not None
        and block.attn.dropout == 0
    )


def _pooling(tower):
    """(pool type, end-of-text id), which `CLIP` and `TextTransformer` keep under different names."""
    if type(tower) is TextTransformer:
        return tower.pool_type, tower.eos_id
    return tower.text_pool_type, tower.text_eos_id


def _encode(tower, tokens):
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
            x = checkpoint(_block, block, x, places, real, wanted, use_reentrant=False)
        else:
            x = _block(block, x, places, real, wanted)
    x = tower.ln_final(x)  # (B, W)
    if isinstance(tower.text_projection, torch.nn.Linear):
        return tower.text_projection(x)
    return x if tower.text_projection is None else x @ tower.text_projection


def _block(block, x, places, real, wanted):
    """One `ResidualAttentionBlock` over packed tokens: (T, W) -> (T, W), or (B, W) for the `wanted` tokens alone."""
    normed = block.ln_1(x)
    if wanted is None:
        x = x + block.ls_1(_attention(block.attn, normed, places, real))
    else:
        x = x[wanted] + block.ls_1(_attention_of(wanted, block.attn, normed, places, real))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attention(attention, x, places, real):
    """Causal attention among the tokens of each caption: (T, W) -> (T, W)."""
    packed = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)  # (T, 3W)
    queries, keys, values = _side_by_side(packed, places, real.shape, 3, attention.num_heads)
    attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return attention.out_proj(attended.transpose(1, 2).flatten(2).flatten(0, 1)[places])


def _attention_of(wanted, attention, x, places, real):
    """The same for one token of each caption, the end, which sees all of its tokens: (T, W) -> (B, W)."""
    width = x.shape[1]
    weights = attention.in_proj_weight.split((width, 2 * width))
    biases = attention.in_proj_bias.split((width, 2 * width))
    query = functional.linear(x[wanted], weights[0], biases[0])  # (B, W)
    query = query.view(len(query), attention.num_heads, 1, -1)
    packed = functional.linear(x, weights[1], biases[1])  # (T, 2W)
    keys, values = _side_by_side(packed, places, real.shape, 2, attention.num_heads)
    attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=real[:, None, None])
    return attention.out_proj(attended.flatten(1))


def _side_by_side(packed, places, shape, parts, heads):
    """Rows of real tokens (T, parts * W) -> `parts` tensors (B, H, L, W / H), zero where the padding is."""
    padded = packed.new_zeros(shape.numel(), packed.shape[1]).index_copy(0, places, packed)
    return padded.view(*shape, parts, heads, -1).permute(2, 0, 3, 1, 4)
