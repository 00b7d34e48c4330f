"""Which parameters decay, which AdamW runs, and the learning rate of every step."""

import itertools
import math

import open_clip
import pytest
import torch

from optimization import (
    MUON_RATE,
    check_warmup,
    count_moments,
    create_optimizer,
    is_matrix,
    learning_rate_at,
    multiplied,
    pick_optimizer,
    set_learning_rate,
)

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


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_model_without_trainable_parameters_is_refused(kind):
    with pytest.raises(ValueError, match="no trainable parameters"):
        create_optimizer(tiny_model().requires_grad_(False), kind=kind, **OPTIONS)


# ---------------------------------------------------------------------------------------------------- Muon


def names_of(model, parameters):
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in parameters}


def test_muon_gets_what_activations_are_multiplied_by():
    model = tiny_model()
    block = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    towers = ("transformer", "visual.transformer")
    inner = {f"{tower}.resblocks.0.{name}" for tower in towers for name in block}
    assert names_of(model, multiplied(model)) == inner | {"visual.proj", "text_projection"}


def test_no_kernel_no_embedding_and_no_query_is_for_muon():
    queries = tiny_model(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2)
    assert "visual.attn_pool.query" not in names_of(queries, multiplied(queries))
    assert "visual.attn_pool.attn.q_proj_weight" in names_of(queries, multiplied(queries))
    resnet = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        text_cfg={"context_length": 8, "vocab_size": 50, "layers": 1, "width": 32, "heads": 2},
    )
    names = names_of(resnet, multiplied(resnet))
    assert "visual.attnpool.q_proj.weight" in names
    assert not [name for name in names if "conv" in name or "embedding" in name]


def test_muon_and_adamw_share_the_parameters_and_the_schedule():
    model = tiny_model()
    model.visual.proj.requires_grad_(False)
    optimizer = create_optimizer(model, kind="muon", **OPTIONS)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * MUON_RATE, 0.5, 0.5]
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    assert count_moments(optimizer) == 2 * sum(sizes) - sum(p.numel() for p in multiplied(model))
    assert count_moments(create_optimizer(model, **OPTIONS)) == 2 * sum(sizes)


def test_the_state_of_both_is_that_of_one_optimizer_and_goes_on_to_the_bit(tmp_path):
    models = [tiny_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [create_optimizer(model, kind="muon", **OPTIONS) for model in models]
    for seed in range(2):
        for model, optimizer in zip(models, optimizers):
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        state = optimizers[1].state_dict()
        assert sorted(state["state"]) == sorted(n for group in state["param_groups"] for n in group["params"])
        torch.save(state, tmp_path / "state.pt")
        optimizers[1] = create_optimizer(models[1], kind="muon", **OPTIONS)
        optimizers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in models)))


def test_a_step_that_overflows_in_fp16_moves_neither_of_them():
    model = tiny_model()
    optimizer, scaler = create_optimizer(model, kind="muon", **OPTIONS), torch.amp.GradScaler("cpu")
    before = [p.clone() for p in model.parameters()]
    for scale in (math.inf, 1.0):
        scaler.scale(sum((p * scale).sum() for p in model.parameters())).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before)]
        assert not any(moved) if scale == math.inf else all(moved)
        model.zero_grad()


def test_auto_takes_muon_for_random_weights_unless_the_batch_is_too_small_for_it():
    model = tiny_model()  # 64 wide
    assert pick_optimizer("auto", model, 16, untrained=True) == "muon"
    assert pick_optimizer("auto", model, 15, untrained=True) == "adamw"
    assert pick_optimizer("auto", model, 4096, untrained=False) == "adamw"
    assert pick_optimizer("muon", model, 1, untrained=False) == "muon"
    assert pick_optimizer("adamw", model, 4096, untrained=True) == "adamw"


# ------------------------------------------------------------------------------------------- learning rate


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
