"""The fast towers equal open_clip's own, in embeddings and gradients, or step aside for them."""

import copy
from functools import partial

import open_clip
import pytest
import torch

from clip_finetuning.model import fast_towers

LENGTH, VOCABULARY, END = 12, 50, 49
VISION = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
BIDIRECTIONAL = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def clip(text=None, vision=None, **options):
    return open_clip.CLIP(16, vision or VISION, TEXT | (text or {}), **options)


def custom_text_clip(text=None, **options):
    return open_clip.CustomTextCLIP(16, VISION, TEXT | (text or {}), **options)


def vit(**vision):
    return clip(vision=VISION | vision)


def coca():
    multimodal = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CoCa(
        16,
        multimodal,
        TEXT | {"embed_cls": True, "output_tokens": True},
        VISION | POOLER | {"output_tokens": True},
    )


class OtherText(torch.nn.Module):
    """A text tower that is not open_clip's own, as a Hugging Face one is not."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 16)

    def forward(self, tokens):
        return self.embedding(tokens).mean(1)


class OtherVision(torch.nn.Module):
    """An image tower that is not open_clip's own, as a timm one is not."""

    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(3, 16)

    def forward(self, pixels):
        return self.projection(pixels.mean((2, 3)))


def other_towers():
    model = custom_text_clip()
    model.text, model.visual = OtherText(), OtherVision()
    return model


FAST_TEXT = {
    "ViT": clip,
    "ViT with QuickGELU": lambda: clip(quick_gelu=True),
    "ResNet": lambda: clip(vision=RESNET),
    "layer scale": lambda: clip({"ls_init_value": 0.3}),
    "end-of-text id": lambda: clip({"pool_type": "eos", "eos_id": END}),
    "projection with bias": lambda: clip({"proj_bias": True}),
    "no projection": lambda: clip({"proj_type": "none"}),
    "text tower of its own": custom_text_clip,
    "text tower of its own, end-of-text id": lambda: custom_text_clip({"pool_type": "eos", "eos_id": END}),
}
SLOW_TEXT = {
    "SigLIP": lambda: custom_text_clip(BIDIRECTIONAL, init_logit_bias=-10.0),
    "SigLIP in one class": lambda: clip(BIDIRECTIONAL),
    "CoCa": coca,
    "last token": lambda: clip({"pool_type": "last"}),
    "class token": lambda: custom_text_clip({"embed_cls": True}),
    "blocks of another kind": lambda: clip({"qk_norm": True}),
    "tokens too": lambda: custom_text_clip({"output_tokens": True}),
    "another library's tower": other_towers,
}
FAST_IMAGES = {
    "ViT": vit,
    "ViT with QuickGELU": lambda: clip(quick_gelu=True),
    "one block": lambda: vit(layers=1),
    "layer scale": lambda: vit(ls_init_value=0.3),
    "no norm before": lambda: vit(no_ln_pre=True),
    "last norm after the pooling": lambda: vit(final_ln_after_pool=True),
    "patch dropout": lambda: vit(patch_dropout=0.5),
    "text tower of its own": custom_text_clip,
}
SLOW_IMAGES = {
    "ResNet": lambda: clip(vision=RESNET),
    "average of the patches": lambda: vit(pool_type="avg"),
    "attentional pooling": lambda: vit(**POOLER),
    "blocks of another kind": lambda: vit(qk_norm=True),
    "CoCa": coca,
    "another library's tower": other_towers,
}


def build(make):
    """A model with random weights, the ones that open_clip starts at 0 or 1 too."""
    torch.manual_seed(0)
    model = make().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def captions(lengths, end=END):
    """Tokens of captions of these lengths, start and end included: (B, L), 0 behind the end."""
    tokens = torch.randint(1, END, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(1))
    places = torch.arange(LENGTH)
    last = torch.tensor(lengths)[:, None] - 1
    return tokens.where(places < last, 0).where(places != last, end)


def pixels(model, count=5):
    size = getattr(model.visual, "image_size", 16)
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def embed_and_gradients(encode, model, inputs):
    """The embeddings, and the gradient of a random projection of them by name of parameter."""
    model.zero_grad()
    torch.manual_seed(3)  # of patch dropout
    output = encode(inputs)
    features = (output[0] if isinstance(output, tuple) else output).float()
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return features.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both_ways(model, inputs):
    """(the fast encode, open_clip's own) of the tower that takes such inputs; CoCa would normalize by default."""
    name = "encode_image" if inputs.dim() == 4 else "encode_text"
    return partial(getattr(fast_towers, name), model), partial(getattr(model, name), normalize=False)


def assert_equal(model, inputs, tolerance=1e-5):
    fast, plain = both_ways(model, inputs)
    features, gradients = embed_and_gradients(fast, model, inputs)
    expected, expected_gradients = embed_and_gradients(plain, model, inputs)
    torch.testing.assert_close(features, expected, atol=tolerance, rtol=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, atol=tolerance, rtol=0, msg=name)


# ---------------------------------------------------------------------------------------- open_clip's names


def test_open_clip_has_the_private_names_that_are_read():
    """A new open_clip fails here first. If so, compare with the version before, in open_clip's model.py and transformer.py:

    `CLIP.encode_text` and `TextTransformer.forward` (what is read at the end of the text), `VisionTransformer._embeds`,
    `_pool` and `forward` (what is read at the class token), `ResidualAttentionBlock.forward` and its `attention`, and
    `Transformer.forward` (gradient checkpointing). Follow them in fast_towers.py until all tests of this file pass, then
    raise the bound in requirements.txt. Names of the factory are read in model/building.py, for architectures of a file.
    """
    model, own_text = clip(), custom_text_clip().text
    text = "token_embedding positional_embedding transformer ln_final text_projection attn_mask"
    read = {
        "CLIP": (model, f"{text} visual text_pool_type text_eos_id"),
        "TextTransformer": (own_text, f"{text} pool_type eos_id cls_emb output_tokens"),
        "VisionTransformer": (model.visual, "_embeds transformer ln_post proj pool_type attn_pool output_tokens"),
        "Transformer": (model.transformer, "resblocks grad_checkpointing get_cast_dtype batch_first"),
        "ResidualAttentionBlock": (model.transformer.resblocks[0], "ln_1 attn ls_1 ln_2 mlp ls_2"),
        "open_clip.factory": (open_clip.factory, "_MODEL_CONFIGS"),
    }
    missing = [f"{kind}.{name}" for kind, (o, names) in read.items() for name in names.split() if not hasattr(o, name)]
    assert not missing, f"open_clip {open_clip.__version__} has no {', '.join(missing)}: see what this test says"


# ----------------------------------------------------------------------------------------------- both towers


@pytest.mark.parametrize("name", FAST_TEXT)
def test_fast_text_towers_equal_the_plain_one_in_embeddings_and_gradients(name):
    model = build(FAST_TEXT[name])
    assert fast_towers.is_text_fast(model)
    assert_equal(model, captions([2, 5, 9, 12, 3]))


@pytest.mark.parametrize("name", FAST_IMAGES)
def test_fast_image_towers_equal_the_plain_one_in_embeddings_and_gradients(name):
    model = build(FAST_IMAGES[name])
    assert fast_towers.is_image_fast(model)
    assert_equal(model, pixels(model))


@pytest.mark.parametrize("name", SLOW_TEXT)
def test_other_text_towers_take_their_own_way_in_silence(name, capsys, recwarn):
    model = build(SLOW_TEXT[name])
    assert not fast_towers.is_text_fast(model)
    recwarn.clear()
    assert_equal(model, captions([2, 5, 9, 12, 3]), tolerance=0)
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", SLOW_IMAGES)
def test_other_image_towers_take_their_own_way_in_silence(name, capsys, recwarn):
    model = build(SLOW_IMAGES[name])
    assert not fast_towers.is_image_fast(model)
    recwarn.clear()
    assert_equal(model, pixels(model), tolerance=0)
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


def test_a_wrapped_model_is_left_alone():
    class Wrapper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def encode_text(self, tokens, normalize):
            return self.inner.encode_text(tokens, normalize)

    model = Wrapper(build(clip))
    assert not fast_towers.is_text_fast(model)
    assert_equal(model, captions([4, 7]), tolerance=0)


def test_normalize():
    model, tokens = build(clip), captions([3, 12, 8])
    for inputs in (tokens, pixels(model)):
        fast, plain = both_ways(model, inputs)
        torch.testing.assert_close(fast(inputs, normalize=True), torch.nn.functional.normalize(plain(inputs)))


@pytest.mark.parametrize("name", ["ViT", "ResNet", "text tower of its own", "images"])
def test_under_bf16_autocast_it_is_as_close_to_fp32_as_the_plain_tower(name):
    model = build(FAST_TEXT.get(name, vit))
    inputs = pixels(model) if name == "images" else captions([2, 5, 9, 12, 3])
    fast, plain = both_ways(model, inputs)
    exact, exact_gradients = embed_and_gradients(plain, model, inputs)

    def error(encode):
        def under_autocast(inputs):
            with torch.autocast("cpu", torch.bfloat16):
                return encode(inputs)

        features, gradients = embed_and_gradients(under_autocast, model, inputs)
        assert gradients.keys() == exact_gradients.keys()
        differences = [features - exact, *(gradients[name] - exact_gradients[name] for name in gradients)]
        return torch.cat([difference.flatten() for difference in differences]).norm()

    assert 0 < error(fast) < 1.5 * error(plain)


@pytest.mark.parametrize("name", ["ViT", "text tower of its own", "images"])
def test_with_gradient_checkpointing(name, monkeypatch):
    model = build(FAST_TEXT.get(name, lambda: vit(layers=3)))
    inputs = pixels(model) if name == "images" else captions([2, 12, 6])
    fast, plain = both_ways(model, inputs)
    expected, expected_gradients = embed_and_gradients(plain, model, inputs)
    model.set_grad_checkpointing()
    recomputed, checkpoint = [], fast_towers.checkpoint
    monkeypatch.setattr(fast_towers, "checkpoint", lambda *a, **k: recomputed.append(a) or checkpoint(*a, **k))
    features, gradients = embed_and_gradients(fast, model, inputs)
    assert len(recomputed) == 2  # of an image tower's three blocks the last is cheap
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    for gradient_name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[gradient_name], atol=1e-4, rtol=1e-4)


def test_half_precision_weights():
    model, tokens = build(clip).to(torch.bfloat16), captions([2, 5, 12])
    features = fast_towers.encode_text(model, tokens)
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features, model.encode_text(tokens), atol=0.05, rtol=0.05)


def test_frozen_towers_get_no_gradients():
    model, tokens = build(clip), captions([2, 5, 12])
    for parameter in model.transformer.parameters():
        parameter.requires_grad = False
    assert_equal(model, tokens)
    assert model.transformer.resblocks[0].attn.in_proj_weight.grad is None
    model.lock_image_tower()
    assert not fast_towers.encode_image(model, pixels(model)).requires_grad


def test_the_model_is_not_changed():
    model, tokens = build(clip), captions([2, 5, 12])
    before = copy.deepcopy(model.state_dict())
    fast_towers.encode_text(model, tokens)
    fast_towers.encode_image(model, pixels(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# -------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    "lengths", [[LENGTH] * 4, [7], [LENGTH], [1], [2, 2, 2]], ids=["all full", "one", "one full", "empty", "equal"]
)
def test_any_batch_of_captions(lengths):
    assert_equal(build(clip), captions(lengths))


def test_a_single_picture():
    model = build(clip)
    assert_equal(model, pixels(model, 1))


def test_captions_without_an_end_are_read_where_open_clip_reads_them():
    model = build(lambda: clip({"pool_type": "eos", "eos_id": END}))
    assert_equal(model, captions([3, 12, 8], end=7))


def test_gradients_are_the_same_to_the_bit_each_time_on_several_threads():
    """Or no resumed run could end in the weights of an undisturbed one."""
    torch.manual_seed(0)
    model = clip({"width": 64})
    tokens = torch.randint(1, END, (256, LENGTH))
    tokens[:, -1] = END
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = []
        for _ in range(6):
            model.zero_grad()
            fast_towers.encode_text(model, tokens).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(threads)
    for again in gradients[1:]:
        assert all(torch.equal(g, first) for g, first in zip(again, gradients[0]))
