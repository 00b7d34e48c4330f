"""Every knob: default < environment < flag, one clear line for a wrong value."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def parser():
    return settings.Parser(
        "A test.",
        ["BATCH_SIZE", "MAX_STEPS", "PRECISION", "CHECKPOINT_DIR", "EVAL_CHECKPOINT", "RESUME", "MODEL_PRETRAINED"],
    )


def test_documented_defaults():
    assert (settings.MODEL_NAME, settings.MODEL_PRETRAINED) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert (settings.CHECKPOINT_INTERVAL, settings.MAX_STEPS) == (1000, None)
    assert settings.VALID_DATASET_PATTERN == "webdataset_shards/clip_dataset_valid.{000000..000006}.tar"
    assert settings.TEST_DATASET_PATTERN == "webdataset_shards/clip_dataset_valid.{000007..000032}.tar"
    assert settings.TRAIN_DATASET_PATTERN.startswith("webdataset_shards/clip_dataset_train.{000000..")
    for name in ["ON_COLAB", "BATCH_SIZE", "NUM_WORKERS", "MODEL_CACHE_DIR", "CHECKPOINT_DIR", "EVAL_CHECKPOINT"]:
        assert hasattr(settings, name)


def test_a_flag_beats_the_environment_and_that_the_default(parser, monkeypatch):
    assert parser.parse_args([]).batch_size == settings.BATCH_SIZE
    monkeypatch.setenv("CLIP_BATCH_SIZE", "7")
    assert parser.parse_args([]).batch_size == 7
    values = parser.parse_args(["--batch-size", "9"])
    assert values.batch_size == 9
    assert values.given == {"BATCH_SIZE"}


def test_an_empty_value_and_none_are_values(parser, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_PRETRAINED", "")
    monkeypatch.setenv("CLIP_MAX_STEPS", "none")
    values = parser.parse_args([])
    assert (values.model_pretrained, values.max_steps) == ("", None)


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--batch-size", "0", "whole number >= 1"),
        ("--batch-size", "many", "whole number >= 1"),
        ("--max-steps", "-3", "whole number >= 1 or none"),
        ("--precision", "fp64", "one of auto, fp16, bf16, fp32"),
        ("--on-colab", "maybe", "true or false"),
    ],
)
@pytest.mark.parametrize("way", ["flag", "environment"])
def test_a_wrong_value_is_one_line_with_knob_value_and_rule(parser, monkeypatch, capsys, flag, value, allowed, way):
    name = flag[2:].replace("-", "_").upper()
    arguments = [flag, value] if way == "flag" else []
    if way == "environment":
        monkeypatch.setenv(f"CLIP_{name}", value)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.count("\n") == 1
    assert f"{name}='{value}'" in message
    assert allowed in message


def test_abbreviated_flags_are_refused(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch", "3"])
    assert "--batch" in capsys.readouterr().err


def test_a_misspelt_variable_is_pointed_out(parser, monkeypatch, capsys):
    monkeypatch.setenv("CLIP_BATCHSIZE", "3")
    parser.parse_args([])
    assert "CLIP_BATCH_SIZE" in capsys.readouterr().err


def test_a_default_that_was_edited_badly_is_refused(parser, monkeypatch, capsys):
    monkeypatch.setattr(settings.KNOBS["BATCH_SIZE"], "default", -1)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "BATCH_SIZE='-1'" in capsys.readouterr().err


def test_drive_holds_the_default_paths_on_colab_and_only_those(parser):
    values = parser.parse_args(["--on-colab", "true"])
    assert values.checkpoint_dir == f"{settings.DRIVE_FOLDER}/checkpoints"
    assert values.eval_checkpoint == f"{settings.DRIVE_FOLDER}/checkpoints/final_checkpoint.pt"
    assert parser.parse_args(["--on-colab", "true", "--checkpoint-dir", "here"]).checkpoint_dir == "here"


def test_colab_is_detected(monkeypatch):
    command = [sys.executable, "-c", "import settings; print(settings.ON_COLAB, settings.CHECKPOINT_DIR)"]
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-1")
    on_colab = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    elsewhere = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert on_colab.split() == ["True", f"{settings.DRIVE_FOLDER}/checkpoints"]
    assert elsewhere.split() == ["False", "checkpoints"]


def test_the_evaluated_checkpoint_follows_the_checkpoint_folder(parser):
    assert parser.parse_args(["--checkpoint-dir", "run"]).eval_checkpoint == "run/final_checkpoint.pt"


def test_resume_alone_means_auto(parser):
    assert parser.parse_args(["--resume"]).resume == "auto"
    assert parser.parse_args(["--resume", "a.pt"]).resume == "a.pt"
    assert parser.parse_args([]).resume == "none"


@pytest.mark.parametrize("script", ["clip_prep.py", "create_webdataset.py", "clipFineTuner.py", "evaluate_clip.py"])
def test_help_of_each_script_lists_its_knobs_with_defaults(script):
    """Every knob that the script's source reads as `args.<name>` stands in its help."""
    text = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    read = {
        n.attr.upper() for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "args"
    }
    for name in read & set(settings.KNOBS):
        assert "--" + name.lower().replace("_", "-") in text
    assert f"[{settings.SEED}]" in text or script == "clip_prep.py"


def test_every_knob_is_used_by_some_script():
    sources = [path for path in ROOT.glob("*.py") if path.name != "settings.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert [name for name in settings.KNOBS if name not in text and name not in ("ON_COLAB", "DEBUG")] == []


def test_a_users_mistake_is_one_line_and_a_debug_run_shows_where(monkeypatch, capsys):
    def main():
        raise ValueError("the thing, the rule,\n the fix")

    with pytest.raises(SystemExit) as end:
        settings.run(main)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("error: the thing, the rule, the fix\n")
    monkeypatch.setenv("CLIP_DEBUG", "true")
    with pytest.raises(ValueError, match="the rule"):
        settings.run(main)


def test_a_cpu_without_memory_is_one_line_too(capsys):
    import torch

    with pytest.raises(SystemExit) as end:
        settings.run(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert end.value.code == 2
    assert "error: out of memory: lower BATCH_SIZE" in capsys.readouterr().err


def test_a_console_that_cannot_show_a_caption_shows_what_it_can():
    code = "import settings; settings.run(lambda: print('caption \\U0001f457 of a dress'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "caption ? of a dress\n")
