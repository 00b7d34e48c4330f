"""What is evaluated and saved of low-rank additions and of buffers; the rest is in test_start.py, by whole trainings."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from clip_finetuning.training import average


class LowRank(nn.Module):
    """W + B A, with B zero at first, as `TUNE=lora` adds it."""

    def __init__(self, rows, columns):
        super().__init__()
        self.Aq, self.Bq = nn.Parameter(torch.randn(2, columns)), nn.Parameter(torch.zeros(rows, 2))

    def forward(self, weight):
        return weight + self.Bq @ self.Aq


def test_low_rank_additions_are_mixed_as_the_weights_that_they_make():
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.load_state_dict(start.state_dict())
    parametrize.register_parametrization(model[0], "weight", LowRank(3, 4))
    with torch.no_grad():
        model[0].parametrizations.weight[0].Bq.normal_()
        model[0].bias.add_(1)
        model[1].running_mean.fill_(5)
    mixed = average.mixed(model, start, 0.25)
    for name in ("weight", "bias"):
        ends = [getattr(m[0], name).detach() for m in (start, model)]
        torch.testing.assert_close(getattr(mixed[0], name).detach(), 0.25 * ends[0] + 0.75 * ends[1])
    assert mixed[1].running_mean.tolist() == [5] * 3
    assert mixed.state_dict().keys() == model.state_dict().keys()


def test_where_nothing_has_moved_a_mix_is_the_same_to_the_bit():
    torch.manual_seed(0)
    model = nn.Linear(30, 30)
    assert torch.equal(average.mixed(model, model, 0.3).weight, model.weight)


def test_a_moving_average_that_begins_after_a_resume_begins_with_the_trained_weights():
    model, start = nn.Linear(3, 2), nn.Linear(3, 2)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    before = average.create(model, None, start, 0.5)
    assert before is not None
    checkpoint = copy.deepcopy(before.checkpoint_fields(model))
    model.load_state_dict(checkpoint["state_dict"])  # as a resumed run begins
    after = average.create(model, 0.9, start, 0.5)
    average.restore(after, model, checkpoint)
    assert after is not None and after.moving is not None
    for name, value in raw.items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal(after.moving.module.state_dict()[name], value)
    assert average.create(model, None, start, 0.0) is None
