"""The training loop: what it writes, and that it never loses work. Kills are real: a child process gets SIGKILL."""

import contextlib
import errno
import itertools
import json
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import clipFineTuner
import dBManagement
import evaluate_clip
import openClipManagement as clip
import settings
from clip_finetuning.loading.tar_index import TarIndex
from clip_finetuning.model import building
from clip_finetuning.model import clip_model as clip_model_module
from clip_finetuning.retrieval import results
from clip_finetuning.runtime import console as commands
from clip_finetuning.runtime import signals
from clip_finetuning.training import losses, run_folder, state
from clip_finetuning.training import step as training_step
from tests.helpers import catalogue_sample, write_config, write_shard
from tests.processes import CONTEXT, exit_codes, places, take_over

PRODUCTS, VIEWS, BATCH = 24, 2, 8  # 6 batches an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """A folder with training and validation shards and a model's config."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "train", products=PRODUCTS, views=VIEWS, shards=2)
    make_shards(folder / "valid", products=40, views=VIEWS, shards=1, first_product=100)
    write_config(folder)
    return folder


def flags(data, run, **changes):
    """The command line of a small run; `changes` replace or add knobs."""
    knobs = {
        "model_name": data / "tiny-test.json",
        "model_pretrained": "",
        "train_dataset_pattern": data / "train.{000000..000001}.tar",
        "valid_dataset_pattern": data / "valid.{000000..000000}.tar",
        "checkpoint_dir": run,
        "batch_size": BATCH,
        "num_workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "learning_rate": 1e-3,
        "max_steps": 12,
        "checkpoint_interval": 4,
        "eval_interval": 6,
        "log_interval": 1,
        **changes,
    }
    return [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items() if value is not None]


def train(data, run, *more, **changes):
    clipFineTuner.main(flags(data, run, **changes) + list(more))
    return Path(run)


def records(run, *keys):
    """The named numbers of every line of metrics.jsonl that has them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[key] for key in keys) for line in lines if all(key in line for key in keys)]


def weights(run):
    return clip.read_checkpoint(run / "final_checkpoint.pt")["state_dict"]


def assert_same_weights(run, other, tolerance=0.0):
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert torch.allclose(mine[name], theirs[name], atol=tolerance, rtol=0), name


def _child(arguments, console, group=False):
    if group:
        os.setpgid(0, 0)
    take_over(console, console)
    commands.run(lambda: clipFineTuner.main(arguments), settings)


def start(data, run, *more, group=False, **changes):
    """Train in a process of its own, and if asked for in a process group of its own."""
    run.mkdir(exist_ok=True)
    arguments = flags(data, run, **changes) + list(more)
    process = CONTEXT.Process(target=_child, args=(arguments, str(run / "console.txt"), group))
    process.start()
    return process


def wait_for_step(run, step, process):
    """Until metrics.jsonl shows the step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if (run / "metrics.jsonl").exists():
            text = (run / "metrics.jsonl").read_text()
            if f'"step": {step},' in text:
                return
        time.sleep(0.005)
    assert process.exitcode is None, (run / "console.txt").read_text()


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An undisturbed run, to compare others with."""
    return train(data, tmp_path_factory.mktemp("undisturbed"))


# --------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_is_documented(finished, capsys):
    names = {path.name for path in finished.iterdir()}
    assert {"final_checkpoint.pt", "best_checkpoint.pt", "metrics.jsonl", "training_curves.png"} <= names
    assert {"checkpoint_00000004.pt", "checkpoint_00000008.pt"} <= names
    assert not [name for name in names if name.endswith(".partial")]
    assert (finished / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_step_is_logged_with_its_numbers(finished):
    logged = records(finished, "step", "loss", "learning_rate", "logit_scale", "samples_per_second", "data_wait")
    assert [line[0] for line in logged] == list(range(1, 13))
    for _, loss, rate, scale, speed, wait in logged:
        assert math.isfinite(loss)
        assert 0 < rate <= 1e-3
        assert 1 <= scale <= 100
        assert speed > 0
        assert 0 <= wait <= 1


def test_training_is_evaluated_at_the_start_on_the_way_and_at_the_end(finished):
    assert [step for step, _ in records(finished, "step", "recall@10/text_to_image")] == [0, 6, 12]


def test_the_checkpoint_says_where_it_was_written(finished):
    checkpoint = clip.read_checkpoint(finished / "final_checkpoint.pt")
    assert (checkpoint["step"], checkpoint["model_name"], checkpoint["pretrained"]) == (12, "tiny-test", "")
    assert checkpoint["settings"]["BATCH_SIZE"] == BATCH
    assert checkpoint["metrics"]["step"] == 12
    assert {"optimizer", "scaler", "random", "data", "preprocess"} <= set(checkpoint)


def test_the_loss_goes_down(data, tmp_path):
    run = train(data, tmp_path, max_steps=60, learning_rate=3e-3, eval_interval="none")
    losses_seen = [loss for (loss,) in records(run, "loss")]
    assert sum(losses_seen[-5:]) < 0.7 * sum(losses_seen[:5])
    assert not (run / "best_checkpoint.pt").exists()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_mixed_precision_trains_on_the_cpu(data, tmp_path, precision, loss):
    run = train(data, tmp_path, precision=precision, loss=loss, max_steps=4)
    assert len(records(run, "loss")) == 4
    assert all(value.dtype == torch.float32 for value in weights(run).values() if value.is_floating_point())


def test_micro_batches_give_the_same_training(data, tmp_path, finished):
    assert_same_weights(train(data, tmp_path, micro_batch_size=3), finished, tolerance=1e-5)


def test_the_start_says_the_truth_about_the_batch(data, tmp_path, capsys):
    train(data, tmp_path, batch_size=64, max_steps=2, eval_interval="none")
    assert f"2 of {PRODUCTS} samples, {PRODUCTS} on the device at once" in capsys.readouterr().out


def test_the_start_says_what_becomes_of_a_picture_and_which_captions_mirroring_makes_wrong(data, tmp_path, capsys):
    samples = [catalogue_sample(number, number) for number in range(12)]
    samples[5]["000000005.txt"] = b"Tasche auf der linken Seite"
    write_shard(tmp_path / "sides.000000.tar", samples)
    changes = {"train_dataset_pattern": tmp_path / "sides.000000.tar", "max_steps": 1, "eval_interval": "none"}
    train(data, tmp_path / "a", flip="true", crop_scale=1, **changes)
    console = capsys.readouterr()
    assert "pictures  whole, its middle to 32 x 32 as in evaluation, half of them mirrored\n" in console.out
    assert "FLIP: 1 of 12 samples that were looked at have captions that may name a side" in console.err
    assert "'Tasche auf der linken Seite'" in console.err
    train(data, tmp_path / "b", **changes)
    console = capsys.readouterr()
    assert "pictures  a random crop of 0.9 to 1 of the area, to 32 x 32\n" in console.out and "FLIP" not in console.err


def test_the_learning_rate_fits_the_weights_and_stays_that_of_the_run(data, tmp_path, finished):
    common = {"learning_rate": None, "warmup_steps": 0, "eval_interval": "none"}
    fresh = train(data, tmp_path / "random", max_steps=2, **common)
    train(data, fresh, "--resume", max_steps=4, **common)  # its weights are no longer random
    tuned = train(data, tmp_path / "trained", model_pretrained=finished / "final_checkpoint.pt", max_steps=1, **common)
    assert [max(rate for (rate,) in records(run, "learning_rate")) for run in (fresh, tuned)] == [1e-3, 1e-5]
    assert [clip.read_checkpoint(r / "final_checkpoint.pt")["settings"]["LEARNING_RATE"] for r in (fresh, tuned)] == [
        1e-3,
        1e-5,
    ]


def test_epochs_end_the_training_and_max_steps_limits_it(data, tmp_path):
    run = train(data, tmp_path / "a", max_steps=None, epochs=2, eval_interval="none")
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 12
    run = train(data, tmp_path / "b", max_steps=7, epochs=2, eval_interval="none")
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 7


def test_old_periodic_checkpoints_are_deleted(data, tmp_path):
    run = train(data, tmp_path, checkpoint_interval=2, keep_checkpoints=2, eval_interval="none")
    assert sorted(path.name for path in run.glob("checkpoint_*.pt")) == [
        "checkpoint_00000008.pt",
        "checkpoint_00000010.pt",
    ]


def test_an_average_of_the_weights_is_what_is_saved(data, tmp_path):
    """Of all steps, each with a weight of 0.1 against those before."""
    run = train(data, tmp_path, ema_decay=0.9, max_steps=3, checkpoint_interval=1, eval_interval="none")
    files = [run / f"checkpoint_{step:08d}.pt" for step in (1, 2)] + [run / "final_checkpoint.pt"]
    raw = [clip.read_checkpoint(path)["raw_state_dict"]["visual.proj"] for path in files]
    expected = 0.9 * (0.9 * raw[0] + 0.1 * raw[1]) + 0.1 * raw[2]
    assert torch.allclose(weights(run)["visual.proj"], expected, atol=1e-7)
    assert not torch.allclose(weights(run)["visual.proj"], raw[2], atol=1e-5)


def test_the_average_is_what_is_evaluated(data, tmp_path):
    """A decay near 1 keeps the average where the first step left the weights, however long they train."""
    still = train(data, tmp_path, ema_decay=0.999999, learning_rate=1e-2)
    first, *later = (score for (score,) in records(still, "mean_recall@10")[1:])
    assert later == [first] * len(later)


def test_training_ends_early_without_gain(data, tmp_path, monkeypatch):
    recall = {"text_to_image": 0.5, "image_to_text": 0.5}
    monkeypatch.setattr(results, "measure", lambda *_, **__: {"recall@10": recall})
    run = train(data, tmp_path, patience=2, eval_interval=2)
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 6


def test_what_patience_ended_stays_ended(data, tmp_path, monkeypatch, capsys):
    recall = {"text_to_image": 0.5, "image_to_text": 0.5}
    monkeypatch.setattr(results, "measure", lambda *_, **__: {"recall@10": recall})
    run = train(data, tmp_path, patience=2, eval_interval=2)
    whole = (run / "final_checkpoint.pt").read_bytes()
    train(data, run, "--resume", patience=2, eval_interval=2)
    assert (
        "6 steps are done, and no better mean Recall@10 in 2 evaluations; a larger PATIENCE" in capsys.readouterr().out
    )
    assert (run / "final_checkpoint.pt").read_bytes() == whole
    train(data, run, "--resume", patience=9, eval_interval=2)
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 12


def test_a_score_below_the_first_is_warned_of(data, tmp_path, monkeypatch, capsys):
    scores = iter([0.9, 0.4, 0.5])
    monkeypatch.setattr(
        results, "measure",
        lambda *_, **__: {"recall@10": dict.fromkeys(("text_to_image", "image_to_text"), next(scores))},
    )  # fmt: skip
    train(data, tmp_path)
    assert "WARNING: step 6: mean Recall@10 is 0.4000, below the 0.9000 before training" in capsys.readouterr().err


@pytest.mark.parametrize(("drop", "warns"), [(2, False), (20, True)])
def test_a_drop_is_warned_of_if_it_is_beyond_chance_also_after_a_resume(
    data, tmp_path, monkeypatch, capsys, drop, warns
):
    """Of 40 products with two views; the score itself falls in both cases."""
    hits = iter([30, 30 - drop, 30 - drop])

    def measure(*_, **__):
        found = next(hits)
        ways = {
            way: {
                "by_product": {
                    "product": [f"P{n}" for n in range(40)],
                    "queries": [views] * 40,
                    "recall@10": [float(views * (n < found)) for n in range(40)],
                }
            }
            for way, views in (("text_to_image", 1), ("image_to_text", 2))
        }
        recall = {"recall@10": dict.fromkeys(ways, found / 40)}
        return recall | {"protocols": {"product": ways}}

    monkeypatch.setattr(results, "measure", measure)
    train(data, tmp_path, max_steps=2, eval_interval=2)
    train(data, tmp_path, "--resume", max_steps=4, eval_interval=2)
    told = capsys.readouterr().err
    assert told.count("below the 0.7500 before training (-0.5000 [-0.") == 2 * warns
    assert ("WARNING" in told) == warns


def test_the_end_names_the_command_that_measures_the_best(data, tmp_path, monkeypatch, capsys):
    train(data, tmp_path, max_steps=2)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    valid = data / "valid.{000000..000000}.tar"
    best = f"--checkpoint={tmp_path / 'best_checkpoint.pt'}"
    assert command == ["python", "evaluate_clip.py", best, f"--dataset-path={valid}"]
    monkeypatch.chdir(tmp_path)
    evaluate_clip.main(command[2:])
    assert (tmp_path / "evaluation_results_checkpoint.json").exists()


# ------------------------------------------------------------------------------- batches that teach nothing


def alike(product, caption, count=8, first=0):
    """Samples of a shard; product and caption of sample n are `product(n)` and `caption(n)`."""
    samples = [catalogue_sample(n, product(n)) for n in range(first, first + count)]
    for n, files in enumerate(samples, first):
        files[f"{n:09d}.txt"] = caption(n).encode()
    return samples


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (alike(lambda n: 1, lambda n: f"view {n}"), "of one product"),
        (alike(lambda n: 1, lambda n: "a shirt", count=1), "of one product"),
        (alike(lambda n: n, lambda n: " A shirt" if n % 2 else "a  Shirt"), "of 8 products that share their captions"),
    ],
)
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_data_that_teach_nothing_are_refused_before_there_is_a_model(data, tmp_path, monkeypatch, samples, words, loss):
    write_shard(tmp_path / "alike.000000.tar", samples[:4])
    write_shard(tmp_path / "alike.000001.tar", samples[4:])
    monkeypatch.setattr(building, "create_model", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match=f"{words}.*training on them teaches nothing"):
        train(data, tmp_path / "run", train_dataset_pattern=tmp_path / "alike.*.tar", loss=loss)


def test_products_that_come_late_are_found(data, tmp_path):
    """In shards that are sorted by caption, say."""
    first = alike(lambda n: 0, lambda n: "a shirt", count=70)
    write_shard(tmp_path / "sorted.tar", first + alike(lambda n: n, lambda n: "a shoe", count=4, first=70))
    knobs = {"train_dataset_pattern": tmp_path / "sorted.tar", "max_steps": 1, "eval_interval": "none"}
    train(data, tmp_path / "run", batch_size=2, **knobs)


def test_a_batch_of_one_sample_is_refused_on_the_command_line(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(data, tmp_path, batch_size=1)
    assert "BATCH_SIZE=1 teaches nothing" in capsys.readouterr().err


def test_a_batch_of_which_one_product_can_be_read_ends_the_training_before_its_step(data, tmp_path):
    samples = alike(lambda n: n % 2, lambda n: f"caption {n % 2}")
    for n in range(1, 8, 2):
        samples[n][f"{n:09d}.jpg"] = b"no picture"
    write_shard(tmp_path / "lossy.tar", samples)
    knobs = {"train_dataset_pattern": tmp_path / "lossy.tar", "max_steps": 2, "eval_interval": "none"}
    with pytest.raises(ValueError, match="of a batch one sample can be read, so nothing is contrasted.*not an image"):
        train(data, tmp_path / "run", **knobs)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_shards_are_looked_for_before_there_is_a_model(data, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "create_model", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(FileNotFoundError, match="no shard matches 'typo.tar'"):
        train(data, tmp_path, train_dataset_pattern="typo.tar")
    with pytest.raises(FileNotFoundError, match="no shard matches 'typo.tar'"):
        train(data, tmp_path, valid_dataset_pattern="typo.tar")
    with pytest.raises(ValueError, match=r"no sample can be read of these shards: memory://nowhere\.000000\.tar"):
        train(data, tmp_path, train_dataset_pattern="memory://nowhere.{000000..000009}.tar")


# --------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("workers", "micro_batch_size", "optimizer"),
    [(0, None, "muon"), (2, None, "adamw"), (0, 3, "adamw"), (2, 3, "muon")],
)
def test_killed_runs_end_bit_identical(data, tmp_path, workers, micro_batch_size, optimizer):
    """SIGKILL at steps 3, 6 and 9, resumed from the last checkpoint each time."""
    changes = {"num_workers": workers, "micro_batch_size": micro_batch_size, "optimizer": optimizer}
    undisturbed = start(data, tmp_path / "undisturbed", **changes)
    undisturbed.join()
    run, kills = tmp_path / "killed", 0
    for step in (3, 6, 9):
        process = start(data, run, "--resume", **changes)
        wait_for_step(run, step, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    process = start(data, run, "--resume", **changes)
    process.join()
    assert process.exitcode == 0, (run / "console.txt").read_text()
    assert kills >= 2  # a step may be over before the signal arrives
    assert_same_weights(run, tmp_path / "undisturbed")
    keys = ("step", "loss", "learning_rate", "grad_norm", "logit_scale")
    assert records(run, *keys) == records(tmp_path / "undisturbed", *keys)
    keys = ("step", "recall@10/text_to_image", "recall@10/image_to_text")
    assert records(run, *keys) == records(tmp_path / "undisturbed", *keys)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_holds_on_to_nothing_of_its_checkpoint(data, tmp_path, monkeypatch, optimizer):
    """A mapped file that is deleted keeps its room on the disk."""
    changes = {"optimizer": optimizer, "ema_decay": 0.9, "eval_interval": "none"}
    train(data, tmp_path, max_steps=5, warmup_steps=0, **changes)
    real_fit, mapped = clipFineTuner.fit, []

    def fit(*arguments):
        mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if ".pt" in line)
        real_fit(*arguments)

    monkeypatch.setattr(clipFineTuner, "fit", fit)
    train(data, tmp_path, "--resume", "--force", max_steps=6, warmup_steps=0, **changes)
    assert not mapped


def test_a_finished_run_goes_on_with_more_steps(data, tmp_path, capsys):
    run = train(data, tmp_path, max_steps=8)
    train(data, tmp_path, "--resume", max_steps=12)
    assert "resumed" in capsys.readouterr().out
    assert [step for step, _ in records(run, "step", "loss")] == list(range(1, 13))


@pytest.mark.parametrize("max_steps", [8, 5])
def test_a_finished_run_without_more_steps_stays_as_it_is(data, tmp_path, capsys, max_steps):
    run = train(data, tmp_path, max_steps=8)
    whole = (run / "final_checkpoint.pt").read_bytes()
    train(data, tmp_path, "--resume", max_steps=max_steps)
    assert f"8 steps are done, and EPOCHS and MAX_STEPS ask for {max_steps}" in capsys.readouterr().out
    assert (run / "final_checkpoint.pt").read_bytes() == whole
    assert [step for step, _ in records(run, "step", "recall@10/text_to_image")] == [0, 6, 8]


def test_a_run_whose_order_of_batches_is_another_now_resumes_and_says_so(data, tmp_path, capsys):
    common = {"views": "random", "batch_size": 7, "eval_interval": "none", "lr_schedule": "constant"}
    path = train(data, tmp_path, max_steps=2, **common) / "final_checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["data"]["order"]  # as before there was a second one
    torch.save(checkpoint, path)
    train(data, tmp_path, "--resume", max_steps=4, **common)
    assert capsys.readouterr().err.count("planned by order 1, now it is 2") == 1


def test_resume_without_a_checkpoint_is_a_new_run(data, tmp_path, capsys):
    train(data, tmp_path, "--resume", max_steps=2)
    assert "nothing to resume" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_falls_back_loudly(data, tmp_path, capsys):
    run = train(data, tmp_path, eval_interval="none")
    whole = (run / "checkpoint_00000008.pt").read_bytes()
    (run / "checkpoint_00000008.pt").write_bytes(whole[: len(whole) // 2])
    (run / "final_checkpoint.pt").unlink()
    train(data, tmp_path, "--resume", eval_interval="none")
    told = capsys.readouterr()
    assert "checkpoint_00000008.pt is damaged" in told.err
    assert "checkpoint_00000004.pt: step 4" in told.out


def test_the_optimizer_is_muon_for_random_weights_and_stays_that_of_the_run(data, tmp_path, finished, capsys):
    chosen = {"OPTIMIZER": "muon"}
    assert chosen.items() <= clip.read_checkpoint(finished / "final_checkpoint.pt")["settings"].items()
    short = train(data, tmp_path / "run", max_steps=4, warmup_steps=1, eval_interval="none")
    train(data, short, "--resume", max_steps=8, eval_interval="none")  # its weights are no longer random
    assert "for muon, 1 steps of warmup" in capsys.readouterr().out
    with pytest.raises(ValueError, match="OPTIMIZER was muon, is adamw"):
        train(data, short, "--resume", max_steps=12, optimizer="adamw", eval_interval="none")


def test_trained_weights_are_fine_tuned_with_adamw(data, tmp_path, finished):
    run = train(data, tmp_path, model_pretrained=finished / "final_checkpoint.pt", max_steps=2, eval_interval="none")
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["settings"]["OPTIMIZER"] == "adamw"


def test_a_checkpoint_from_before_there_was_muon_goes_on_with_adamw(data, tmp_path):
    run = train(data, tmp_path, max_steps=4, optimizer="adamw", warmup_steps=1, eval_interval=2)
    content = torch.load(run / "final_checkpoint.pt", weights_only=True)
    for part, name in (("settings", "OPTIMIZER"), ("progress", "evaluated_step"), ("progress", "learns_statistics")):
        del content[part][name]
    del content["total_steps"], content["settings"]["CROP_SCALE"], content["settings"]["FLIP"]
    torch.save(content, run / "final_checkpoint.pt")
    (run / "best_checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="OPTIMIZER was adamw, is muon"):
        train(data, run, "--resume", "--force", max_steps=6, optimizer="muon", eval_interval=2)
    train(data, run, "--resume", max_steps=6, eval_interval=2)
    checkpoint = clip.read_checkpoint(run / "final_checkpoint.pt")
    assert (checkpoint["step"], checkpoint["settings"]["OPTIMIZER"]) == (6, "adamw")
    assert (checkpoint["settings"]["CROP_SCALE"], checkpoint["settings"]["FLIP"]) == (0.9, False)
    assert checkpoint["progress"]["learns_statistics"] is True
    assert [step for step, _ in records(run, "step", "mean_recall@10")] == [0, 2, 4, 6]


def test_settings_that_change_the_mathematics_need_force(data, tmp_path, capsys):
    run = train(data, tmp_path, eval_interval="none")
    with pytest.raises(ValueError, match=r"LEARNING_RATE was 0\.001, is 0\.002.*--force"):
        train(data, run, "--resume", learning_rate=2e-3, max_steps=16, eval_interval="none")
    train(data, run, "--resume", "--force", learning_rate=2e-3, max_steps=16, log_interval=2, eval_interval="none")
    told = capsys.readouterr()
    assert "forced: LEARNING_RATE" in told.err
    assert "another LOG_INTERVAL: was 1, is 2" in told.out


def test_forced_settings_are_those_that_the_run_goes_on_with(data, tmp_path):
    run = train(data, tmp_path, max_steps=6, eval_interval="none")
    changes = {"weight_decay": 0.5, "beta1": 0.5, "eps": 1e-3, "precision": "fp16"}
    train(data, run, "--resume", "--force", max_steps=8, eval_interval="none", **changes)
    optimizer = clip.read_checkpoint(run / "final_checkpoint.pt")["optimizer"]
    adamw = [group for group in optimizer["param_groups"] if "betas" in group]
    assert [(group["betas"][0], group["eps"]) for group in adamw] == [(0.5, 1e-3)] * 2
    assert sorted(group["weight_decay"] for group in optimizer["param_groups"]) == [0, 0.5, 0.5]


@pytest.mark.parametrize("change", [{"loss": "siglip"}, {"optimizer": "adamw"}])
def test_what_decides_over_the_contents_of_a_checkpoint_cannot_be_forced(data, tmp_path, change):
    run = train(data, tmp_path, max_steps=2, eval_interval="none")
    with pytest.raises(
        ValueError, match="another kind of training.*start a new run with this file as MODEL_PRETRAINED"
    ):
        train(data, run, "--resume", "--force", max_steps=4, eval_interval="none", **change)


def test_another_number_of_steps_in_the_middle_of_the_cosine_needs_force(data, tmp_path):
    run = train(data, tmp_path, eval_interval="none", warmup_steps=1)
    (run / "final_checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="the learning rate falls over 12 steps in the checkpoint, over 100 now"):
        train(data, run, "--resume", max_steps=100, eval_interval="none")
    train(data, run, "--resume", "--force", max_steps=10, eval_interval="none")


def test_an_average_that_is_given_up_by_force_leaves_the_weights_themselves(data, tmp_path):
    run = train(data, tmp_path, ema_decay=0.9, max_steps=6, eval_interval="none")
    raw = clip.read_checkpoint(run / "final_checkpoint.pt")["raw_state_dict"]
    changes = {"ema_decay": "none", "learning_rate": 1e-12}
    train(data, run, "--resume", "--force", max_steps=7, eval_interval="none", **changes)
    assert torch.allclose(weights(run)["visual.proj"], raw["visual.proj"], atol=1e-6)


def test_another_architecture_is_refused_by_name(data, tmp_path):
    run = train(data, tmp_path, max_steps=2, eval_interval="none")
    with pytest.raises(ValueError, match="checkpoint of tiny-test, but MODEL_NAME is ViT-B-32"):
        train(data, run, "--resume", model_name="ViT-B-32")


def test_weights_alone_cannot_be_resumed(data, tmp_path, finished):
    torch.save(weights(finished), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="cannot be resumed"):
        train(data, tmp_path / "run", f"--resume={tmp_path / 'bare.pt'}")


def test_a_new_run_sets_the_old_one_aside(data, tmp_path, capsys):
    run = train(data, tmp_path, max_steps=2)
    old = (run / "final_checkpoint.pt").read_bytes()
    train(data, tmp_path, max_steps=3)
    assert (run / "earlier_run_1" / "final_checkpoint.pt").read_bytes() == old
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 3


def test_a_run_goes_on_from_its_best_checkpoint_if_there_is_no_other(data, tmp_path, capsys):
    run = train(data, tmp_path, max_steps=6, eval_interval=3, checkpoint_interval=100)
    (run / "final_checkpoint.pt").unlink()
    train(data, run, "--resume", "--force", max_steps=8, eval_interval=3, checkpoint_interval=100)
    assert "resumed" in capsys.readouterr().out


def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(data, tmp_path):
    run = train(data, tmp_path, eval_interval="none")
    earlier = f"--resume={run / 'checkpoint_00000004.pt'}"
    train(data, run, earlier, "--force", max_steps=6, eval_interval="none", warmup_steps=1)
    assert {path.name for path in (run / "earlier_run_1").iterdir()} == {
        "checkpoint_00000008.pt",
        "final_checkpoint.pt",
    }
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 6


# -------------------------------------------------------------------------------------------- interruptions


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_signal_to_the_whole_process_group_saves_a_checkpoint_too(data, tmp_path):
    """As `timeout`, torchrun and SLURM send it: the workers get it as well."""
    run = tmp_path / "run"
    process = start(
        data, run, max_steps=5000, checkpoint_interval=5000, eval_interval="none", num_workers=2, group=True
    )
    wait_for_step(run, 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143, (run / "console.txt").read_text()
    assert list(run.glob("checkpoint_*.pt"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_a_checkpoint_and_its_exit_code_is_no_success(data, tmp_path, number, code):
    run = tmp_path / "a run"
    process = start(data, run, max_steps=5000, checkpoint_interval=5000, eval_interval="none", warmup_steps=7)
    wait_for_step(run, 3, process)
    os.kill(process.pid, getattr(signal, number))
    process.join(60)
    console = (run / "console.txt").read_text()
    assert process.exitcode == code, console
    assert "Traceback" not in console
    (path,) = run.glob("checkpoint_*.pt")
    step = clip.read_checkpoint(path)["step"]
    assert step >= 3
    *_, stopped, command = console.splitlines()
    assert stopped == f"stopped by {number} at step {step}; go on with --resume:"
    assert command == f"python clipFineTuner.py --resume {shlex.quote(f'--checkpoint-dir={run}')}"


@pytest.mark.parametrize(
    ("where", "number"), [("state.find_checkpoint", "SIGTERM"), ("run_folder.remove_leftovers", "SIGINT")]
)
def test_a_signal_before_the_training_is_one_line_and_its_exit_code(data, tmp_path, monkeypatch, capsys, where, number):
    module, name = where.split(".")
    monkeypatch.setattr(
        {"state": state, "run_folder": run_folder}[module], name,
        lambda *_: os.kill(os.getpid(), getattr(signal, number)) or time.sleep(10),
    )  # fmt: skip
    with pytest.raises(SystemExit) as end, unchanged_signals():
        commands.run(lambda: clipFineTuner.main(flags(data, tmp_path)), settings)
    told = capsys.readouterr().err.splitlines()[-1]
    assert (end.value.code, told) == {"SIGTERM": (143, "terminated"), "SIGINT": (130, "interrupted")}[number]


@contextlib.contextmanager
def unchanged_signals():
    before = {number: signal.getsignal(number) for number in signals.STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_last_line_of_a_stopped_run_goes_on_with_it(data, tmp_path, monkeypatch, capsys, finished):
    """Whatever way the settings were given; and it ends as the run would have."""
    send_sigterm_at(6, monkeypatch)
    monkeypatch.setenv("CLIP_WARMUP_STEPS", "1")
    knobs = flags(data, tmp_path, warmup_steps=None, log_interval=5)
    assert clipFineTuner.main(knobs) == 143
    monkeypatch.delenv("CLIP_WARMUP_STEPS")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["python", "clipFineTuner.py", "--resume", f"--checkpoint-dir={tmp_path}"]
    assert clipFineTuner.main(command[2:]) == 0
    assert_same_weights(tmp_path, finished)
    said = capsys.readouterr().out
    assert "as the checkpoint says, not settings.py; a flag overrules both:" in said
    assert f"BATCH_SIZE={BATCH} (not 256)" in said and "MAX_STEPS=12 (not none)" in said
    assert "WARMUP_STEPS" not in said.split("learning rate")[0]  # settings.py leaves it open


def test_the_last_line_of_a_run_stopped_before_its_first_step_says_all_that_was_set(
    data, tmp_path, monkeypatch, capsys
):
    send_sigterm_in_evaluation(0, monkeypatch)
    monkeypatch.setenv("CLIP_WEIGHT_DECAY", "0.25")
    assert clipFineTuner.main(flags(data, tmp_path)) == 143
    monkeypatch.delenv("CLIP_WEIGHT_DECAY")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    clipFineTuner.main(command[2:])
    saved = clip.read_checkpoint(tmp_path / "final_checkpoint.pt")
    assert (saved["step"], saved["settings"]["WEIGHT_DECAY"]) == (12, 0.25)


def send_sigterm_at(number, monkeypatch):
    """SIGTERM for this process in the step of this number, whenever a run does it."""
    real_step = training_step.train_step

    def train_step(*arguments, step, **options):
        done = real_step(*arguments, step=step, **options)
        if step + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(training_step, "train_step", train_step)


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"precision": "bf16", "loss": "siglip", "ema_decay": 0.5},
        {"precision": "fp16", "grad_checkpointing": "true", "micro_batch_size": 3},
        {"crop_scale": 1, "flip": "true"},
    ],
)
def test_whatever_a_run_consists_of_goes_on_to_the_bit(data, tmp_path, monkeypatch, changes):
    whole = train(data, tmp_path / "whole", eval_interval="none", **changes)
    send_sigterm_at(7, monkeypatch)
    run = train(data, tmp_path / "run", eval_interval="none", **changes)
    assert not (run / "final_checkpoint.pt").exists()
    train(data, run, "--resume", eval_interval="none", **changes)
    found, expected = (clip.read_checkpoint(folder / "final_checkpoint.pt") for folder in (run, whole))
    for part in ("state_dict", "raw_state_dict"):
        for name, value in expected.get(part, {}).items():
            assert torch.equal(found[part][name], value), name
    for number, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(found["optimizer"]["state"][number][key], value) for key, value in moments.items())
    assert found["scaler"] == expected["scaler"]
    assert found.get("logit_bias") == expected.get("logit_bias")


def send_sigterm_in_evaluation(number, monkeypatch):
    """SIGTERM for this process while the second batch of the evaluation after that many steps is embedded, once."""
    real_evaluate, real_encode = clipFineTuner.evaluate, clip_model_module.encode_images
    steps, batches = [], []

    def evaluate(run, stop):
        steps.append(run.progress.step)
        return real_evaluate(run, stop)

    def encode(clip_model, images):
        if not clip_model.model.training and steps[-1] == number:
            batches.append(len(images))
            if len(batches) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return real_encode(clip_model, images)

    monkeypatch.setattr(clipFineTuner, "evaluate", evaluate)
    monkeypatch.setattr(clip_model_module, "encode_images", encode)
    return batches


@pytest.mark.parametrize("number", [6, 12])
def test_an_evaluation_that_a_signal_came_before_is_made_up_for(data, tmp_path, monkeypatch, finished, number):
    send_sigterm_at(number, monkeypatch)
    run = train(data, tmp_path)
    assert clip.read_checkpoint(run / f"checkpoint_{number:08d}.pt")["step"] == number
    assert not (run / "final_checkpoint.pt").exists()
    train(data, run, "--resume")
    keys = ("step", "recall@10/text_to_image", "recall@10/image_to_text")
    assert records(run, *keys) == records(finished, *keys)
    assert_same_weights(run, finished)


@pytest.mark.parametrize("number", [0, 6, 12])
def test_a_signal_ends_an_evaluation_which_is_made_up_for(data, tmp_path, monkeypatch, capsys, finished, number):
    batches = send_sigterm_in_evaluation(number, monkeypatch)
    run = train(data, tmp_path)
    assert len(batches) == 2
    assert f"stopped by SIGTERM at step {number}; go on with --resume" in capsys.readouterr().out
    assert [path.name for path in run.glob("checkpoint_*.pt")][-1:] == [f"checkpoint_{number:08d}.pt"] * (number > 0)
    train(data, run, "--resume")
    keys = ("step", "recall@10/text_to_image", "recall@10/image_to_text")
    assert records(run, *keys) == records(finished, *keys)
    assert_same_weights(run, finished)
    assert {"final_checkpoint.pt", "training_curves.png"} <= {path.name for path in run.iterdir()}


def test_a_signal_while_an_evaluation_is_made_up_for_loses_nothing(data, tmp_path, monkeypatch, finished):
    send_sigterm_at(6, monkeypatch)
    run = train(data, tmp_path)
    send_sigterm_in_evaluation(6, monkeypatch)
    train(data, run, "--resume")
    assert clip.read_checkpoint(run / "checkpoint_00000006.pt")["step"] == 6
    train(data, run, "--resume")
    assert_same_weights(run, finished)


@pytest.mark.parametrize("full", [False, True])
def test_a_signal_while_a_checkpoint_is_written_asks_for_no_second_one(data, tmp_path, monkeypatch, full):
    """Unless that one could not be written."""
    real_save, written = run_folder.save_checkpoint, []

    def save_checkpoint(path, *arguments, **fields):
        written.append(Path(path).name)
        if len(written) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            if full:
                raise OSError(errno.ENOSPC, "no room")
        real_save(path, *arguments, **fields)

    monkeypatch.setattr(run_folder, "save_checkpoint", save_checkpoint)
    run = train(data, tmp_path, eval_interval="none")
    assert written == ["checkpoint_00000004.pt", "checkpoint_00000005.pt"][: 1 + full]
    assert [path.name for path in run.glob("*.pt")] == written[-1:]


def test_patience_that_ends_at_an_evaluation_made_up_for_ends_the_run(data, tmp_path, monkeypatch):
    recall = {"text_to_image": 0.5, "image_to_text": 0.5}
    monkeypatch.setattr(results, "measure", lambda *_, **__: {"recall@10": recall})
    send_sigterm_at(6, monkeypatch)
    run = train(data, tmp_path, patience=2, eval_interval=2)
    assert not (run / "final_checkpoint.pt").exists()
    train(data, run, "--resume", patience=2, eval_interval=2)
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 6


def test_a_signal_in_the_last_step_leaves_a_whole_run_where_no_evaluation_follows(
    data, tmp_path, monkeypatch, finished
):
    send_sigterm_at(12, monkeypatch)
    run = train(data, tmp_path, eval_interval="none")
    assert_same_weights(run, finished)
    assert (run / "training_curves.png").exists()


def test_a_second_ctrl_c_ends_at_once(data, tmp_path):
    run = tmp_path / "run"
    process = start(data, run, max_steps=5000, checkpoint_interval=5000, eval_interval="none")
    wait_for_step(run, 2, process)
    os.kill(process.pid, signal.SIGSTOP)  # both signals arrive before Python can look
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + 20
    while process.is_alive() and time.monotonic() < deadline:
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.002)
    process.join(20)
    assert not process.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_that_is_killed_leaves_a_checkpoint_and_one_line(data, tmp_path):
    """As the system does where memory ends."""
    run = tmp_path / "run"
    process = start(data, run, max_steps=5000, checkpoint_interval=5000, eval_interval="none", num_workers=2)
    wait_for_step(run, 2, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    process.join(60)
    said = (run / "console.txt").read_text()
    assert process.exitcode == 2 and "Traceback" not in said, said
    assert "error: a worker of the loader was killed (SIGKILL)" in said.splitlines()[-1]
    (checkpoint,) = run.glob("checkpoint_*.pt")
    assert clip.read_checkpoint(checkpoint)["step"] >= 2


def test_two_trainers_on_one_folder_the_second_refuses(data, tmp_path):
    run = tmp_path / "run"
    first = start(data, run, max_steps=5000, eval_interval="none", num_workers=2)
    wait_for_step(run, 1, first)
    with pytest.raises(ValueError, match="another trainer"):
        train(data, run)
    first.kill()
    first.join()
    train(data, run, max_steps=1)  # at once, though the killed trainer's workers still live


def test_a_full_disk_leaves_the_older_checkpoint_and_training_goes_on(data, tmp_path, monkeypatch, capsys):
    real_save = torch.save

    def save(content, file):
        if content["step"] == 8:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real_save(content, file)

    monkeypatch.setattr(torch, "save", save)
    run = train(data, tmp_path, eval_interval="none")
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in run.glob("*.pt")) == ["checkpoint_00000004.pt", "final_checkpoint.pt"]
    assert not list(run.glob(".*.partial"))
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 12


def test_a_final_checkpoint_makes_room_for_itself(data, tmp_path, monkeypatch):
    real_save = torch.save

    def save(content, file):
        if content["step"] == 12 and len(list(tmp_path.glob("checkpoint_*.pt"))) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_save(content, file)

    monkeypatch.setattr(torch, "save", save)
    train(data, tmp_path, eval_interval="none")
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint_00000008.pt", "final_checkpoint.pt"]


def test_a_run_whose_last_checkpoint_cannot_be_written_is_no_success(data, tmp_path, monkeypatch):
    real_save = torch.save

    def save(content, file):
        if content["step"] == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_save(content, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match=r"final_checkpoint.pt could not be written .*; free some space.*then --resume"):
        train(data, tmp_path, eval_interval="none")
    monkeypatch.setattr(torch, "save", real_save)
    train(data, tmp_path, "--resume", eval_interval="none")
    assert clip.read_checkpoint(tmp_path / "final_checkpoint.pt")["step"] == 12


def test_a_final_checkpoint_of_fewer_steps_is_replaced(data, tmp_path, monkeypatch):
    """As a run leaves one that is killed between its best checkpoint and the final one of the same step."""
    scores = itertools.count(1)

    def measure(*_, **__):
        return {"recall@10": dict.fromkeys(("text_to_image", "image_to_text"), next(scores) / 100)}

    monkeypatch.setattr(results, "measure", measure)
    run = train(data, tmp_path, max_steps=6)
    old = (run / "final_checkpoint.pt").read_bytes()
    train(data, run, "--resume", max_steps=9)
    (run / "final_checkpoint.pt").write_bytes(old)
    assert clip.read_checkpoint(run / "best_checkpoint.pt")["step"] == 9
    train(data, run, "--resume", max_steps=9)
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 9


def test_an_update_that_fails_half_way_is_not_saved(data, tmp_path, monkeypatch):
    """Some weights have moved by then, others not."""
    real_step, calls = torch.optim.AdamW.step, []

    def step(optimizer, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("the device is gone")
        return real_step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RuntimeError, match="the device is gone"):
        train(data, tmp_path, eval_interval="none")
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_00000004.pt"]


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path, monkeypatch, capsys):
    real_step = training_step.train_step

    def train_step(clip_model, *arguments, step, **options):
        done = real_step(clip_model, *arguments, step=step, **options)
        if step + 1 == 6:
            with torch.no_grad():
                clip_model.model.visual.proj.fill_(math.nan)
        return done

    monkeypatch.setattr(training_step, "train_step", train_step)
    with pytest.raises(ValueError):
        train(data, tmp_path)
    assert "the weights are not finite, so they are not saved" in capsys.readouterr().err
    assert "checkpoint_00000006.pt" not in [path.name for path in tmp_path.glob("*.pt")]


@pytest.mark.parametrize("what", ["evaluation", "shards"])
def test_an_error_between_two_checkpoints_costs_no_step(data, tmp_path, monkeypatch, finished, what):
    real_measure, real_collate = results.measure, dBManagement.ClipDataset._collate
    calls = {"evaluation": 0, "shards": 0}

    def measure(*arguments, **options):
        calls["evaluation"] += 1
        if what == "evaluation" and calls["evaluation"] == 2:  # step 6; the last checkpoint is of step 4
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return real_measure(*arguments, **options)

    def collate(dataset, *arguments):
        calls["shards"] += dataset.train
        if what == "shards" and dataset.train and calls["shards"] == 7:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return real_collate(dataset, *arguments)

    monkeypatch.setattr(results, "measure", measure)
    monkeypatch.setattr(dBManagement.ClipDataset, "_collate", collate)
    with pytest.raises(OSError, match="not connected"):
        train(data, tmp_path)
    assert clip.read_checkpoint(tmp_path / "checkpoint_00000006.pt")["step"] == 6
    run = train(data, tmp_path, "--resume")
    assert_same_weights(run, finished)
    for keys in (("step", "loss"), ("step", "recall@10/text_to_image", "recall@10/image_to_text")):
        assert records(run, *keys) == records(finished, *keys)


def test_evaluation_keeps_to_the_micro_batch_and_halves_it_when_memory_ends(data, tmp_path, monkeypatch, finished):
    real_encode, sizes = clip_model_module.encode_images, []

    def encode(clip_model, images):
        if not clip_model.model.training:
            sizes.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("injected")
        return real_encode(clip_model, images)

    monkeypatch.setattr(clip_model_module, "encode_images", encode)
    run = train(data, tmp_path, micro_batch_size=4, max_steps=6)
    assert max(sizes) == 4
    key = "recall@10/text_to_image"
    assert records(run, "step", key)[0] == records(finished, "step", key)[0]


def test_out_of_memory_halves_the_micro_batch_and_goes_on(data, tmp_path, monkeypatch, capsys, finished):
    real_encode = clip_model_module.encode_images

    def encode(clip_model, images):
        if len(images) > BATCH // 2 and clip_model.model.training:
            raise torch.OutOfMemoryError("injected")
        return real_encode(clip_model, images)

    monkeypatch.setattr(clip_model_module, "encode_images", encode)
    run = train(data, tmp_path)
    assert f"MICRO_BATCH_SIZE goes from {BATCH} to {BATCH // 2}" in capsys.readouterr().err
    assert_same_weights(run, finished, tolerance=1e-5)


def test_a_step_that_is_not_finite_is_skipped_and_counted(data, tmp_path, monkeypatch, capsys):
    real_loss, calls = losses.clip_loss, []

    def loss(*arguments):
        calls.append(1)
        return real_loss(*arguments) * (math.nan if len(calls) in (3, 5) else 1)

    monkeypatch.setattr(losses, "clip_loss", loss)
    run = train(data, tmp_path, eval_interval="none")
    assert "step 3: the loss is not finite" in capsys.readouterr().out
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["progress"]["skipped_steps"] == 2
    assert all(torch.isfinite(value).all() for value in weights(run).values())


def test_ten_steps_in_a_row_that_are_not_finite_stop_with_a_checkpoint(data, tmp_path, monkeypatch):
    real_loss, calls = losses.clip_loss, []

    def loss(*arguments):
        calls.append(1)
        return real_loss(*arguments) * (math.inf if len(calls) > 1 else 1)

    monkeypatch.setattr(losses, "clip_loss", loss)
    with pytest.raises(ValueError, match="not finite in steps 2 to 11.*lower LEARNING_RATE"):
        train(data, tmp_path, eval_interval="none")
    assert clip.read_checkpoint(tmp_path / "checkpoint_00000011.pt")["step"] == 11
    with pytest.raises(ValueError, match="not finite in steps 12 to 21"):  # ten more are allowed
        train(data, tmp_path, "--resume", "--force", eval_interval="none", learning_rate=1e-4, max_steps=99)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch_size": 99}, "MICRO_BATCH_SIZE=99"),
        ({"patience": 2, "eval_interval": "none"}, "PATIENCE"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(data, tmp_path, capsys, changes, words):
    with pytest.raises(SystemExit):
        train(data, tmp_path, **changes)
    assert words in capsys.readouterr().err


def test_a_warmup_longer_than_half_of_the_training_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="WARMUP_STEPS=7"):
        train(data, tmp_path, warmup_steps=7)


def test_missing_validation_shards_end_a_run_only_if_they_were_asked_for(data, tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(data, tmp_path / "a", valid_dataset_pattern="nowhere.{000000..000001}.tar")
    monkeypatch.chdir(tmp_path)
    train(data, tmp_path / "b", valid_dataset_pattern=None)
    assert "without evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(("loss", "micro_batch_size"), [("clip", None), ("siglip", 3)])
def test_the_loss_is_told_of_products_that_are_described_alike(data, tmp_path, monkeypatch, loss, micro_batch_size):
    samples = [catalogue_sample(number, number) for number in range(8)]
    for number in (2, 5):
        samples[number][f"{number:09d}.txt"] = b"Dress"
    write_shard(tmp_path / "alike.tar", samples)
    real_loss, seen = getattr(losses, f"{loss}_loss"), []

    def spy(image_embeddings, text_embeddings, products, *rest):
        seen.append(losses.positives(products).sum().item())
        return real_loss(image_embeddings, text_embeddings, products, *rest)

    monkeypatch.setattr(losses, f"{loss}_loss", spy)
    knobs = {"train_dataset_pattern": tmp_path / "alike.tar", "max_steps": 1, "eval_interval": "none", "loss": loss}
    train(data, tmp_path / "run", micro_batch_size=micro_batch_size, **knobs)
    assert seen == [8 + 2]


# ------------------------------------------------------------------------------------------ several processes


def _rank(arguments, place, console):
    os.environ.update(place)
    _child(arguments, console)


def train_on_two_ranks(arguments, consoles, seconds=120, target=_rank):
    """A trainer for each of two command lines, as torchrun would start them -> exit codes; None for one that waits."""
    started = zip(arguments, places(2), map(str, consoles))
    return exit_codes([CONTEXT.Process(target=target, args=one) for one in started], seconds)


def test_two_processes_train_like_one(data, tmp_path, finished):
    run = tmp_path / "run"
    run.mkdir()
    consoles = [run / f"{r}.txt" for r in range(2)]
    assert train_on_two_ranks([flags(data, run)] * 2, consoles) == [0, 0], [path.read_text() for path in consoles]
    assert_same_weights(run, finished, tolerance=2e-5)
    one, two = records(finished, "step", "loss"), records(run, "step", "loss")
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)


def test_lost_samples_are_counted_once_over_all_processes(data, tmp_path):
    """Five pictures that one process or the other meets, and what every process misses of a truncated shard."""
    samples = [catalogue_sample(number, number // 2) for number in range(48)]
    for number in (3, 8, 13, 18, 23):
        samples[number][f"{number:09d}.jpg"] = b"no picture"
    write_shard(tmp_path / "lossy.000000.tar", samples[:24])
    write_shard(tmp_path / "lossy.000001.tar", samples[24:])
    (tmp_path / "sizes.json").write_text('{"lossy.000000.tar": 24, "lossy.000001.tar": 24}')
    path = tmp_path / "lossy.000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 8])
    missing = 48 - TarIndex([str(tmp_path / f"lossy.00000{n}.tar") for n in range(2)]).products.size
    assert missing % 4 == 0  # so every picture is met: there is no remainder
    knobs = {"batch_size": 4, "max_steps": None, "epochs": 1, "eval_interval": "none", "num_workers": 1}
    arguments = flags(data, tmp_path / "run", train_dataset_pattern=tmp_path / "lossy.*.tar", **knobs)
    consoles = [tmp_path / f"{r}.txt" for r in range(2)]
    assert train_on_two_ranks([arguments] * 2, consoles) == [0, 0], [path.read_text() for path in consoles]
    told, silent = (path.read_text() for path in consoles)
    assert f"{5 + missing} training samples could not be used: " in told and "could not be used" not in silent
    assert "5 not an image" in told and f"{missing} truncated shard" in told
    assert (told + silent).count(f"{path}: truncated shard") == 1


def test_processes_that_see_different_folders_do_not_wait_for_each_other(data, tmp_path):
    resumed = train(data, tmp_path / "0", max_steps=4, eval_interval="none")
    assert (resumed / "final_checkpoint.pt").exists()
    (tmp_path / "1").mkdir()
    common = {"max_steps": 8, "warmup_steps": 0, "eval_interval": "none"}
    arguments = [[*flags(data, tmp_path / str(r), **common), "--resume", "--force"] for r in range(2)]
    consoles = [tmp_path / f"{r}.txt" for r in range(2)]
    assert train_on_two_ranks(arguments, consoles, seconds=60) == [2, 2], [path.read_text() for path in consoles]
    assert "do not start from the same step with the same data" in consoles[0].read_text()
    assert "do not start" in consoles[1].read_text()  # an error is told by whoever meets it
    assert (resumed / "final_checkpoint.pt").exists()


def _rank_with_scores(arguments, place, console):
    """A rank that judges for itself that it gets better (1) or does not (0)."""
    scores = itertools.count(1) if place["RANK"] == "1" else itertools.repeat(1)
    real_measure = results.measure_embeddings

    def measure(*given, **options):
        share = next(scores) / 100
        results = real_measure(*given, **options)
        return results and {**results, "recall@10": dict.fromkeys(results["recall@10"], share)}

    results.measure_embeddings = measure
    _rank(arguments, place, console)


def test_the_first_process_decides_whether_the_training_gets_better(data, tmp_path):
    """Another may compute another score, on another processor say; it neither trains on alone nor ends alone."""
    arguments = flags(data, tmp_path, max_steps=12, eval_interval=2, patience=2, checkpoint_interval=100)
    consoles = [tmp_path / f"{r}.txt" for r in range(2)]
    codes = train_on_two_ranks([arguments] * 2, consoles, seconds=90, target=_rank_with_scores)
    assert codes == [0, 0], [path.read_text() for path in consoles]
    assert records(tmp_path, "step", "mean_recall@10")[-1] == (6, 0.01)
    assert clip.read_checkpoint(tmp_path / "final_checkpoint.pt")["step"] == 6


def test_processes_with_different_settings_do_not_wait_for_each_other(data, tmp_path):
    arguments = [flags(data, tmp_path, eval_interval=interval) for interval in (6, 5)]
    consoles = [tmp_path / f"{r}.txt" for r in range(2)]
    assert train_on_two_ranks(arguments, consoles, seconds=60) == [2, 2], [path.read_text() for path in consoles]
    assert "EVAL_INTERVAL is [6, 5] in the processes of this run" in consoles[0].read_text()


# ------------------------------------------------------------------------------------------------ BatchNorm


@pytest.fixture
def resnet(tmp_path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    return write_config(tmp_path, name="tiny-resnet", vision_cfg=vision)


def statistics(run):
    return {name: value for name, value in weights(run).items() if "running_" in name}


def test_trained_statistics_stay_and_micro_batches_change_nothing(data, tmp_path, resnet):
    common = {"model_name": resnet, "max_steps": 3, "eval_interval": "none", "learning_rate": 1e-4}
    start = train(data, tmp_path / "start", **common)
    assert any(value.any() for name, value in statistics(start).items() if "mean" in name)  # from nothing they learn
    common["model_pretrained"] = start / "final_checkpoint.pt"
    whole = train(data, tmp_path / "whole", **common)
    sliced = train(data, tmp_path / "sliced", micro_batch_size=3, **common)
    for name, value in statistics(start).items():
        assert torch.equal(statistics(whole)[name], value), name
    assert_same_weights(sliced, whole, tolerance=1e-5)


def test_a_skipped_step_leaves_no_trace_in_the_statistics(data, tmp_path, resnet, monkeypatch):
    real_normalize, calls = clip_model_module.normalize, []

    def normalize(*arguments):
        calls.append(1)
        return real_normalize(*arguments) * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(clip_model_module, "normalize", normalize)
    run = train(data, tmp_path / "run", model_name=resnet, max_steps=4, eval_interval="none")
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["progress"]["skipped_steps"] == 1
    assert all(torch.isfinite(value).all() for value in statistics(run).values())


def test_siglips_scale_may_exceed_a_hundred_and_clips_may_not(data, tmp_path):
    """Published SigLIP weights have scales above 100; CLIP's paper bounds them there."""
    config = write_config(tmp_path, name="tiny-sigmoid")
    start = clip.create_model(config)
    clip.add_logit_bias(start)
    with torch.no_grad():
        start.model.logit_scale.fill_(math.log(117.3))
    clip.save_checkpoint(tmp_path / "start.pt", start)
    common = {"model_name": config, "model_pretrained": tmp_path / "start.pt", "max_steps": 1, "eval_interval": "none"}
    scales = {
        loss: weights(train(data, tmp_path / loss, loss=loss, learning_rate=1e-8, **common))["logit_scale"].exp().item()
        for loss in ("siglip", "clip")
    }
    assert scales["siglip"] == pytest.approx(117.3, abs=0.01)
    assert scales["clip"] == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize(
    ("field", "value"), [("step", "4\x1b[2J"), ("micro_batch_size", 0), ("total_steps", -1), ("settings", [])]
)
def test_a_checkpoint_whose_counts_are_none_is_not_resumed(data, tmp_path, field, value):
    fields = {"step": 4, "optimizer": {}, "progress": {}, "data": {}, "settings": {}}
    clip_model = clip.create_model(str(data / "tiny-test.json"))
    clip.save_checkpoint(tmp_path / "theirs.pt", clip_model, **fields | {field: value})
    with pytest.raises(ValueError, match=rf"theirs\.pt cannot be resumed: .*{field}") as refusal:
        train(data, tmp_path / "run", f"--resume={tmp_path / 'theirs.pt'}")
    assert str(refusal.value).isprintable()


def test_a_resumed_run_keeps_the_preprocessing_it_was_started_with(data, tmp_path, capsys):
    run, short = tmp_path / "run", {"eval_interval": "none", "lr_schedule": "constant"}
    train(data, run, image_mean="0.5,0.5,0.5", image_resize_mode="squash", max_steps=2, **short)
    with pytest.raises(ValueError, match="IMAGE_MEAN was 0.5,0.5,0.5, is 0.1,0.1,0.1"):
        train(data, run, "--resume", image_mean="0.1,0.1,0.1", max_steps=3, **short)
    train(data, run, "--resume", max_steps=3, **short)
    saved = clip.read_checkpoint(run / "final_checkpoint.pt")
    assert saved["step"] == 3
    assert saved["preprocess"]["mean"] == [0.5] * 3 and saved["preprocess"]["resize_mode"] == "squash"
    assert saved["settings"]["IMAGE_MEAN"] == "0.5,0.5,0.5"
    assert "image_resize_mode='squash'" in capsys.readouterr().out.split("saved")[-2]
