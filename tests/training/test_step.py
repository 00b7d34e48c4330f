"""A step works on values alone: no run, no settings; what it changes and what it leaves."""

from types import SimpleNamespace

import pytest
import torch

import openClipManagement as clip
from clip_finetuning.training import losses, optimizer
from clip_finetuning.training.plan import Plan
from clip_finetuning.training.step import TornUpdate, step_seed, train_step
from tests.helpers import write_config


def a_plan(**changes):
    values = {
        "total_steps": 10, "batch_size": 6, "micro_batch_size": 6, "precision": "fp32", "loss": "clip", "optimizer": "adamw",
        "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 2, "weight_decay": 0.1, "betas": (0.9, 0.98),
        "eps": 1e-6, "grad_clip_norm": 1.0, "ema_decay": None, "seed": 1, "log_interval": 10, "checkpoint_interval": 10,
        "eval_interval": None, "patience": None, "keep": "gain", "settings": {},
    }  # fmt: skip
    return Plan(**values | changes)


@pytest.fixture
def parts(tmp_path):
    """(model, optimizer, scaler, batch) of a tiny training."""
    clip_model = clip.create_model(write_config(tmp_path))
    adamw = optimizer.create_optimizer(
        clip_model.model, learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6
    )
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=random)
    tokens = clip_model.tokenizer([f"caption {number}" for number in range(6)])
    batch = SimpleNamespace(
        images=images, tokens=tokens, identities=torch.arange(6)[:, None].expand(-1, 2).contiguous()
    )
    return clip_model, adamw, torch.amp.GradScaler("cpu", enabled=False), batch


def weights(clip_model):
    return {name: value.clone() for name, value in clip_model.model.state_dict().items()}


def moved(clip_model, before):
    return any(not torch.equal(value, before[name]) for name, value in clip_model.model.state_dict().items())


def test_a_step_moves_the_weights_and_says_how(parts):
    before = weights(parts[0])
    done = train_step(*parts, a_plan(), step=0, micro_batch_size=6)
    assert moved(parts[0], before) and done.updated
    assert done.learning_rate == 5e-3 and done.micro_batch_size == 6  # the first of two steps of warmup
    assert done.loss.item() == pytest.approx(1.79, abs=0.5) and done.grad_norm > 0  # ln 6 for a guess
    assert list(done.record) == ["loss", "learning_rate", "grad_norm", "logit_scale"]
    assert done.logit_scale.item() == pytest.approx(parts[0].model.logit_scale.exp().item())


def test_the_loss_falls_over_the_steps(parts):
    seen = [train_step(*parts, a_plan(), step=step, micro_batch_size=6).loss.item() for step in range(8)]
    assert seen[-1] < seen[0] - 0.3


def test_micro_batches_give_the_same_step(parts, tmp_path):
    before = weights(parts[0])
    whole = train_step(*parts, a_plan(), step=0, micro_batch_size=6)
    parts[0].model.load_state_dict(before)
    sliced = train_step(*parts, a_plan(), step=0, micro_batch_size=2)
    assert sliced.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    assert sliced.grad_norm.item() == pytest.approx(whole.grad_norm.item(), rel=1e-4)
    assert sliced.micro_batch_size == 2


def test_a_step_that_is_not_finite_leaves_the_weights(parts, monkeypatch):
    real_loss, before = losses.clip_loss, weights(parts[0])
    monkeypatch.setattr(losses, "clip_loss", lambda *values: real_loss(*values) * float("nan"))
    done = train_step(*parts, a_plan(), step=3, micro_batch_size=6)
    assert not done.updated and not moved(parts[0], before)


def test_an_error_in_the_update_is_a_torn_one_and_an_error_before_it_is_itself(parts, monkeypatch):
    monkeypatch.setattr(parts[1], "step", lambda *_: 1 / 0)
    with pytest.raises(TornUpdate) as caught:
        train_step(*parts, a_plan(), step=0, micro_batch_size=6)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    monkeypatch.setattr(losses, "clip_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_step(*parts, a_plan(), step=0, micro_batch_size=6)


def test_the_scale_is_bounded_for_the_softmax_loss_alone(parts):
    parts[0].model.logit_scale.data.fill_(6.0)
    assert train_step(*parts, a_plan(), step=0, micro_batch_size=6).logit_scale.item() == pytest.approx(100)
    clip.add_logit_bias(parts[0])
    parts[0].model.logit_scale.data.fill_(6.0)
    assert train_step(*parts, a_plan(loss="siglip"), step=1, micro_batch_size=6).logit_scale > 200


def test_seeds_differ_by_step_and_rank():
    assert len({step_seed(1, step, rank) for step in range(50) for rank in range(4)}) == 200
    assert 0 <= step_seed(2**62, 10**9, 7) < 2**63
