"""The evaluator on mixes of a checkpoint and its start: numbers, plane, the checkpoint of a mix, and what is refused."""

import json
import os
import shutil

import open_clip
import pytest
import torch
from PIL import Image

import evaluate_clip
import openClipManagement as clip
from clip_finetuning.retrieval import embed, interpolation
from tests.helpers import CountedTransform, catalogue_sample, write_config, write_shard
from tests.processes import run_ranks

RECALLS = ("recall@5", "recall@10")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A start, a checkpoint that began as it and names it, and two kinds of shards."""
    folder = tmp_path_factory.mktemp("data")
    config = write_config(folder)
    write_shard(folder / "own.000000.tar", [catalogue_sample(n, n // 2) for n in range(26)])
    write_shard(folder / "general.000000.tar", [catalogue_sample(n + 100, n // 2 + 50) for n in range(30)])
    start, tuned = (clip.create_model(config, "", None, torch.device("cpu"), seed=seed) for seed in (3, 4))
    clip.save_checkpoint(folder / "start.pt", start)
    tuned.pretrained = str(folder / "start.pt")
    settings = {"TRAIN_DATASET_PATTERN": str(folder / "train.{000000..000001}.tar")}
    clip.save_checkpoint(folder / "tuned.pt", tuned, settings=settings)
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def flags(data, *more):
    given = [
        f"--checkpoint={data / 'tuned.pt'}",
        f"--dataset-path={data / 'own.000000.tar'}",
        "--protocol=product",
        "--device=cpu",
        "--precision=fp32",
        "--num-workers=0",
        "--batch-size=7",
    ]
    return [*given, *map(str, more)]


def evaluate(data, *more):
    """The results of a call -> those of its file."""
    arguments = flags(data, *more)
    evaluate_clip.main(arguments)
    args = evaluate_clip.parse_arguments(arguments)
    with open(args.output, encoding="utf-8") as file:
        return json.load(file)


def retention(data):
    return f"--retention={data / 'general.000000.tar'}"


# ------------------------------------------------------------------------------------------------- one mix


def test_a_mix_is_measured_said_and_written(data, tmp_path, capsys):
    results = evaluate(data, "--interpolate=0.5", "--save-checkpoint=mix.pt", retention(data))
    told = capsys.readouterr().out
    assert f"0.5 of {data / 'tuned.pt'}, 0.5 of {data / 'start.pt'}" in told
    mix = {"share": 0.5, "start": str(data / "start.pt"), "tuned": str(data / "tuned.pt")}
    assert results["interpolation"] == mix and results["model"]["weights"] == "mix.pt"
    assert results["retention"]["base"]["weights"] == str(data / "start.pt")
    ends = [clip.read_checkpoint(data / name)["state_dict"] for name in ("start.pt", "tuned.pt")]
    saved = clip.read_checkpoint("mix.pt")
    for name, weight in saved["state_dict"].items():
        assert torch.allclose(weight, (ends[0][name] + ends[1][name]) / 2, atol=1e-7)
    assert saved["interpolated"] == mix and saved["pretrained"] == str(data / "start.pt")
    assert saved["settings"]["TRAIN_DATASET_PATTERN"].startswith(str(data))
    # It is a checkpoint like any other.
    again = evaluate(data, "--checkpoint=mix.pt", "--output=again.json", retention(data))
    assert all(again[key] == results[key] for key in RECALLS)
    assert again["retention"]["change"] == results["retention"]["change"]
    call = saved["open_clip_model"].replace("open_clip.create_model_and_transforms", "open_clip.create_model")
    plain = eval(call, {"open_clip": open_clip})  # as a user would paste it
    assert torch.equal(plain.visual.proj, saved["state_dict"]["visual.proj"])


@pytest.mark.parametrize(("share", "name"), [(0, "start.pt"), (1, "tuned.pt")])
def test_the_ends_are_the_two_models(data, share, name):
    mixed = evaluate(data, f"--interpolate={share}")
    alone = evaluate(data, f"--checkpoint={data / name}", "--output=alone.json")
    assert all(mixed[key] == alone[key] for key in RECALLS)
    assert os.path.exists("evaluation_results_interpolated.json")


def test_the_user_says_with_what_it_is_mixed(data, tmp_path, capsys):
    checkpoint = clip.read_checkpoint(data / "tuned.pt")
    torch.save(checkpoint["state_dict"], "bare.pt")
    named = ["--checkpoint=bare.pt", f"--model-name={data / 'tiny-test.json'}", "--interpolate=0.5"]
    with pytest.raises(ValueError, match="does not say which weights it began with; name the weights to mix with"):
        evaluate(data, *named)
    shutil.copy(data / "start.pt", "other.pt")
    results = evaluate(data, *named, "--model-pretrained=other.pt")
    assert results["interpolation"]["start"] == "other.pt"
    # Where the checkpoint says it too, the user's word counts.
    assert evaluate(data, "--interpolate=0.5", "--model-pretrained=other.pt")["interpolation"]["start"] == "other.pt"


# ----------------------------------------------------------------------------------------------- the sweep


def test_the_sweep_measures_each_mix_as_it_is_measured_alone(data, monkeypatch, capsys):
    from clip_finetuning.model import clip_model

    counted = []
    real = clip_model.image_transform

    def image_transform(*arguments, **options):
        counted.append(CountedTransform(real(*arguments, **options)))
        return counted[-1]

    monkeypatch.setattr(clip_model, "image_transform", image_transform)
    monkeypatch.setattr(embed, "AT_ONCE_BYTES", 40_000)  # two batches
    results = evaluate(data, "--interpolate=sweep", retention(data))
    assert [transform.calls.value for transform in counted[:2]] == [26, 30]  # each picture once for eleven mixes
    found = results["interpolation"]
    assert [mix["share"] for mix in found["mixes"]] == pytest.approx([n / 10 for n in range(11)])
    for share in (0.3,):
        alone = evaluate(data, f"--interpolate={share}", retention(data), "--output=alone.json")
        mix = next(mix for mix in found["mixes"] if mix["share"] == share)
        for axis, other in (("gain", alone), ("retention", alone["retention"])):
            assert {way: mix[axis][way] for way in other["recall@10"]} == other["recall@10"]
            assert mix[axis]["mean"] == pytest.approx(sum(other["recall@10"].values()) / 2)
            low, high = mix[axis]["interval"]
            assert low < mix[axis]["mean"] < high
    with Image.open("evaluation_results_interpolated.png") as picture:
        assert picture.format == "PNG"
    told = capsys.readouterr().out
    assert "  share" in told and max(map(len, told[told.index("  share") :].splitlines()[:12])) <= 80


def recalls_of(monkeypatch, gain, kept=None, products=200):
    """Let each mix find so many of so many products, of its own data and of others; nothing is embedded."""
    names = [f"P{n}" for n in range(products)]

    def measured(found):
        hits = [float(n < found) for n in range(products)]
        by_product = {"products": "x", "hits": hits, "queries": [1] * len(names)}
        share = found / products
        return {"mean": share, "interval": [share - 0.05, share + 0.05], "samples": products}, by_product

    def columns():
        for n in range(11):
            yield {"gain": measured(gain[n])} | ({} if kept is None else {"retention": measured(kept[n])})

    real = interpolation.judge
    monkeypatch.setattr(interpolation, "embed_each", lambda *_: [])
    monkeypatch.setattr(interpolation, "judge", lambda shares, _: real(shares, list(columns())))


RISING = [40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140]


def test_a_mix_better_than_both_ends_on_both_is_named_and_written(data, monkeypatch, capsys):
    recalls_of(
        monkeypatch,
        [40, 60, 80, 100, 120, 140, 160, 170, 172, 160, 140],
        [100, 110, 120, 130, 140, 150, 150, 140, 100, 80, 60],
    )
    results = evaluate(data, "--interpolate=sweep", "--save-checkpoint=mix.pt", retention(data))
    found = results["interpolation"]
    assert found["named"] == found["share"] == 0.6
    assert clip.read_checkpoint("mix.pt")["interpolated"]["share"] == found["named"]
    told = " ".join(capsys.readouterr().out.split())
    assert f"{found['named']:g} is better than both ends on gain and retention: gain +" in told
    assert "by Holm at 5 % of 9 mixes; chosen on these shards, so measure it on others" in told
    mix = next(mix for mix in found["mixes"] if mix["share"] == found["named"])
    assert all(
        mix["against"][end][axis]["verdict"] == "better" for end in ("start", "tuned") for axis in ("gain", "retention")
    )
    assert results["model"]["weights"] == "mix.pt"


@pytest.mark.parametrize(
    ("gain", "kept", "words"),
    [
        (RISING, RISING[::-1], "no mix of 9 is better than both ends on gain and retention by more than chance; the best"),
        ([*RISING[:5], 142, *RISING[6:]], None, "no mix of 9 is better than both ends on gain by more than chance; the best"),
        (RISING, [180] * 11, "the best mean of both has the fine-tuned itself"),
        (RISING[::-1], RISING[::-1], "the best mean of both has the start itself"),
        ([40, 60, 80, 100, 130, 138, 139, 140, 140, 140, 140], [150, 148, 146, 144, 142, 140, 120, 100, 90, 80, 70],
         "the best mean of both has 0.5: gain +0.4900 [+0.4"),
        ([40, 60, 80, 100, 130, 150, 160, 165, 160, 150, 130], [150, 148, 146, 144, 142, 140, 120, 100, 90, 80, 70],
         "more than chance (than the fine-tuned alone are 0.5, 0.6, 0.7, 0.8, 0.9); the best mean of both has 0.5: gain +0.5"),
    ],
)  # fmt: skip
def test_that_no_mix_is_better_is_said_and_nothing_is_written(data, monkeypatch, capsys, gain, kept, words):
    recalls_of(monkeypatch, gain, kept)
    with pytest.raises(ValueError, match="mix.pt is not written: no mix of 9 is better than both ends"):
        evaluate(data, "--interpolate=sweep", "--save-checkpoint=mix.pt")
    assert not os.path.exists("mix.pt")
    told = " ".join(capsys.readouterr().out.split())
    assert words in told
    with open("evaluation_results_interpolated.json", encoding="utf-8") as file:
        results = json.load(file)
    assert results["interpolation"]["named"] is None and results["interpolation"]["share"] == 1
    assert results["model"]["weights"] == str(data / "tuned.pt")


def test_two_processes_find_the_same(data, tmp_path):
    one = evaluate(data, "--interpolate=sweep", retention(data), "--output=one.json")
    two = run_ranks(
        evaluate_clip.__file__,
        *flags(data, "--interpolate=sweep", retention(data), f"--output={tmp_path / 'two.json'}"),
    )
    assert two.returncode == 0, two.stderr
    with open("two.json", encoding="utf-8") as file:
        assert json.load(file)["interpolation"] == one["interpolation"]
    assert two.stdout.count("drawn in ") == 1


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("end", ["tuned.pt", "start.pt", "link.pt"])
def test_neither_of_the_two_is_overwritten(data, tmp_path, end):
    for name in ("tuned.pt", "start.pt"):
        shutil.copy(data / name, name)
    os.symlink("start.pt", "link.pt")
    before = (tmp_path / end).read_bytes()
    with pytest.raises(ValueError, match="would overwrite one of the two that are mixed"):
        evaluate(
            data,
            "--checkpoint=tuned.pt",
            "--model-pretrained=start.pt",
            "--interpolate=0.5",
            f"--save-checkpoint=./{end}",
        )
    assert (tmp_path / end).read_bytes() == before


def other_architecture(data, folder):
    config = write_config(folder, "wider", embed_dim=24)
    clip.save_checkpoint("wider.pt", clip.create_model(config, "", None, torch.device("cpu")))


def not_finite(data, folder):
    checkpoint = torch.load(data / "start.pt", weights_only=True)
    checkpoint["state_dict"]["visual.proj"][0] = torch.nan
    torch.save(checkpoint, "nan.pt")


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (
            None,
            ["--model-pretrained=gone.pt"],
            "--interpolate: MODEL_PRETRAINED=gone.pt is neither a file nor a tag of tiny",
        ),
        (
            other_architecture,
            ["--model-pretrained=wider.pt"],
            "wider.pt is a checkpoint of wider, but MODEL_NAME is tiny-test",
        ),
        (not_finite, ["--model-pretrained=nan.pt"], "1 weights of the start are not finite"),
        (None, ["--save-checkpoint=."], "--save-checkpoint . is a folder"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(data, tmp_path, make, more, words):
    if make:
        make(data, tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as refusal:
        evaluate(data, "--interpolate=0.5", *more)
    assert str(refusal.value).isprintable()


def test_a_checkpoint_that_began_with_random_weights_has_nothing_to_be_mixed_with(data):
    with pytest.raises(
        ValueError, match="--interpolate: the checkpoint began with random weights, .* --model-pretrained"
    ):
        evaluate(data, f"--checkpoint={data / 'start.pt'}", "--interpolate=0.5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interpolate=0.5"], "add --checkpoint PATH"),
        (["--interpolate=1.5", "--use-checkpoint"], "1.5 is not allowed: it takes a number from 0 to 1, or sweep"),
        (["--interpolate=nan", "--use-checkpoint"], "nan is not allowed"),
        (["--interpolate=swep", "--use-checkpoint"], "swep is not allowed"),
        (["--save-checkpoint=a.pt", "--use-checkpoint"], "add --interpolate SHARE, or sweep"),
        (["--interpolate=sweep", "--use-checkpoint", "--from-embeddings=a.npz"], "leave out --from-embeddings"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(capsys, arguments, words):
    with pytest.raises(SystemExit):
        evaluate_clip.parse_arguments(arguments)
    assert words in capsys.readouterr().err
