"""Which parameters decay, which AdamW runs, and the learning rate of every step."""

import itertools
import math

import open_clip
import pytest
import torch

from optimization import check_warmup, create_optimizer, is_matrix, learning_rate_at, set_learning_rate

OPTIONS = {"learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-6}


def tiny_model(**options):
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64}
    text = {"context_length": 8, "vocab_size": 50, "layers": 1, "width": 32, "heads": 2}
    return open_clip.CLIP(embed_dim=16, vision_cfg={**vision, **options}, text_cfg=text)


def test_only_matrices_decay():
    model = tiny_model()
    decayed = {name for name, p in model.named_parameters() if is_matrix(name, p)}
    assert {"visual.conv1.weight", "visual.proj", "token_embedding.weight", "text_projection"} < decayed
    assert "transformer.resblocks.0.mlp.c_fc.weight" in decayed
    plain = {name for name, _ in model.named_parameters()} - decayed
    assert {"logit_scale", "positional_embedding", "visual.positional_embedding", "visual.class_embedding"} < plain
    assert all("bias" in n or "ln_" in n or "embedding" in n or n == "logit_scale" for n in plain)


def test_every_trainable_parameter_is_in_one_group():
    model = tiny_model()
    model.visual.proj.requires_grad_(False)
    optimizer = create_optimizer(model, **OPTIONS)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.defaults["fused"] is True
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_fused_step_is_the_default_step():
    """On the same gradients; and without gradient, decay shrinks the matrices alone."""
    models = [tiny_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = create_optimizer(models[0], **OPTIONS)
    groups = [{"params": ps, "weight_decay": wd} for ps, wd in _by_decay(models[1])]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=False, foreach=False)
    for seed in range(3):
        for model, optimizer in zip(models, (ours, reference)):
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p) if seed else torch.zeros_like(p)
            optimizer.step()
    for p, q in zip(*(m.parameters() for m in models)):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def _by_decay(model):
    matrices = [p for n, p in model.named_parameters() if is_matrix(n, p)]
    return (matrices, 0.1), ([p for n, p in model.named_parameters() if not is_matrix(n, p)], 0.0)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameters"):
        create_optimizer(tiny_model().requires_grad_(False), **OPTIONS)


def test_warmup_and_cosine():
    def rates(**options):
        return [learning_rate_at(s, peak=2.0, total_steps=110, warmup_steps=10, **options) for s in range(110)]

    cosine = rates()
    assert cosine[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert cosine[10] == 2.0 == max(cosine)
    assert cosine[60] == pytest.approx(1.0)
    assert cosine[109] == pytest.approx(1 + math.cos(math.pi * 0.99))
    assert all(a > b > 0 for a, b in itertools.pairwise(cosine[10:]))
    assert rates(schedule="constant") == cosine[:10] + [2.0] * 100


def test_no_warmup_and_a_single_step():
    assert learning_rate_at(0, peak=3.0, total_steps=1, warmup_steps=0) == 3.0
    assert learning_rate_at(5, peak=3.0, total_steps=5, warmup_steps=0) == 0.0


def test_warmup_longer_than_half_is_refused():
    check_warmup(50, 100)
    check_warmup(0, 1)
    with pytest.raises(ValueError, match=r"WARMUP_STEPS=51 is more than half of the 100 steps .* at most 50"):
        check_warmup(51, 100)
