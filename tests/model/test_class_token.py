"""The shortened image tower equals open_clip's own, in embeddings and gradients, or steps aside for it."""

import open_clip
import pytest
import torch

from clip_finetuning.model import class_token

VISION = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": 4, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}


def clip(kind=open_clip.CLIP, quick_gelu=False, **vision):
    return kind(16, VISION | vision, TEXT, quick_gelu=quick_gelu)


def coca():
    multimodal = {"context_length": 4, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    return open_clip.CoCa(16, multimodal, text, VISION | POOLER | {"output_tokens": True})


class OtherTower(torch.nn.Module):
    """An image tower that is not open_clip's own, as a timm one is not."""

    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(3, 16)

    def forward(self, pixels):
        return self.projection(pixels.mean((2, 3)))


def other_tower():
    model = clip()
    model.visual = OtherTower()
    return model


SHORTENED = {
    "ViT": clip,
    "ViT with QuickGELU": lambda: clip(quick_gelu=True),
    "one block": lambda: clip(layers=1),
    "layer scale": lambda: clip(ls_init_value=0.3),
    "no norm before": lambda: clip(no_ln_pre=True),
    "last norm after the pooling": lambda: clip(final_ln_after_pool=True),
    "text tower of its own": lambda: clip(open_clip.CustomTextCLIP),
}
NOT_SHORTENED = {
    "ResNet": lambda: clip(layers=[1, 1, 1, 1], width=8, image_size=32),
    "average of the patches": lambda: clip(pool_type="avg"),
    "attentional pooling": lambda: clip(**POOLER),
    "blocks of another kind": lambda: clip(qk_norm=True),
    "CoCa": coca,
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


def pixels(model, count=5):
    size = getattr(model.visual, "image_size", 16)
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def embed_and_gradients(encode, model, *inputs, **options):
    """The embeddings, and the gradient of a random projection of them by name of parameter."""
    model.zero_grad()
    torch.manual_seed(3)  # of patch dropout
    features = encode(*inputs, **options).float()
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return features.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model, images, tolerance=1e-5):
    features, gradients = embed_and_gradients(class_token.encode_image, model, model, images)
    expected, expected_gradients = embed_and_gradients(model.encode_image, model, images, normalize=False)
    torch.testing.assert_close(features, expected, atol=tolerance, rtol=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("name", SHORTENED)
def test_shortened_towers_equal_the_plain_one_in_embeddings_and_gradients(name):
    model = build(SHORTENED[name])
    assert class_token.is_shortened(model)
    assert_equal(model, pixels(model))


@pytest.mark.parametrize("name", NOT_SHORTENED)
def test_other_towers_take_their_own_way_in_silence(name, capsys, recwarn):
    model = build(NOT_SHORTENED[name])
    assert not class_token.is_shortened(model)
    recwarn.clear()
    assert_equal(model, pixels(model), tolerance=0)
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


def test_patch_dropout_draws_the_same_patches():
    model = build(lambda: clip(patch_dropout=0.5))
    assert class_token.is_shortened(model)
    assert_equal(model, pixels(model))


def test_a_batch_of_one_and_unit_length():
    model = build(clip)
    images = pixels(model, 1)
    assert_equal(model, images)
    features = class_token.encode_image(model, images, normalize=True)
    torch.testing.assert_close(features, model.encode_image(images, normalize=True))


def test_with_gradient_checkpointing():
    model = build(lambda: clip(layers=3))
    images = pixels(model)
    expected, expected_gradients = embed_and_gradients(model.encode_image, model, images)
    model.set_grad_checkpointing()
    features, gradients = embed_and_gradients(class_token.encode_image, model, model, images)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-4)


def test_under_bf16_autocast_it_is_as_close_to_fp32_as_the_plain_tower():
    model = build(clip)
    images = pixels(model)
    exact, exact_gradients = embed_and_gradients(model.encode_image, model, images)

    def error(encode, *inputs):
        def under_autocast(*inputs):
            with torch.autocast("cpu", torch.bfloat16):
                return encode(*inputs)

        features, gradients = embed_and_gradients(under_autocast, model, *inputs)
        differences = [features - exact, *(gradients[name] - exact_gradients[name] for name in exact_gradients)]
        return torch.cat([difference.flatten() for difference in differences]).norm()

    assert 0 < error(class_token.encode_image, model, images) < 1.5 * error(model.encode_image, images)


def test_a_locked_tower_gets_no_gradients():
    model = build(clip)
    model.lock_image_tower()
    assert not class_token.encode_image(model, pixels(model)).requires_grad
