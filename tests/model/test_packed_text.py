"""The packed text tower equals open_clip's own, in embeddings and gradients, or steps aside for it."""

import copy

import open_clip
import pytest
import torch

from clip_finetuning.model import packed_text

LENGTH, VOCABULARY, END = 12, 50, 49
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
BIDIRECTIONAL = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def clip(text=None, vision=None, **options):
    return open_clip.CLIP(16, vision or VISION, TEXT | (text or {}), **options)


def custom_text_clip(text=None, **options):
    return open_clip.CustomTextCLIP(16, VISION, TEXT | (text or {}), **options)


def coca():
    multimodal = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CoCa(
        16,
        multimodal,
        TEXT | {"embed_cls": True, "output_tokens": True},
        VISION | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True},
    )


class OtherTower(torch.nn.Module):
    """A text tower that is not open_clip's own, as a Hugging Face one is not."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 16)

    def forward(self, tokens):
        return self.embedding(tokens).mean(1)


def other_tower():
    model = custom_text_clip()
    model.text = OtherTower()
    return model


PACKED = {
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
NOT_PACKED = {
    "SigLIP": lambda: custom_text_clip(BIDIRECTIONAL, init_logit_bias=-10.0),
    "SigLIP in one class": lambda: clip(BIDIRECTIONAL),
    "CoCa": coca,
    "last token": lambda: clip({"pool_type": "last"}),
    "class token": lambda: custom_text_clip({"embed_cls": True}),
    "blocks of another kind": lambda: clip({"qk_norm": True}),
    "tokens too": lambda: custom_text_clip({"output_tokens": True}),
    "another library's tower": other_tower,
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


def embed_and_gradients(encode, model, tokens):
    """The embeddings, and the gradient of a random projection of them by name of parameter."""
    model.zero_grad()
    output = encode(tokens)
    features = (output[0] if isinstance(output, tuple) else output).float()
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return features.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model, tokens, tolerance=1e-5):
    def packed(tokens):
        return packed_text.encode_text(model, tokens)

    def plain(tokens):
        return model.encode_text(tokens, normalize=False)  # CoCa would normalize by default

    features, gradients = embed_and_gradients(packed, model, tokens)
    expected, expected_gradients = embed_and_gradients(plain, model, tokens)
    torch.testing.assert_close(features, expected, atol=tolerance, rtol=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("name", PACKED)
def test_packed_towers_equal_the_plain_one_in_embeddings_and_gradients(name):
    model = build(PACKED[name])
    assert packed_text.is_packable(model)
    assert_equal(model, captions([2, 5, 9, 12, 3]))


@pytest.mark.parametrize("name", NOT_PACKED)
def test_other_towers_take_their_own_way_in_silence(name, capsys, recwarn):
    model = build(NOT_PACKED[name])
    assert not packed_text.is_packable(model)
    recwarn.clear()
    assert_equal(model, captions([2, 5, 9, 12, 3]), tolerance=0)
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
    assert not packed_text.is_packable(model)
    assert_equal(model, captions([4, 7]), tolerance=0)


@pytest.mark.parametrize(
    "lengths", [[LENGTH] * 4, [7], [LENGTH], [1], [2, 2, 2]], ids=["all full", "one", "one full", "empty", "equal"]
)
def test_any_batch_of_captions(lengths):
    assert_equal(build(clip), captions(lengths))


def test_captions_without_an_end_are_read_where_open_clip_reads_them():
    model = build(lambda: clip({"pool_type": "eos", "eos_id": END}))
    assert_equal(model, captions([3, 12, 8], end=7))


def test_normalize():
    model, tokens = build(clip), captions([3, 12, 8])
    features = packed_text.encode_text(model, tokens, normalize=True)
    torch.testing.assert_close(features, model.encode_text(tokens, normalize=True))


@pytest.mark.parametrize("name", ["ViT", "ResNet", "text tower of its own"])
def test_under_bf16_autocast_it_is_as_close_to_fp32_as_the_plain_tower(name):
    model, tokens = build(PACKED[name]), captions([2, 5, 9, 12, 3])
    exact, exact_gradients = embed_and_gradients(model.encode_text, model, tokens)

    def error(encode):
        def under_autocast(tokens):
            with torch.autocast("cpu", torch.bfloat16):
                return encode(tokens)

        features, gradients = embed_and_gradients(under_autocast, model, tokens)
        assert gradients.keys() == exact_gradients.keys()
        differences = [features - exact, *(gradients[name] - exact_gradients[name] for name in gradients)]
        return torch.cat([difference.flatten() for difference in differences]).norm()

    plain = error(model.encode_text)
    assert 0 < error(lambda tokens: packed_text.encode_text(model, tokens)) < 1.5 * plain


@pytest.mark.parametrize("name", ["ViT", "text tower of its own"])
def test_with_gradient_checkpointing(name):
    model = build(PACKED[name])
    tokens = captions([2, 12, 6])
    expected, expected_gradients = embed_and_gradients(model.encode_text, model, tokens)
    model.set_grad_checkpointing()
    features, gradients = embed_and_gradients(lambda t: packed_text.encode_text(model, t), model, tokens)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    for gradient_name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[gradient_name], atol=1e-4, rtol=1e-4)


def test_half_precision_weights():
    model, tokens = build(clip).to(torch.bfloat16), captions([2, 5, 12])
    features = packed_text.encode_text(model, tokens)
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features, model.encode_text(tokens), atol=0.05, rtol=0.05)


def test_frozen_towers_get_no_gradients():
    model, tokens = build(clip), captions([2, 5, 12])
    for parameter in model.transformer.parameters():
        parameter.requires_grad = False
    assert_equal(model, tokens)
    assert model.transformer.resblocks[0].attn.in_proj_weight.grad is None


def test_the_plain_tower_is_not_changed():
    model, tokens = build(clip), captions([2, 5, 12])
    before = copy.deepcopy(model.state_dict())
    packed_text.encode_text(model, tokens)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


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
            packed_text.encode_text(model, tokens).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(threads)
    for again in gradients[1:]:
        assert all(torch.equal(g, first) for g, first in zip(again, gradients[0]))
