"""Trainings that are held to their start, or keep a share of it: what is saved, and what a resumed run has."""

import json

import pytest
import torch

import clipFineTuner
import openClipManagement as clip
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
    clipFineTuner.main([f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()] + list(more))
    return clip.read_checkpoint(run / "final_checkpoint.pt")


def assert_same(found, expected):
    for part in ("state_dict", "raw_state_dict", "average_state_dict"):
        assert (part in found) == (part in expected)
        for name, value in expected.get(part, {}).items():
            assert torch.equal(found[part][name], value), (part, name)
    for number, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(found["optimizer"]["state"][number][key], value) for key, value in moments.items())


def stopped_at(step, monkeypatch):
    """An error in the step of that number, once."""
    real_step = training_step.train_step

    def train_step(*arguments, **options):
        if options["step"] == step:
            monkeypatch.undo()
            raise ValueError("the machine is gone")
        return real_step(*arguments, **options)

    monkeypatch.setattr(training_step, "train_step", train_step)


def interrupted(data, run, monkeypatch, **changes):
    stopped_at(3, monkeypatch)
    with pytest.raises(ValueError, match="the machine is gone"):
        train(data, run, **changes)
    return run


# --------------------------------------------------------------------------------------------- what a run leaves


def test_a_share_of_the_start_is_in_what_is_saved(data, tmp_path, capsys):
    done = train(data, tmp_path, anchor=0)
    start = clip.read_checkpoint(data / "trained.pt")["state_dict"]
    raw = done["raw_state_dict"]
    assert not torch.allclose(raw["visual.proj"], start["visual.proj"], atol=1e-4)
    for name, value in start.items():
        if value.is_floating_point() and torch.isfinite(value).all():
            assert torch.allclose(done["state_dict"][name], 0.25 * value + 0.75 * raw[name], atol=1e-6), name
    told = capsys.readouterr().out
    assert f"         start  25% of what is evaluated and saved; kept in {tmp_path / 'start.pt'}" in told


def test_the_share_is_taken_of_the_moving_average_where_there_is_one(data, tmp_path):
    done = train(data, tmp_path, anchor=0, ema_decay=0.9)
    start, name = clip.read_checkpoint(data / "trained.pt")["state_dict"], "visual.proj"
    average = done["average_state_dict"][name]
    assert not torch.allclose(average, done["raw_state_dict"][name], atol=1e-5)
    assert torch.allclose(done["state_dict"][name], 0.25 * start[name] + 0.75 * average, atol=1e-6)


def test_what_is_saved_is_what_was_evaluated(data, tmp_path):
    train(data, tmp_path, anchor=0, learning_rate=1e-2, eval_interval=4, start_share=0.999999)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["mean_recall@10"] for line in lines if "mean_recall@10" in line]
    assert scores == [scores[0]] * 2  # nearly all of it is the start


def test_an_anchor_holds_the_weights_nearer_to_the_start_and_is_logged(data, tmp_path):
    start = clip.read_checkpoint(data / "trained.pt")["state_dict"]["visual.proj"]
    free, held = (train(data, tmp_path / f"{weight}", anchor=weight, start_share=0) for weight in (0, 30))
    ways = [(done["state_dict"]["visual.proj"] - start).norm() for done in (free, held)]
    assert ways[1] < 0.8 * ways[0]
    lines = [json.loads(line) for line in (tmp_path / "30" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["anchor_loss"] == pytest.approx(0, abs=1e-5)  # the first step is taken at the start
    assert all(line["anchor_loss"] > 1e-5 for line in lines[1:])


def test_without_either_a_run_keeps_no_start(data, tmp_path):
    done = train(data, tmp_path, anchor=0, start_share=0)
    assert "start" not in done and not (tmp_path / "start.pt").exists()


def test_random_weights_are_no_start_to_be_held_to(data, tmp_path, capsys):
    train(data, tmp_path, model_pretrained="", max_steps=1, fit_temperature="true")
    told = capsys.readouterr().err
    for name in ("ANCHOR=0.5", "START_SHARE=0.25", "FIT_TEMPERATURE=true"):
        assert f"WARNING: {name}" in told


# ------------------------------------------------------------------------------------------------- a resumed run


@pytest.mark.parametrize(
    "changes", [{}, {"ema_decay": 0.9}, {"precision": "fp16", "micro_batch_size": 3}, {"loss": "siglip", "anchor": 0}]
)
def test_a_resumed_run_is_the_same_to_the_bit_without_the_weights_it_was_told_of(
    data, tmp_path, monkeypatch, changes
):
    (tmp_path / "trained.pt").write_bytes((data / "trained.pt").read_bytes())
    named = {"model_pretrained": tmp_path / "trained.pt", **changes}
    whole = train(data, tmp_path / "whole", **named)
    run = interrupted(data, tmp_path / "run", monkeypatch, **named)
    (tmp_path / "trained.pt").unlink()
    assert_same(train(data, run, "--resume", **named), whole)


def test_where_the_start_is_gone_it_is_read_again_if_it_is_the_same(data, tmp_path, monkeypatch, capsys):
    whole = train(data, tmp_path / "whole", fit_temperature="true")
    run = interrupted(data, tmp_path / "run", monkeypatch, fit_temperature="true")
    (run / "start.pt").write_bytes(b"damaged")
    assert_same(train(data, run, "--resume", fit_temperature="true"), whole)
    assert f"the start of this run is read again from {data / 'trained.pt'}" in capsys.readouterr().out
    assert clip.read_checkpoint(run / "start.pt")["start"] == whole["start"]


def test_a_start_that_is_not_to_be_had_is_named_in_one_line(data, tmp_path, monkeypatch):
    run = interrupted(data, tmp_path / "run", monkeypatch)
    (run / "start.pt").unlink()
    other = clip.read_checkpoint(data / "trained.pt")
    clip_model = clip.load_model(data / "trained.pt")
    torch.nn.init.constant_(clip_model.model.ln_final.bias, 0.2)
    try:
        clip.save_checkpoint(data / "trained.pt", clip_model)
        with pytest.raises(ValueError, match="no longer, what the run began with") as caught:
            train(data, run, "--resume")
        assert "start.pt does not exist" in str(caught.value) and "\n" not in str(caught.value)
        assert "--anchor=0 --start-share=0 --force" in str(caught.value)
        train(data, run, "--resume", "--force", anchor=0, start_share=0)
    finally:
        torch.save(other, data / "trained.pt")


def test_the_start_of_another_run_is_not_taken(data, tmp_path, monkeypatch, capsys):
    """It goes on in a folder that holds another run's; that one is moved aside, its own is brought along."""
    whole = train(data, tmp_path / "whole")
    run = interrupted(data, tmp_path / "run", monkeypatch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = clip.create_model(str(data / "tiny-test.json"), seed=5)
    clip.save_checkpoint(elsewhere / "start.pt", other)
    done = train(data, elsewhere, f"--resume={run / 'checkpoint_00000002.pt'}")
    assert_same(done, whole)
    assert (elsewhere / "earlier_run_1" / "start.pt").exists()
    assert clip.read_checkpoint(elsewhere / "start.pt")["start"] == whole["start"]


def test_a_new_run_sets_the_start_of_the_earlier_one_aside(data, tmp_path):
    first = train(data, tmp_path)
    second = train(data, tmp_path, model_pretrained=tmp_path / "final_checkpoint.pt")
    kept = [clip.read_checkpoint(path / "start.pt")["start"] for path in (tmp_path / "earlier_run_1", tmp_path)]
    assert kept == [first["start"], second["start"]] and first["start"] != second["start"]


def test_an_anchor_that_begins_late_holds_to_what_the_run_began_with(data, tmp_path, monkeypatch):
    run = interrupted(data, tmp_path, monkeypatch, anchor=0, start_share=0)
    train(data, run, "--resume", "--force", start_share=0)
    start = clip.read_checkpoint(run / "start.pt")["state_dict"]["visual.proj"]
    assert torch.equal(start, clip.read_checkpoint(data / "trained.pt")["state_dict"]["visual.proj"])
