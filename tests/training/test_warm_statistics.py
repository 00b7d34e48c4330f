"""Steps that fill the optimizer's moments before the first one that moves a weight."""

import pytest
import torch

from clip_finetuning.training import optimizer
from clip_finetuning.training.step import train_step
from tests.training import test_plan
from tests.training.test_anchor import parts  # noqa: F401 - a fixture
from tests.training.test_step import a_plan

NAME = "visual.proj"


def state_of(clip_model):
    return {name: value.clone() for name, value in clip_model.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_no_weight_moves_and_then_the_step_is_that_of_full_moments(parts, kind):  # noqa: F811
    """The gradient stays the same, so that each moment, its bias corrected, is that of one step."""
    clip_model, _, scaler, batch = parts
    plan = a_plan(warm_statistics=3, warmup_steps=0, optimizer=kind, grad_clip_norm=None)
    made = optimizer.create_optimizer(
        clip_model.model, learning_rate=1e-2, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-6, kind=kind
    )
    clip_model.model.logit_scale.data.fill_(6.0)  # beyond its bound, which is not for these steps to mend
    before = state_of(clip_model)
    for step in range(3):
        done = train_step(clip_model, made, scaler, batch, plan, step=step, micro_batch_size=6)
        assert done.learning_rate == 0 and done.updated
    assert all(torch.equal(value, before[name]) for name, value in clip_model.model.state_dict().items())
    parameter = dict(clip_model.model.named_parameters())[NAME]
    moments, gradient = made.state[parameter], parameter.grad.clone()
    if kind == "muon":
        torch.testing.assert_close(moments["momentum_buffer"], (1 - 0.95**3) * gradient)
    else:
        assert moments["step"] == 3
        torch.testing.assert_close(moments["exp_avg"], (1 - 0.9**3) * gradient)
        torch.testing.assert_close(moments["exp_avg_sq"], (1 - 0.98**3) * gradient.square())
    done = train_step(clip_model, made, scaler, batch, plan, step=3, micro_batch_size=6)
    assert done.learning_rate == 1e-2 and not torch.equal(parameter, before[NAME])
    if kind == "adamw":
        expected = before[NAME] - 1e-2 * gradient / (gradient.abs() + 1e-6)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-4)


def test_they_count_as_steps_and_the_schedule_begins_behind_them():
    found = test_plan.resolve(max_steps=110, warm_statistics=10, learning_rate=1.0)
    rates = [found.learning_rate_at(step) for step in range(110)]
    alone = test_plan.resolve(max_steps=100, learning_rate=1.0)
    assert rates == [0.0] * 10 + [alone.learning_rate_at(step) for step in range(100)]
    assert found.warmup_steps == 10


def test_a_training_that_would_move_no_weight_is_refused():
    with pytest.raises(ValueError, match="WARM_STATISTICS=20 steps move no weight, and this training has 20"):
        test_plan.resolve(max_steps=20, warm_statistics=20)
    assert test_plan.resolve(max_steps=20, warm_statistics=20, first_step=20).total_steps == 20


@pytest.mark.parametrize("warm", [0, 2])
def test_an_average_of_the_weights_begins_with_the_first_that_moves(parts, warm):  # noqa: F811
    updates = []

    class Average:
        def update_parameters(self, model):
            updates.append(model)

    for step in range(3):
        train_step(*parts, a_plan(warm_statistics=warm), step=step, micro_batch_size=6, average=Average())
    assert len(updates) == 3 - warm
