"""Weights between two models: both ends to the bit, the line between them, and what has no line."""

import re

import pytest
import torch

from clip_finetuning.model import building
from clip_finetuning.model.clip_model import add_logit_bias
from clip_finetuning.model.interpolation import Line, line_between
from tests.helpers import TINY, write_config


def pair(kind=torch.float32):
    """Two state dicts of a linear layer and a normalisation."""
    random = torch.Generator().manual_seed(3)

    def one(steps):
        return {
            "weight": torch.randn(4, 3, generator=random).to(kind),
            "logit_scale": torch.randn((), generator=random),
            "running_var": torch.rand(4, generator=random),
            "num_batches_tracked": torch.tensor(steps),
            "ids": torch.tensor([steps], dtype=torch.int32),
        }

    return one(10), one(20)


def at(share, start, tuned):
    return dict(Line(start, tuned).weights(share))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_ends_are_the_two_models_to_the_bit(kind):
    start, tuned = pair(kind)
    assert all(torch.equal(weight, tuned[name]) for name, weight in at(1, start, tuned).items())
    for name, weight in at(0, start, tuned).items():
        assert torch.equal(weight, start[name] if weight.is_floating_point() else tuned[name])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_between_them_every_number_is_on_the_line(share):
    start, tuned = pair()
    mix = at(share, start, tuned)
    assert list(mix) == list(tuned)
    for name in ("weight", "logit_scale", "running_var"):
        assert torch.allclose(mix[name], (1 - share) * start[name] + share * tuned[name])
    assert mix["num_batches_tracked"] == 20 and mix["ids"].tolist() == [20] and mix["ids"].dtype == torch.int32


def test_half_precision_is_rounded_once():
    start, tuned = ({"w": torch.tensor([value]).half()} for value in (1.0, 1.0009765625))
    assert at(0.25, start, tuned)["w"].dtype == torch.float16
    large, small = ({"w": torch.tensor([value]).half()} for value in (60000.0, -60000.0))
    assert at(0.5, large, small)["w"].item() == 0.0  # their difference is more than half precision holds


def test_a_model_takes_a_mix_and_goes_back(tmp_path):
    config = write_config(tmp_path)
    start, tuned = (building.create_model(config, seed=seed) for seed in (1, 2))
    before = {name: w.clone() for name, w in tuned.model.state_dict().items()}
    line = line_between(start, tuned)
    line.put(tuned.model, 0.25)
    for name, weight in tuned.model.state_dict().items():
        assert torch.allclose(weight, 0.75 * start.model.state_dict()[name] + 0.25 * before[name], atol=1e-6)
    line.put(tuned.model, 1.0)
    assert all(torch.equal(w, before[name]) for name, w in tuned.model.state_dict().items())
    assert line.remarks == [] and all(p.requires_grad for p in tuned.model.parameters())


def test_another_preprocessing_is_said(tmp_path):
    start, tuned = (building.create_model(write_config(tmp_path), seed=1) for _ in range(2))
    start.preprocess = {**start.preprocess, "mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    (remark,) = line_between(start, tuned).remarks
    assert "the start prepares pictures otherwise (" in remark and "mean" in remark and "interpolation" in remark


def test_scale_and_bias_of_another_loss_are_not_mixed(tmp_path):
    start, tuned = (building.create_model(write_config(tmp_path), seed=seed) for seed in (1, 2))
    add_logit_bias(tuned)
    line = line_between(start, tuned)
    mix = dict(line.weights(0.5))
    assert mix["logit_bias"] == -10 and mix["logit_scale"] == tuned.model.logit_scale
    assert mix["logit_scale"] != start.model.logit_scale and "sigmoid loss" in line.remarks[0]
    add_logit_bias(start)
    start.model.logit_bias.data.fill_(-20.0)
    line = line_between(start, tuned)
    assert dict(line.weights(0.5))["logit_bias"] == -15 and line.remarks == []


def changed(weights, **changes):
    return {name: w for name, w in {**weights, **changes}.items() if w is not None}


@pytest.mark.parametrize(
    ("of_start", "of_tuned", "words"),
    [
        ({"weight": None}, {}, "of the 5 weights of the fine-tuned one the start lacks 1 (weight ...)"),
        (
            {},
            {"weight": None, "ids": None},
            "of the 3 weights of the fine-tuned one the start has besides 2 (weight ...)",
        ),
        ({"weight": torch.zeros(4, 2)}, {}, "the start has in another shape 1 (weight ...)"),
        ({"weight": torch.zeros(4, 3, dtype=torch.int8)}, {}, "has in another shape 1 (weight"),
        ({"weight": torch.full((4, 3), torch.nan)}, {}, "1 weights of the start are not finite (weight ...)"),
        ({}, {"logit_scale": torch.tensor(torch.inf)}, "1 weights of the fine-tuned model are not finite (logit_scale"),
    ],
)
def test_what_has_no_line_is_refused_in_one_line(of_start, of_tuned, words):
    start, tuned = pair()
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        Line(changed(start, **of_start), changed(tuned, **of_tuned))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_beyond_the_line_is_refused(share):
    with pytest.raises(ValueError, match="takes a number from 0"):
        at(share, *pair())


def test_another_activation_is_another_architecture(tmp_path):
    """Which no weight tells."""
    tuned = building.create_model(write_config(tmp_path), seed=1)
    start = building.create_model(write_config(tmp_path, "quick", quick_gelu=True, **TINY), seed=1)
    for one, other in ((start, tuned), (tuned, start)):
        with pytest.raises(ValueError, match="quick computes with QuickGELU, tiny-test with GELU"):
            line_between(one, other)
