"""Trainings that are held to their start, or keep a share of it: what is saved, and what a resumed run has."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import clipFineTuner
import evaluate_clip
import openClipManagement as clip
from clip_finetuning.training import knobs, state
from clip_finetuning.training import step as training_step
from tests.helpers import write_config


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """A folder with shards and weights that pass for trained ones."""
    folder = tmp_path_factory.mktemp("start")
    make_shards(folder / "train", products=24, views=2, shards=2)
    make_shards(folder / "valid", products=8, views=1, shards=1, first_product=100)
    clip_model = clip.create_model(write_config(folder))
    torch.nn.init.constant_(clip_model.model.ln_final.bias, 0.1)
    clip.save_checkpoint(folder / "trained.pt", clip_model)
    return folder


HELD = {"anchor": 0.5, "start_share": 0.25}


def train(data, run, *more, **changes):
    knobs = {
        "model_name": data / "tiny-test.json",
        "model_pretrained": data / "trained.pt",
        "train_dataset_pattern": data / "train.{000000..000001}.tar",
        "valid_dataset_pattern": data / "valid.{000000..000000}.tar",
        "checkpoint_dir": run,
        "batch_size": 8,
        "num_workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "eval_interval": "none",
        "learning_rate": 1e-3,
        "max_steps": 4,
        "checkpoint_interval": 2,
        "log_interval": 1,
        **HELD,
        **changes,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items() if value is not None]
    clipFineTuner.main(flags + list(more))
    return clip.read_checkpoint(run / "final_checkpoint.pt") if "--dry-run" not in more else {}


def assert_same(found, expected):
    for part in ("state_dict", "raw_state_dict", "average_state_dict"):
        assert (part in found) == (part in expected)
        for name, value in expected.get(part, {}).items():
            assert torch.equal(found[part][name], value), (part, name)
    for number, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(found["optimizer"]["state"][number][key], value) for key, value in moments.items())


def interrupted(data, run, **changes):
    """A run that an error ended after three of its four steps."""
    real_step = training_step.train_step

    def train_step(*arguments, **options):
        if options["step"] == 3:
            raise ValueError("the machine is gone")
        return real_step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "train_step", train_step)
        with pytest.raises(ValueError, match="the machine is gone"):
            train(data, run, **changes)
    return run


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The last checkpoint of an undisturbed run."""
    return train(data, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def broken_off(data, tmp_path_factory):
    return interrupted(data, tmp_path_factory.mktemp("broken off"))


@pytest.fixture
def run(broken_off, tmp_path):
    """A copy of a run that was interrupted."""
    return Path(shutil.copytree(broken_off, tmp_path / "run"))


# --------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize(("ema_decay", "mixed"), [(None, "raw_state_dict"), (0.9, "average_state_dict")])
def test_a_share_of_the_start_is_in_what_is_saved(data, tmp_path, capsys, ema_decay, mixed):
    """Of the moving average, where there is one."""
    average = {} if ema_decay is None else {"ema_decay": ema_decay}
    done = train(data, tmp_path, max_steps=2, anchor=0, **average)
    start = clip.read_checkpoint(data / "trained.pt")["state_dict"]
    assert not torch.allclose(done["raw_state_dict"]["visual.proj"], start["visual.proj"], atol=1e-4)
    assert ("average_state_dict" in done) == (ema_decay is not None)
    for name, value in start.items():
        if value.is_floating_point() and torch.isfinite(value).all():
            expected = 0.25 * value + 0.75 * done[mixed][name]
            assert torch.allclose(done["state_dict"][name], expected, atol=1e-6), name
    told = capsys.readouterr().out
    assert f"         start  25% of what is evaluated and saved; kept in {tmp_path / 'start.pt'}" in told


def test_what_is_saved_is_what_was_evaluated(data, tmp_path):
    train(data, tmp_path, anchor=0, learning_rate=1e-2, max_steps=2, eval_interval=2, start_share=0.999999)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["mean_recall@10"] for line in lines if "mean_recall@10" in line]
    assert scores == [scores[0]] * 2  # nearly all of it is the start


def test_an_anchor_is_logged_from_the_first_step_on(whole, data, tmp_path):
    done = train(data, tmp_path, max_steps=2, anchor=30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["anchor_loss"] == pytest.approx(0, abs=1e-5)  # it is taken at the start
    assert lines[1]["anchor_loss"] > 1e-4
    assert not torch.equal(done["raw_state_dict"]["visual.proj"], whole["raw_state_dict"]["visual.proj"])


def test_without_either_a_run_keeps_no_start(data, tmp_path):
    done = train(data, tmp_path, anchor=0, start_share=0)
    assert "start" not in done and not (tmp_path / "start.pt").exists()


def test_random_weights_are_no_start_to_be_held_to(data, tmp_path, capsys):
    train(data, tmp_path, model_pretrained="", max_steps=1, fit_temperature="true")
    told = capsys.readouterr().err
    for name in ("ANCHOR=0.5", "START_SHARE=0.25", "FIT_TEMPERATURE=true"):
        assert f"WARNING: {name}" in told


# ------------------------------------------------------------------------------------------------- a resumed run


def test_a_resumed_run_is_the_same_to_the_bit_without_the_weights_it_was_told_of(data, run, whole):
    (data / "trained.pt").rename(data / "away.pt")
    try:
        assert_same(train(data, run, "--resume"), whole)
    finally:
        (data / "away.pt").rename(data / "trained.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9, "optimizer": "muon", "warm_statistics": 3, "fit_temperature": "true"},
        {"precision": "fp16", "micro_batch_size": 3, "loss": "siglip", "warm_statistics": 1},
    ],
)
def test_so_is_one_with_everything_else(data, tmp_path, changes):
    expected = train(data, tmp_path / "whole", **changes)
    assert_same(train(data, interrupted(data, tmp_path / "run", **changes), "--resume", **changes), expected)


def test_where_the_start_is_gone_it_is_read_again_if_it_is_the_same(data, run, whole, capsys):
    (run / "start.pt").write_bytes(b"damaged")
    assert_same(train(data, run, "--resume"), whole)
    assert f"the start of this run is read again from {data / 'trained.pt'}" in capsys.readouterr().out
    assert clip.read_checkpoint(run / "start.pt")["start"] == whole["start"]


def test_a_start_that_is_not_to_be_had_is_named_in_one_line(data, run):
    (run / "start.pt").unlink()
    (data / "trained.pt").rename(data / "away.pt")
    try:
        clip_model = clip.load_model(data / "away.pt")
        torch.nn.init.constant_(clip_model.model.ln_final.bias, 0.2)
        clip.save_checkpoint(data / "trained.pt", clip_model)
        with pytest.raises(ValueError, match="no longer, what the run began with") as caught:
            train(data, run, "--resume")
    finally:
        (data / "away.pt").replace(data / "trained.pt")
    assert f"there is no {run / 'start.pt'}" in str(caught.value) and "\n" not in str(caught.value)
    assert "--anchor=0 --start-share=0 --force" in str(caught.value)


def test_the_start_of_another_run_is_not_taken(data, run, whole, tmp_path):
    """A folder that holds another run's, which is moved aside for that of the run that goes on there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clip.save_checkpoint(elsewhere / "start.pt", clip.create_model(str(data / "tiny-test.json"), seed=5))
    assert_same(train(data, elsewhere, f"--resume={run / 'checkpoint_00000002.pt'}"), whole)
    assert (elsewhere / "earlier_run_1" / "start.pt").exists()
    assert clip.read_checkpoint(elsewhere / "start.pt")["start"] == whole["start"]


def test_a_run_can_do_without_and_take_it_up_again(data, run):
    """What the training went on with is the raw weights; what it began with is in `pretrained`."""
    (run / "start.pt").unlink()
    without = train(data, run, "--resume", "--force", anchor=0, start_share=0)
    assert "raw_state_dict" not in without
    train(data, run, "--resume", "--force", max_steps=5)
    start = clip.read_checkpoint(run / "start.pt")["state_dict"]["visual.proj"]
    assert torch.equal(start, clip.read_checkpoint(data / "trained.pt")["state_dict"]["visual.proj"])


def test_a_checkpoint_from_before_there_was_a_choice_goes_on_as_it_trained(data, tmp_path):
    """Without an anchor, and without a share of the start, whatever is usual now."""
    free = {"anchor": 0, "start_share": 0, "ema_decay": 0.9}
    expected = train(data, tmp_path / "whole", **free)
    path = interrupted(data, tmp_path / "run", **free) / "checkpoint_00000003.pt"
    content = torch.load(path, weights_only=True)
    for name in set(state.WITHOUT_A_CHOICE) - {"OPTIMIZER"} | set(knobs.LORA):
        del content["settings"][name]
    for part, name in (("progress", "keep"), ("progress", "first_retention")):
        del content[part][name]
    del content["first_retention"], content["retention_data"]
    torch.save(content, path)
    found = train(data, tmp_path / "run", "--resume", ema_decay=0.9, anchor=None, start_share=None)
    assert_same(found, expected)
    assert (found["settings"]["ANCHOR"], found["settings"]["START_SHARE"], "start" in found) == (0, 0, False)


# ------------------------------------------------------------------------------------------------ what others make of it


@pytest.mark.parametrize("more", [[], ["--try-rates", "1e-3", "1e-4", "--dry-run"]])
def test_the_size_of_the_start_is_said_and_counted_where_it_is_not_there_yet(data, tmp_path, monkeypatch, capsys, more):
    """A checkpoint has 25 MiB, and lies there twice while one is written; pilots come before the start is written."""
    usage = shutil.disk_usage(tmp_path)._replace(free=52 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    train(data, tmp_path, *more, max_steps=1, learning_rate=None if more else 1e-3)
    told = capsys.readouterr()
    assert f"checkpoints  1 of 25 MiB, start.pt of 6 MiB in {tmp_path}, 52 MiB free" in told.out
    assert ("1 of 25 MiB, start.pt of 6 MiB, and one more while writing, may not fit" in told.err) == bool(more)
    assert (tmp_path / "start.pt").exists() == (not more)


def evaluated(data, checkpoint, output, *more):
    arguments = [f"--checkpoint={checkpoint}", f"--dataset-path={data / 'valid.000000.tar'}", f"--output={output}"]
    evaluate_clip.main([*arguments, "--device=cpu", "--num-workers=0", "--protocol", "product", *more])
    return json.loads(output.read_text())


def test_a_mix_goes_by_the_start_that_was_kept_and_tells_of_the_share_of_it_that_is_in_already(data, tmp_path, capsys):
    """Even where its name has come to stand for other weights."""
    weights = Path(shutil.copy(data / "trained.pt", tmp_path / "weights.pt"))
    done = train(data, tmp_path / "run", model_pretrained=weights, max_steps=2)
    shutil.copy(tmp_path / "run" / "final_checkpoint.pt", weights)
    capsys.readouterr()
    mix = tmp_path / "mix.pt"
    found = evaluated(
        data,
        tmp_path / "run" / "final_checkpoint.pt",
        tmp_path / "results.json",
        "--interpolate=0.5",
        f"--save-checkpoint={mix}",
    )
    said = "holds 0.25 of its start already (START_SHARE): of the trained weights each mix has 0.75 of the share that is named"
    assert said in capsys.readouterr().out
    assert found["interpolation"]["start_share"] == 0.25
    start = clip.read_checkpoint(data / "trained.pt")["state_dict"]["visual.proj"]
    expected = (start + done["state_dict"]["visual.proj"]) / 2
    assert torch.allclose(clip.read_checkpoint(mix)["state_dict"]["visual.proj"], expected, atol=1e-7)
