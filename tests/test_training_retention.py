"""What a training forgets: retention shards in its evaluations, its checkpoints, its log and its end."""

import os
import shutil
import signal

import pytest
import torch

import clipFineTuner
import openClipManagement as clip
from clip_finetuning.model import clip_model as clip_model_module
from clip_finetuning.retrieval import results
from clip_finetuning.training import curves
from dBManagement import eval_loader
from tests import test_clipFineTuner as trainer
from tests.helpers import catalogue_sample, write_config, write_shard
from tests.test_clipFineTuner import records, train

WAYS = ("text_to_image", "image_to_text")


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """Training, validation and retention shards, and a model's config."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "train", products=24, views=2, shards=2)
    make_shards(folder / "valid", products=12, views=2, shards=1, first_product=100)
    make_shards(folder / "general", products=14, views=2, shards=1, first_product=300)
    write_config(folder)
    return folder


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The records that the curves would be drawn of."""
    kept = []
    monkeypatch.setattr(curves, "draw", lambda lines, path: kept.append(lines))
    return kept


def shards(data, **changes):
    return {"retention_dataset_pattern": data / "general.000000.tar", "eval_interval": 2, "max_steps": 4} | changes


def scores(monkeypatch, *pairs):
    """Let evaluations give these mean recalls, of validation and retention in turn."""
    values = iter([value for pair in pairs for value in pair])
    monkeypatch.setattr(results, "measure", lambda *_, **__: {"recall@10": dict.fromkeys(WAYS, next(values))})


def test_every_evaluation_measures_both_and_says_so(data, tmp_path, capsys):
    run = train(data, tmp_path, **shards(data))
    told = capsys.readouterr().out
    assert "     retention  28 samples\n" in told
    assert told.count("retention Recall@10  text->image 0.") == 3
    keys = [f"retention/recall@10/{way}{end}" for way in WAYS for end in ("", "/low", "/high", "/chance")]
    found = records(run, "step", "mean_recall@10", "retention/mean_recall@10", *keys)
    assert [row[0] for row in found] == [0, 2, 4]
    mean, last = f"  mean {found[-1][2]:.4f}  before training {found[0][2]:.4f}", told.rindex("retention Recall@10")
    assert mean in told[last:]
    assert f" --retention={data / 'general.000000.tar'}" in told.splitlines()[-1]
    tuned = clip.load_model(run / "final_checkpoint.pt")
    transform = clip_model_module.image_transform(tuned, train=False)
    loader = eval_loader(str(data / "general.000000.tar"), transform, tuned.tokenizer, batch_size=7)
    measured = results.measure(tuned, loader, "fp32")
    assert found[-1][3] == measured["recall@10"][WAYS[0]] and found[-1][2] == pytest.approx(
        sum(measured["recall@10"].values()) / 2
    )


def test_weights_are_the_same_with_and_without(data, tmp_path):
    with_it = train(data, tmp_path / "with", **shards(data, keep="both"))
    without = train(data, tmp_path / "without", **shards(data, retention_dataset_pattern=None))
    trainer.assert_same_weights(with_it, without)
    assert not records(without, "retention/mean_recall@10")


@pytest.mark.parametrize(("keep", "best", "step"), [("gain", 0.8, 4), ("both", 0.65, 2)])
def test_keep_decides_which_checkpoint_is_the_best(data, tmp_path, monkeypatch, capsys, keep, best, step):
    scores(monkeypatch, (0.1, 0.9), (0.6, 0.7), (0.8, 0.2))
    run = train(data, tmp_path, **shards(data, keep=keep))
    checkpoint = clip.read_checkpoint(run / "best_checkpoint.pt")
    assert (checkpoint["step"], checkpoint["progress"]["best_score"]) == (step, pytest.approx(best))
    told = capsys.readouterr().out
    if keep == "gain":
        assert f"best mean Recall@10 {best:.4f}, at the start 0.1000" in told and not records(run, "mean_of_both")
    else:
        assert "  mean 0.2000  before training 0.9000  both 0.5000  best 0.6500\n" in told
        assert "best mean Recall@10 of validation and retention 0.6500, at the start 0.5000" in told
        assert "; best_checkpoint.pt is the best mean of validation and retention\n" in told
        assert records(run, "mean_of_both") == [(0.5,), (pytest.approx(0.65),), (0.5,)]


def test_patience_goes_by_what_is_kept(data, tmp_path, monkeypatch):
    scores(monkeypatch, (0.1, 0.9), (0.6, 0.7), (0.8, 0.2), (0.9, 0.2))
    run = train(data, tmp_path, **shards(data, keep="both", patience=1, max_steps=8))
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 4


def by_product(found, products=40):
    """Results of so many products with two views each, of which the first `found` are found."""
    ways = {
        way: {
            "by_product": {
                "product": [f"P{n}" for n in range(products)],
                "queries": [views] * products,
                "recall@10": [float(views * (n < found)) for n in range(products)],
            }
        }
        for way, views in zip(WAYS, (1, 2))
    }
    return {"recall@10": dict.fromkeys(WAYS, found / products), "protocols": {"product": ways}}


@pytest.mark.parametrize(("lost", "warns"), [(2, False), (20, True)])
def test_forgetting_beyond_chance_is_warned_of_also_after_a_resume(data, tmp_path, monkeypatch, capsys, lost, warns):
    found = iter([10, 30, 20, 30 - lost, 25, 30 - lost])
    monkeypatch.setattr(results, "measure", lambda *_, **__: by_product(next(found)))
    train(data, tmp_path, **shards(data, max_steps=2))
    train(data, tmp_path, "--resume", **shards(data))
    told = capsys.readouterr().err
    words = "the model forgets: mean Recall@10 on the retention shards is 0.2500, below the 0.7500 before training (-0.5000 [-0."
    assert told.count(words) == 2 * warns and ("WARNING" in told) == warns


# ------------------------------------------------------------------------------------------------ resuming


def test_a_resumed_run_knows_what_there_was_before_training(data, tmp_path):
    whole = train(data, tmp_path / "whole", **shards(data, keep="both"))
    run = train(data, tmp_path / "run", **shards(data, keep="both", max_steps=2, lr_schedule="constant"))
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["progress"]["first_retention"] is not None
    train(data, run, "--resume", max_steps=4, eval_interval=None)
    keys = ("step", "retention/mean_recall@10", "mean_of_both")
    assert [row[0] for row in records(run, *keys)] == [0, 2, 4]
    assert records(run, *keys)[0] == records(whole, *keys)[0]


def test_retention_is_turned_on_in_the_middle(data, tmp_path, capsys):
    run = train(data, tmp_path, **shards(data, retention_dataset_pattern=None, max_steps=2, lr_schedule="constant"))
    best = clip.read_checkpoint(run / "best_checkpoint.pt")["progress"]["best_score"]
    train(data, run, "--resume", **shards(data, keep="both", lr_schedule="constant"))
    told = capsys.readouterr().out
    assert "retention  28 samples, not measured before the training: what was forgotten since is not known" in told
    assert "KEEP was gain, is both: the best checkpoint is chosen anew from step 2 on" in told
    assert [step for step, _ in records(run, "step", "retention/mean_recall@10")] == [4]
    checkpoint = clip.read_checkpoint(run / "best_checkpoint.pt")
    assert checkpoint["step"] == 4 and checkpoint["progress"]["best_score"] != best
    assert "both 0." in told and told[told.index("both 0.") - 8 :].count("before training") == 0


def test_other_retention_shards_have_no_before(data, tmp_path, capsys, make_shards):
    run = train(data, tmp_path / "run", **shards(data, keep="both", max_steps=2, lr_schedule="constant"))
    moved, other = tmp_path / "moved" / "general.000000.tar", make_shards(tmp_path / "o", 14, 2, 1, first_product=500)
    moved.parent.mkdir()
    shutil.copy(data / "general.000000.tar", moved)
    options = shards(data, keep="both", lr_schedule="constant")
    train(data, run, "--resume", **options | {"retention_dataset_pattern": moved})
    assert "chosen anew" not in capsys.readouterr().out
    train(data, run, "--resume", **options | {"retention_dataset_pattern": other, "max_steps": 6})
    told = capsys.readouterr().out
    assert "the retention shards are others than before: what the model knew of them before the training is not" in told
    assert "the best checkpoint is chosen anew from step 4 on" in told
    assert "retention  28 samples, not measured before the training" in told


def test_a_checkpoint_from_before_there_was_retention_goes_on_without(data, tmp_path):
    run = train(data, tmp_path, **shards(data, retention_dataset_pattern=None, max_steps=2, lr_schedule="constant"))
    for path in (run / "final_checkpoint.pt", run / "best_checkpoint.pt"):
        old = torch.load(path, weights_only=True)
        for name in ("KEEP", "RETENTION_DATASET_PATTERN"):
            del old["settings"][name]
        for name in ("first_retention", "retention_data"):
            del old[name]
        for name in ("first_retention", "keep"):
            del old["progress"][name]
        torch.save(old, path)
    train(data, run, "--resume", max_steps=4, eval_interval=None)
    assert clip.read_checkpoint(run / "final_checkpoint.pt")["step"] == 4


# ------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [0, 2])
def test_a_signal_while_retention_is_measured_loses_nothing(data, tmp_path, monkeypatch, number):
    whole = train(data, tmp_path / "whole", **shards(data))
    real, steps, batches = clip_model_module.encode_images, [], []
    real_evaluate = clipFineTuner.evaluate

    def evaluate(run, stop):
        steps.append(run.progress.step)
        return real_evaluate(run, stop)

    def encode(clip_model, images):
        batches.extend([len(images)] * (not clip_model.model.training and steps[-1] == number))
        if len(batches) == first_of_retention:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(clip_model, images)

    first_of_retention = -(-24 // trainer.BATCH) + 1
    monkeypatch.setattr(clipFineTuner, "evaluate", evaluate)
    monkeypatch.setattr(clip_model_module, "encode_images", encode)
    run = train(data, tmp_path / "run", **shards(data))
    assert len(batches) == first_of_retention
    if number:  # at step 0 there is no file yet
        assert len(records(run, "mean_recall@10")) == 1  # no half of an evaluation
    train(data, run, "--resume", **shards(data))
    keys = ("step", "mean_recall@10", "retention/mean_recall@10")
    assert records(run, *keys) == records(whole, *keys) and len(records(run, *keys)) == 3
    trainer.assert_same_weights(run, whole)


def test_two_processes_measure_it_like_one(data, tmp_path):
    options = shards(data, keep="both", max_steps=2)
    one, two = train(data, tmp_path / "one", **options), tmp_path / "two"
    two.mkdir()
    consoles = [two / f"{r}.txt" for r in range(2)]
    codes = trainer.train_on_two_ranks([trainer.flags(data, two, **options)] * 2, consoles)
    assert codes == [0, 0], [path.read_text() for path in consoles]
    keys = ("step", "retention/mean_recall@10", "mean_of_both")
    assert records(two, *keys) == [pytest.approx(row, abs=0.05) for row in records(one, *keys)]
    assert len(records(two, *keys)) == 2 and records(two, *keys)[0] == pytest.approx(records(one, *keys)[0])


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retention_dataset_pattern": None, "keep": "both"}, "KEEP=both needs shards of what the model knew before"),
        ({"eval_interval": "none"}, "RETENTION_DATASET_PATTERN is measured at evaluations, but EVAL_INTERVAL is none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(data, tmp_path, capsys, changes, words):
    with pytest.raises(SystemExit):
        train(data, tmp_path, **shards(data, **changes))
    assert words in capsys.readouterr().err


def repacked(data, path, numbers, key=7000):
    """Samples of the training data under other names, in another order and another shard."""
    write_shard(
        path,
        [
            {
                name.replace(f"{n:09d}", f"{key + n:09d}"): content
                for name, content in catalogue_sample(n, n // 2).items()
            }
            for n in numbers
        ],
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train.000001.tar", "train.000001.tar is one of the shards that the model is trained on"),
        ("linked.tar", "linked.tar is one of the shards that the model is trained on"),
        ("general.000000.tar::./train.*.tar", "train.000000.tar is one of the shards that the model is trained on"),
        ("valid.000000.tar", "valid.000000.tar is one of the shards that the model is evaluated on"),
        ("copy.tar", "all 24 samples are also in the shards that the model is trained on"),
        ("copy_of_valid.tar", "all 24 samples are also in the shards that the model is evaluated on"),
        ("repacked.tar", "all 30 samples are also in the shards that the model is trained on"),
        ("typo.tar", "no shard matches 'typo.tar'"),
    ],
)
def test_shards_that_cannot_tell_what_was_forgotten_are_refused_before_there_is_a_model(
    data, tmp_path, monkeypatch, name, words
):
    monkeypatch.chdir(tmp_path)
    for path in data.glob("*.tar"):
        shutil.copy(path, tmp_path)
    (tmp_path / "linked.tar").symlink_to(tmp_path / "train.000001.tar")
    shutil.copy("train.000001.tar", "copy.tar")
    shutil.copy("valid.000000.tar", "copy_of_valid.tar")
    repacked(data, tmp_path / "repacked.tar", range(40, 10, -1))
    monkeypatch.setattr(clipFineTuner, "load_start", None)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train(tmp_path, tmp_path / "run", retention_dataset_pattern=name, model_name=data / "tiny-test.json")


def test_samples_that_are_trained_on_too_are_counted(data, tmp_path, capsys):
    others = [catalogue_sample(n + 900, n + 900) for n in range(6)]
    repacked(data, tmp_path / "part.tar", range(3))
    write_shard(tmp_path / "others.tar", others)
    pattern = f"{tmp_path / 'part.tar'}::{tmp_path / 'others.tar'}"
    train(data, tmp_path / "run", **shards(data, retention_dataset_pattern=pattern, max_steps=1))
    assert "3 of the 9 samples are also in the shards that the model is trained on" in capsys.readouterr().err


def test_the_same_products_in_other_pictures_are_other_samples(data, tmp_path, capsys):
    write_shard(tmp_path / "drawn.tar", [catalogue_sample(n + 900, n // 2) for n in range(24)])
    train(data, tmp_path / "run", **shards(data, retention_dataset_pattern=tmp_path / "drawn.tar", max_steps=1))
    assert "samples are also in" not in capsys.readouterr().err


def test_missing_validation_shards_end_a_run_that_is_to_measure_retention(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="clip_dataset_valid"):
        train(data, tmp_path / "run", **shards(data, valid_dataset_pattern=None))
