"""A training of a part of the model, through the script: what moves, what stays, and that it goes on to the bit."""

import os
import signal

import pytest
import torch

import clipFineTuner
import openClipManagement as clip
from clip_finetuning.training import step as training_step
from tests.helpers import TINY, write_config
from tests.processes import run_ranks

PRODUCTS, VIEWS = 24, 2
SCALARS = {"logit_scale", "logit_bias"}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
DEEP = {**TINY["vision_cfg"], "layers": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """A folder with training shards, two architectures, and weights of both that were trained before."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "train", products=PRODUCTS, views=VIEWS, shards=2)
    for name, vision in (("vit", DEEP), ("resnet", RESNET)):
        write_config(folder, name, vision_cfg=vision)
        train(folder, folder / name, name, max_steps=2, model_pretrained="")
    return folder


def flags(data, run, name="vit", **changes):
    knobs = {
        "model_name": data / f"{name}.json",
        "model_pretrained": data / name / "final_checkpoint.pt",
        "train_dataset_pattern": data / "train.{000000..000001}.tar",
        "checkpoint_dir": run,
        "batch_size": 8,
        "num_workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_steps": 4,
        "eval_interval": "none",
        **changes,
    }
    return [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()]


def train(data, run, *name, **changes):
    clipFineTuner.main(flags(data, run, *name, **changes))
    return clip.read_checkpoint(run / "final_checkpoint.pt")


def moved(start, end):
    """Names of the weights and statistics that are no more what they were."""
    return {name for name, value in end.items() if name not in start or not torch.equal(value, start[name])}


def of_image(names):
    return {name for name in names if name.startswith("visual.")}


def stop_after(steps, monkeypatch):
    real_step = training_step.train_step

    def train_step(*arguments, **options):
        done = real_step(*arguments, **options)
        if options["step"] + 1 == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(training_step, "train_step", train_step)


CASES = [
    ("vit", {"tune": "image", "layer_decay": 0.5, "loss": "siglip", "micro_batch_size": 3}),
    ("vit", {"tune": "text", "optimizer": "muon", "layer_decay": 0.5}),
    ("vit", {"tune": "head", "ema_decay": 0.5, "micro_batch_size": 3}),
    ("vit", {"tune": "full", "image_rate": 0, "text_rate": 0.3, "grad_checkpointing": "true", "micro_batch_size": 3}),
    ("vit", {"tune": "head", "optimizer": "muon", "grad_checkpointing": "true", "loss": "siglip"}),
    ("resnet", {"tune": "text", "grad_checkpointing": "true", "ema_decay": 0.5}),
    ("resnet", {"tune": "head", "precision": "bf16"}),
]


@pytest.mark.parametrize(
    ("name", "changes"), CASES, ids=lambda value: value if isinstance(value, str) else value["tune"]
)
def test_what_trains_moves_what_is_locked_stays_and_a_stopped_run_goes_on_to_the_bit(
    data, tmp_path, monkeypatch, name, changes
):
    start = clip.read_checkpoint(data / name / "final_checkpoint.pt")["state_dict"]
    whole = train(data, tmp_path / "whole", name, **changes)
    learnt = moved(start, whole["state_dict"])
    image = of_image(start)
    if changes["tune"] == "head":
        projection = {n for n in image if "attnpool.c_proj" in n} if name == "resnet" else {"visual.proj"}
        assert learnt - SCALARS == projection | {"text_projection"}
    else:
        trains = image if changes["tune"] == "image" else start.keys() - image
        assert learnt - SCALARS == trains - SCALARS
    assert learnt & SCALARS == SCALARS & whole["state_dict"].keys()
    assert {*whole["optimizer"]["param_groups"][0]} >= {"rate", "param_names"}
    stop_after(2, monkeypatch)
    clipFineTuner.main(flags(data, tmp_path / "run", name, **changes))
    assert not (tmp_path / "run" / "final_checkpoint.pt").exists()
    clipFineTuner.main(["--resume", f"--checkpoint-dir={tmp_path / 'run'}"])  # the checkpoint knows what trains
    resumed = clip.read_checkpoint(tmp_path / "run" / "final_checkpoint.pt")
    for part in ("state_dict", "raw_state_dict"):
        assert not moved(whole.get(part, {}), resumed.get(part, {}))
    for number, moments in whole["optimizer"]["state"].items():
        assert not moved(moments, resumed["optimizer"]["state"][number])


@pytest.mark.parametrize("tune", ["image", "text", "head"])
def test_micro_batches_and_checkpointed_gradients_change_nothing(data, tmp_path, tune):
    plain = train(data, tmp_path / "plain", tune=tune, learning_rate=1e-4)["state_dict"]
    sliced = train(
        data, tmp_path / "sliced", tune=tune, learning_rate=1e-4, micro_batch_size=3, grad_checkpointing="true"
    )
    for name, value in sliced["state_dict"].items():
        torch.testing.assert_close(value, plain[name], atol=2e-5, rtol=0)


def test_two_processes_tune_like_one(data, tmp_path):
    changes = {"tune": "image", "learning_rate": 1e-4, "layer_decay": 0.5, "max_steps": 3}
    alone = train(data, tmp_path / "alone", **changes)["state_dict"]
    finished = run_ranks(clipFineTuner.__file__, *flags(data, tmp_path / "both", **changes))
    assert finished.returncode == 0, finished.stderr
    together = clip.read_checkpoint(tmp_path / "both" / "final_checkpoint.pt")["state_dict"]
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], atol=2e-5, rtol=0)


def test_a_tower_that_trains_slower_moves_less(data, tmp_path):
    """Without decay and clipping AdamW's first step is the rate itself, wherever the gradient is not tiny."""
    start = clip.read_checkpoint(data / "vit" / "final_checkpoint.pt")["state_dict"]
    common = {"max_steps": 1, "weight_decay": 0, "grad_clip_norm": "none", "eps": 1e-12, "learning_rate": 1e-3}
    end = train(data, tmp_path, image_rate=2, text_rate=0.5, layer_decay=0.5, **common)["raw_state_dict"]

    def largest(name):
        return (end[name] - start[name]).abs().max().item()

    expected = {
        "visual.proj": 2, "visual.transformer.resblocks.1.mlp.c_fc.weight": 1, "visual.transformer.resblocks.0.mlp.c_fc.weight": 0.5,
        "visual.conv1.weight": 0.25, "text_projection": 0.5, "transformer.resblocks.0.mlp.c_fc.weight": 0.25,
        "positional_embedding": 0.125, "logit_scale": 1,
    }  # fmt: skip
    assert {name: largest(name) for name in expected} == pytest.approx(
        {n: r * 1e-3 for n, r in expected.items()}, rel=2e-2
    )


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"tune": "head"}, ["head: text_projection, logit_scale, visual.proj"]),
        ({"tune": "image"}, ["image: text tower locked"]),
        (
            {"layer_decay": 0.5, "text_rate": 0.1},
            ["full: image tower at 0.125 to 1 times the rate over 2 blocks; text tower at 0.025 to 0.1 times the rate over 1 blocks"],
        ),
        ({"image_rate": 0}, ["full: image tower locked"]),
    ],
)  # fmt: skip
def test_the_start_says_what_trains(data, tmp_path, capsys, changes, lines):
    end = train(data, tmp_path, max_steps=1, **changes)
    block = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    assert [block[name] for name in block if name == "tuning"] == lines
    names = {name for group in end["optimizer"]["param_groups"] for name in group["param_names"]}
    trainable = sum(end["state_dict"][name].numel() for name in names)
    assert block["parameters"].endswith(f", trainable {trainable:,}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_rate": 0, "text_rate": 0}, "TUNE=full with IMAGE_RATE=0 and TEXT_RATE=0 leaves nothing to train"),
        ({"tune": "text", "text_rate": 0}, "TUNE=text with TEXT_RATE=0 leaves nothing to train: set TEXT_RATE above 0"),
        ({"tune": "image", "text_rate": 0.5}, "TEXT_RATE=0.5 changes nothing, since TUNE=image locks the text tower"),
        ({"tune": "head", "layer_decay": 0.5}, "LAYER_DECAY=0.5 changes nothing, since TUNE=head trains no block"),
        ({"tune": "bias"}, "TUNE='bias' is not allowed"),
        ({"layer_decay": 0}, "LAYER_DECAY='0' is not allowed: it takes a number > 0 and <= 1"),
        ({"image_rate": -1}, "IMAGE_RATE='-1' is not allowed: it takes a number >= 0"),
    ],
)
def test_what_cannot_train_is_one_line(data, tmp_path, capsys, changes, words):
    with pytest.raises(SystemExit):
        train(data, tmp_path, **changes)
    assert words in capsys.readouterr().err


def test_another_tune_is_another_training_and_other_rates_need_force(data, tmp_path, capsys):
    train(data, tmp_path, tune="text", max_steps=2)
    with pytest.raises(ValueError, match="another kind of training: TUNE was text, is full.*as MODEL_PRETRAINED"):
        clipFineTuner.main(["--resume", "--force", f"--checkpoint-dir={tmp_path}", "--max-steps=4", "--tune=full"])
    slower = [
        "--resume",
        f"--checkpoint-dir={tmp_path}",
        "--lr-schedule=constant",
        "--max-steps=4",
        "--layer-decay=0.5",
    ]
    with pytest.raises(ValueError, match="LAYER_DECAY was 1.0, is 0.5"):
        clipFineTuner.main(slower)
    clipFineTuner.main([*slower, "--force"])
    groups = clip.read_checkpoint(tmp_path / "final_checkpoint.pt")["optimizer"]["param_groups"]
    assert {group["rate"] for group in groups} == {1.0, 0.5, 0.25}


def test_a_checkpoint_from_before_there_was_a_choice_goes_on_with_all(data, tmp_path):
    checkpoint = train(data, tmp_path, max_steps=2)
    for name in ("TUNE", "LAYER_DECAY", "IMAGE_RATE", "TEXT_RATE"):
        del checkpoint["settings"][name]
    for group in checkpoint["optimizer"]["param_groups"]:
        del group["rate"]
    torch.save(checkpoint, tmp_path / "final_checkpoint.pt")
    with pytest.raises(ValueError, match="TUNE was full, is head"):
        clipFineTuner.main(["--resume", "--force", f"--checkpoint-dir={tmp_path}", "--max-steps=3", "--tune=head"])
    clipFineTuner.main(["--resume", "--force", f"--checkpoint-dir={tmp_path}", "--max-steps=3"])
    resumed = clip.read_checkpoint(tmp_path / "final_checkpoint.pt")
    assert resumed["step"] == 3 and resumed["settings"]["TUNE"] == "full"
    assert moved(checkpoint["state_dict"], resumed["state_dict"]) == checkpoint["state_dict"].keys()


def test_random_weights_that_are_locked_are_warned_of(data, tmp_path, capsys):
    train(data, tmp_path, model_pretrained="", tune="head", max_steps=1)
    assert "TUNE=head locks weights that are random" in capsys.readouterr().err
