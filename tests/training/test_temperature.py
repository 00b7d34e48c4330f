"""The temperature that FIT_TEMPERATURE finds, and what the first loss is called: against searches by hand, and in a training."""

import math

import pytest
import torch
from torch.nn import functional

import clipFineTuner
import openClipManagement as clip
from clip_finetuning.training import first_loss, losses, temperature
from clip_finetuning.training import step as training_step
from tests.helpers import write_config


def batch(seed, noise=1.0, number=32, dimensions=16):
    """Texts that are noisy copies of their images; two samples of one product, and a caption that two products share."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(number, dimensions, generator=random)
    texts = images + noise * torch.randn(number, dimensions, generator=random)
    identities = torch.stack([torch.arange(number), 100 + torch.arange(number)], 1)
    identities[1, 0], identities[5, 1] = 0, 104
    return [functional.normalize(images, dim=1), functional.normalize(texts, dim=1), identities]


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_nothing_near_the_fitted_temperature_is_better(loss):
    batches = [batch(seed) for seed in range(3)]
    scale, bias = temperature.best(batches, loss)
    assert 2 < scale < 90 and (bias is None) == (loss == "clip")
    least = temperature.mean_loss(batches, loss, scale, bias)
    for factor in (0.9, 0.97, 1.03, 1.1):
        assert temperature.mean_loss(batches, loss, scale * factor, bias) > least
        if bias is not None:
            assert temperature.mean_loss(batches, loss, scale, bias * factor) > least


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 100), (1e6, 1)])
def test_the_softmax_loss_keeps_its_bounds(noise, expected):
    """Pairs that a scale separates the better the larger it is, and pairs that none does."""
    images, texts, _ = batch(0, noise, number=64)
    assert temperature.best([[images, texts, torch.arange(64)]], "clip")[0] == pytest.approx(expected, rel=0.6)


@pytest.mark.parametrize(("loss", "bias"), [("clip", 0.0), ("siglip", None)])
def test_guessing_is_the_best_that_one_logit_for_all_pairs_does(loss, bias):
    images, texts, identities = batch(0)
    function = {"clip": losses.clip_loss, "siglip": losses.siglip_loss}[loss]
    biases = [bias] if bias is not None else [step / 100 for step in range(-600, 0)]
    least = min(function(images, texts, identities, torch.tensor(0.0), torch.tensor(b)).item() for b in biases)
    assert first_loss.guessing_loss(identities, loss) == pytest.approx(least, rel=1e-4)
    assert first_loss.guessing_loss(identities, "clip") == pytest.approx(math.log(32))


# ---------------------------------------------------------------------------------------------- in a training


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """A folder with training shards and weights that are far too sure of themselves on them."""
    folder = tmp_path_factory.mktemp("sure")
    make_shards(folder / "train", products=24, views=2, shards=2)
    clip_model = clip.create_model(write_config(folder))
    torch.nn.init.constant_(clip_model.model.ln_final.bias, 0.1)
    with torch.no_grad():
        clip_model.model.logit_scale.fill_(math.log(60))
    clip.save_checkpoint(folder / "trained.pt", clip_model)
    return folder


def train(data, run, **changes):
    """The keys of the first batch, and the scale and bias that the training ends with."""
    knobs = {
        "model_name": data / "tiny-test.json",
        "model_pretrained": data / "trained.pt",
        "train_dataset_pattern": data / "train.{000000..000001}.tar",
        "checkpoint_dir": run,
        "batch_size": 8,
        "num_workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "eval_interval": "none",
        "max_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-9,
        **changes,
    }
    keys, real_step = [], training_step.train_step

    def train_step(clip_model, optimizer, scaler, batch, *arguments, **options):
        keys.append(batch.keys)
        return real_step(clip_model, optimizer, scaler, batch, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "train_step", train_step)
        clipFineTuner.main([f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()])
    weights = clip.read_checkpoint(run / "final_checkpoint.pt")
    return keys[0], weights["state_dict"]["logit_scale"].exp().item(), weights.get("logit_bias", torch.zeros(())).item()


def test_a_training_begins_with_it_says_so_and_reads_the_same_batches(data, tmp_path, capsys):
    keys, scale, _ = train(data, tmp_path / "as it came")
    warned = capsys.readouterr().err
    assert scale == pytest.approx(60)
    assert "is above guessing (ln 8 = 2.079): at a logit scale of 60 these weights" in warned
    assert "FIT_TEMPERATURE=true sets it to where the loss is lowest, a longer WARMUP_STEPS than 0" in warned
    fitted_keys, fitted, _ = train(data, tmp_path / "fitted", fit_temperature="true")
    told = capsys.readouterr()
    assert fitted < 20 and fitted_keys == keys
    assert f"   temperature  logit scale 60 -> {fitted:.4g}: the loss of the first 6 batches goes from " in told.out
    assert "above guessing" not in told.err or "FIT_TEMPERATURE=true" not in told.err


def test_the_sigmoid_loss_gets_a_scale_and_a_bias(data, tmp_path, capsys):
    _, scale, bias = train(data, tmp_path, loss="siglip", fit_temperature="true")
    told = capsys.readouterr()
    assert (
        f"logit scale 10 -> {scale:.4g}, bias -10 -> {bias:.4g}: the loss of the first 6 batches goes from " in told.out
    )
    assert "without a logit bias" not in told.out  # that is the same, from 10 to 100 alone


def test_random_weights_are_not_told_that_they_guess(data, tmp_path, capsys):
    train(data, tmp_path, model_pretrained="")
    assert "above guessing" not in capsys.readouterr().err
