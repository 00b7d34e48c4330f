"""The scale and bias that the sigmoid loss starts with, against a search by torch, and in a training."""

import math

import pytest
import torch
from torch.nn import functional

import clipFineTuner
import openClipManagement as clip
from clip_finetuning.training import siglip_start
from clip_finetuning.training import step as training_step
from clip_finetuning.training.losses import siglip_loss
from tests.helpers import write_config


def embeddings(seed, noise, number=48, dimensions=16):
    """A batch whose texts are noisy copies of its images; two samples are of one product."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(number, dimensions, generator=generator)
    texts = images + noise * torch.randn(number, dimensions, generator=generator)
    products = torch.arange(number)
    products[1] = 0
    return functional.normalize(images, dim=1), functional.normalize(texts, dim=1), products


def mean_loss(batches, scale, bias):
    return sum(siglip_loss(*batch, scale, bias) for batch in batches) / len(batches)


def test_nothing_near_it_is_better():
    batches = [embeddings(seed, noise=1.0) for seed in range(3)]
    scale, bias = siglip_start.best_scale_and_bias(batches)
    assert 10.1 < scale < 99
    point = torch.tensor([scale, bias], requires_grad=True)
    gradient = torch.autograd.grad(mean_loss(batches, *point), point)[0]
    curvature = torch.autograd.functional.hessian(lambda p: mean_loss(batches, *p), point)
    off = torch.linalg.solve(curvature, gradient)  # the Newton step that is left
    assert off.abs().max() < 0.02


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 100), (30.0, 10)])
def test_the_scale_stays_within_its_bounds_and_the_bias_is_best_for_it(noise, expected):
    """Pairs that a scale separates perfectly, the better the larger it is, and pairs that none does."""
    batches = [(*embeddings(0, noise)[:2], torch.arange(48))]
    scale, bias = siglip_start.best_scale_and_bias(batches)
    assert scale == pytest.approx(expected)
    slope = torch.tensor(bias, requires_grad=True)
    assert torch.autograd.grad(mean_loss(batches, scale, slope), slope)[0].abs() < 1e-3


def test_large_batches_are_counted_in_parts(monkeypatch):
    batches = [embeddings(0, noise=1.0)]
    whole = siglip_start.best_scale_and_bias(batches)
    monkeypatch.setattr(siglip_start, "ROWS_AT_ONCE", 7)
    assert siglip_start.best_scale_and_bias(batches) == whole


# -------------------------------------------------------------------------------------------- in a training


@pytest.fixture(scope="module")
def start(tmp_path_factory, make_shards):
    """A folder with training shards and weights that pass for trained ones."""
    folder = tmp_path_factory.mktemp("start")
    make_shards(folder / "train", products=24, views=2, shards=2)
    clip_model = clip.create_model(write_config(folder))
    torch.nn.init.constant_(clip_model.model.ln_final.bias, 0.1)
    clip.save_checkpoint(folder / "start.pt", clip_model)
    return folder


def train(folder, run, *more, **changes):
    knobs = {
        "model_name": folder / "tiny-test.json",
        "model_pretrained": folder / "start.pt",
        "train_dataset_pattern": folder / "train.{000000..000001}.tar",
        "checkpoint_dir": run,
        "batch_size": 8,
        "num_workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "eval_interval": "none",
        "loss": "siglip",
        "max_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-9,
        **changes,
    }
    clipFineTuner.main([f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()] + list(more))
    weights = clip.read_checkpoint(run / "final_checkpoint.pt")
    bias = weights.get("logit_bias", torch.tensor(math.nan))
    return weights["state_dict"]["logit_scale"].exp().item(), bias.item()


def test_trained_weights_start_where_the_loss_is_least_and_the_order_stays(start, tmp_path, monkeypatch, capsys):
    met, real_fit, real_step = [], clipFineTuner.fit, training_step.train_step

    def train_step(clip_model, optimizer, scaler, batch, *arguments, **options):
        met.append(batch.keys)
        return real_step(clip_model, optimizer, scaler, batch, *arguments, **options)

    def fit(run, stop):
        met.append(run.loader)
        return real_fit(run, stop)

    monkeypatch.setattr(clipFineTuner, "fit", fit)
    monkeypatch.setattr(training_step, "train_step", train_step)
    whole = train(start, tmp_path / "whole")
    assert "LOSS=siglip on weights without a logit bias: scale " in capsys.readouterr().out
    assert whole != pytest.approx((10, -10), abs=0.01)
    loader, keys = met
    loader.set_epoch(0)
    assert keys == next(iter(loader)).keys
    monkeypatch.undo()
    assert train(start, tmp_path / "sliced", micro_batch_size=3) == pytest.approx(whole, rel=1e-4)


def test_random_weights_start_as_siglip_did(start, tmp_path):
    assert train(start, tmp_path, model_pretrained="") == pytest.approx((10, -10), abs=0.01)


def test_weights_with_a_bias_keep_it_and_so_does_a_resumed_run(start, tmp_path, capsys):
    fitted = train(start, tmp_path / "first")
    capsys.readouterr()
    again = train(start, tmp_path / "second", model_pretrained=tmp_path / "first" / "final_checkpoint.pt")
    resumed = train(start, tmp_path / "first", "--resume", "--force", max_steps=2)
    assert again == pytest.approx(fitted, abs=1e-4)
    assert resumed == pytest.approx(fitted, abs=1e-4)
    assert "without a logit bias" not in capsys.readouterr().out
