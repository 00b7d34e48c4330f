"""The documented commands, in order, from a raw catalogue to numbers, each in a process of its own."""

import json
import os
import tarfile
from pathlib import Path

import open_clip
import pytest
import torch

from tests.helpers import write_config
from tests.processes import run_script

ROOT = Path(__file__).resolve().parent.parent


def command(folder, line, status=0, **knobs):
    """Run `python line` in a folder with CLIP_... knobs -> what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIP_")}
    environment |= {f"CLIP_{name}": str(value) for name, value in knobs.items()}
    script, *flags = line.split()
    done = run_script(ROOT / script, *flags, cwd=folder, env=environment)
    assert done.returncode == status, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which the whole pipeline has run, and what each command printed."""
    folder = tmp_path_factory.mktemp("pipeline")
    knobs = {
        "ON_COLAB": "false",
        "MODEL_NAME": write_config(folder),
        "MODEL_PRETRAINED": "",
        "TRAIN_DATASET_PATTERN": "webdataset_shards/clip_dataset_train.{000000..000001}.tar",
        "VALID_DATASET_PATTERN": "webdataset_shards/clip_dataset_valid.{000000..000000}.tar",
        "BATCH_SIZE": 16,
        "NUM_WORKERS": 0,
        "DEVICE": "cpu",
    }
    lines = [
        "demo/draw_catalogue.py . --train-products 24 --valid-products 16",
        "clip_prep.py",
        "clip_prep.py --split valid",
        "create_webdataset.py --json clip_dataset_valid.json --output-dir webdataset_shards --shard-size 1000",
        "create_webdataset.py --json clip_dataset_train.json --output-dir webdataset_shards --shard-size 40",
        "evaluate_clip.py",
        "clipFineTuner.py --max-steps 20 --checkpoint-interval 8 --learning-rate 1e-3",
        "evaluate_clip.py --use-checkpoint",
    ]
    return folder, {line: command(folder, line, **knobs) for line in lines}, knobs


def printed(run, start):
    return next(text for line, text in run[1].items() if line.startswith(start))


def test_every_stage_leaves_its_files(run):
    folder = run[0]
    entries = json.loads((folder / "clip_dataset_train.json").read_text(encoding="utf-8"))
    assert set(entries[0]) >= {"image_path", "image_name", "caption", "category", "product_id"}
    with tarfile.open(folder / "webdataset_shards" / "clip_dataset_valid.000000.tar") as tar:
        assert [name.split(".")[-1] for name in tar.getnames()[:3]] == ["jpg", "txt", "json"]
    assert (folder / "checkpoints" / "final_checkpoint.pt").exists()
    for name in ("evaluation_results.json", "evaluation_results_checkpoint.json"):
        results = json.loads((folder / name).read_text())
        assert results["num_samples"] == results["protocols"]["pair"]["text_to_image"]["queries"]
        assert set(results["recall@5"]) == set(results["recall@10"]) == {"text_to_image", "image_to_text"}


def test_the_documented_lines_are_printed(run):
    assert "Shard pattern: clip_dataset_valid.{000000..000000}.tar\n" in printed(run, "create_webdataset.py")
    assert "VALID_DATASET_PATTERN" in printed(run, "create_webdataset.py")
    training = printed(run, "clipFineTuner.py")
    assert "step 10/20  loss" in training and "step 20/20  loss" in training
    assert "Recall@10" in printed(run, "evaluate_clip.py --use-checkpoint")


def test_the_table_fits_eighty_columns(run):
    table = printed(run, "evaluate_clip.py --use-checkpoint").split("written to")[0]
    lines = [line for line in table.splitlines() if "samples/s" not in line and "it/s" not in line]
    assert max(map(len, lines)) <= 80


def test_training_moves_the_numbers(run):
    before, after = (
        json.loads((run[0] / name).read_text())["protocols"]["product"]["text_to_image"]
        for name in ("evaluation_results.json", "evaluation_results_checkpoint.json")
    )
    low, high = before["intervals"]["mrr"]
    assert low <= before["mrr"] <= high
    assert after["mrr"] > before["mrr"]


def test_the_checkpoint_works_in_plain_open_clip(run):
    folder, _, knobs = run
    open_clip.add_model_config(knobs["MODEL_NAME"])
    path = str(folder / "checkpoints" / "final_checkpoint.pt")
    model, _, _ = open_clip.create_model_and_transforms("tiny-test", pretrained=path)
    tokens = open_clip.get_tokenizer("tiny-test")(["Long sleeve knit sweater in navy."])
    with torch.inference_mode():
        assert torch.isfinite(model.encode_text(tokens)).all()


def test_training_goes_on_where_it_stopped(run):
    folder, _, knobs = run
    more = command(
        folder, "clipFineTuner.py --resume --max-steps 24 --learning-rate 1e-3 --checkpoint-interval 8", **knobs
    )
    assert "resumed" in more
    steps = [json.loads(line)["step"] for line in (folder / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 24


@pytest.mark.parametrize(
    "line",
    [
        "clip_prep.py --data-dir nowhere",
        "create_webdataset.py --json nowhere.json --output-dir out",
        "clipFineTuner.py --train-dataset-pattern nowhere.{000000..000001}.tar",
        "evaluate_clip.py --dataset-path webdataset_shards/*valid*.tar --checkpoint nowhere.pt",
    ],
)
def test_a_users_mistake_ends_in_one_line_and_exit_code_2(run, line):
    folder, _, knobs = run
    said = command(folder, line, status=2, **{name: value for name, value in knobs.items() if "PATTERN" not in name})
    assert "Traceback" not in said
    assert "nowhere" in said
