"""Runs of TUNE=lora: small checkpoints that name their base, merged ones for everyone else, and a resume to the bit."""

import os
import signal
from pathlib import Path

import open_clip
import pytest
import torch

import clipFineTuner
import evaluate_clip
import openClipManagement as clip
from clip_finetuning.model import lora_file
from clip_finetuning.training import step as training_step
from tests.helpers import write_config
from tests.test_clipFineTuner import train_on_two_ranks

FREE = {"anchor": 0, "start_share": 0}  # no start is kept


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """A folder with shards, a model's config, and the weights that runs begin with."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "train", products=24, views=2, shards=1)
    make_shards(folder / "valid", products=10, views=2, shards=1, first_product=100)
    write_config(folder)
    trained_weights(folder / "base.pt", folder)
    return folder


def trained_weights(path, folder, seed=0):
    """Weights that do not look random, for the config of a folder."""
    model = clip.create_model(str(folder / "tiny-test.json"), seed=seed)
    with torch.no_grad():
        for norm in [module for module in model.model.modules() if isinstance(module, torch.nn.LayerNorm)]:
            norm.bias.add_(0.01)
    clip.save_checkpoint(path, model)
    return path


def flags(data, run, **changes):
    knobs = {
        "model_name": data / "tiny-test.json",
        "model_pretrained": data / "base.pt",
        "train_dataset_pattern": data / "train.{000000..000000}.tar",
        "valid_dataset_pattern": data / "valid.{000000..000000}.tar",
        "checkpoint_dir": run,
        "tune": "lora",
        "lora_rank": 2,
        "lora_dropout": 0.1,
        "batch_size": 8,
        "num_workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "learning_rate": 1e-2,
        "max_steps": 6,
        "checkpoint_interval": 2,
        "eval_interval": "none",
        **changes,
    }
    return [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items() if value is not None]


def train(data, run, *more, **changes):
    clipFineTuner.main(flags(data, run, **changes) + list(more))
    return Path(run)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("finished"), eval_interval=3)


def test_periodic_checkpoints_are_small_and_the_others_are_plain_with_the_additions_beside_them(data, finished):
    names = ["best_checkpoint.pt", "best_lora.pt", "checkpoint_00000002.pt", "checkpoint_00000004.pt"]
    names += ["final_checkpoint.pt", "final_lora.pt", "start.pt"]
    assert sorted(path.name for path in finished.glob("*.pt")) == names
    small, base = clip.read_checkpoint(finished / "checkpoint_00000004.pt"), clip.read_checkpoint(data / "base.pt")
    assert not small["state_dict"] and small["lora"]["base"]["pretrained"] == str(data / "base.pt")
    assert (finished / "checkpoint_00000004.pt").stat().st_size < (data / "base.pt").stat().st_size / 10
    weights = clip.read_checkpoint(finished / "final_checkpoint.pt")["state_dict"]
    assert weights.keys() == base["state_dict"].keys()
    changed = {name for name in weights if not torch.equal(weights[name], base["state_dict"][name])}
    assert "logit_scale" in changed and all(("resblocks" in name or name == "logit_scale") for name in changed)
    assert sum("in_proj_weight" in name for name in changed) == 2


def test_plain_open_clip_loads_the_final_checkpoint(data, finished):
    open_clip.add_model_config(data)
    model, _, _ = open_clip.create_model_and_transforms(
        "tiny-test", pretrained=str(finished / "final_checkpoint.pt"), weights_only=True
    )
    assert same(dict(model.state_dict()), clip.read_checkpoint(finished / "final_checkpoint.pt")["state_dict"])


@pytest.mark.parametrize("name", ["final_lora.pt", "best_lora.pt"])
def test_the_additions_with_their_base_are_the_merged_model(finished, name):
    merged = clip.read_checkpoint(finished / name.replace("lora", "checkpoint"))["state_dict"]
    loaded = clip.load_model(finished / name).model.state_dict()
    assert all(torch.allclose(loaded[key], merged[key], atol=1e-6, rtol=0) for key in merged)


def test_a_small_checkpoint_is_evaluated_like_any_other(data, finished, tmp_path, capsys):
    found = []
    for name in ("final_lora.pt", "final_checkpoint.pt"):
        arguments = [f"--checkpoint={finished / name}", f"--dataset-path={data / 'valid.000000.tar'}", "--device=cpu"]
        evaluate_clip.main([*arguments, "--num-workers=0", f"--output={tmp_path / 'results.json'}"])
        found.append((tmp_path / "results.json").read_text().count("recall@10"))
    assert found[0] == found[1] > 0


def test_a_small_checkpoint_is_a_start_for_full_fine_tuning(data, finished, tmp_path):
    model = clip.create_model(str(data / "tiny-test.json"), str(finished / "final_lora.pt")).model
    merged = clip.read_checkpoint(finished / "final_checkpoint.pt")["state_dict"]
    assert all(torch.allclose(model.state_dict()[key], merged[key], atol=1e-6, rtol=0) for key in merged)


def stop_at(number, monkeypatch):
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
        {"precision": "bf16", "loss": "siglip", "optimizer": "muon"},
        {"grad_checkpointing": "true", "micro_batch_size": 3, "layer_decay": 0.5},
    ],
)
def test_a_stopped_run_goes_on_to_the_bit(data, tmp_path, monkeypatch, changes):
    whole = train(data, tmp_path / "whole", **changes)
    stop_at(3, monkeypatch)
    run = train(data, tmp_path / "run", **changes)
    assert not (run / "final_checkpoint.pt").exists()
    train(data, run, "--resume", **changes)
    found, expected = (clip.read_checkpoint(folder / "final_checkpoint.pt") for folder in (run, whole))
    assert same(found["state_dict"], expected["state_dict"])
    assert same(found["lora"]["additions"], expected["lora"]["additions"])
    assert same(found.get("raw_state_dict", {}), expected.get("raw_state_dict", {}))
    for number, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(found["optimizer"]["state"][number][key], value) for key, value in moments.items())


def test_a_finished_run_goes_on_from_its_merged_checkpoint(data, finished, tmp_path):
    run = train(data, tmp_path / "run", lr_schedule="constant", warmup_steps=0)
    (run / "checkpoint_00000004.pt").unlink()
    (run / "checkpoint_00000002.pt").unlink()
    train(data, run, "--resume", lr_schedule="constant", warmup_steps=0, max_steps=8)
    once = train(data, tmp_path / "once", lr_schedule="constant", warmup_steps=0, max_steps=8)
    found, expected = (clip.read_checkpoint(folder / "final_lora.pt")["lora"]["additions"] for folder in (run, once))
    assert same(found, expected)


def test_micro_batches_give_the_same_training(data, tmp_path):
    runs = [
        train(data, tmp_path / str(size), lora_dropout=0, learning_rate=1e-3, micro_batch_size=size) for size in (8, 3)
    ]
    one, other = (clip.read_checkpoint(run / "final_checkpoint.pt")["state_dict"] for run in runs)
    assert all(torch.allclose(one[name], other[name], atol=2e-5, rtol=0) for name in one)


def test_two_processes_train_like_one(data, tmp_path):
    changes = {"lora_dropout": 0, "learning_rate": 1e-3}
    run = tmp_path / "two"
    run.mkdir()
    consoles = [run / f"{rank}.txt" for rank in range(2)]
    codes = train_on_two_ranks([flags(data, run, **changes)] * 2, consoles)
    assert codes == [0, 0], [path.read_text() for path in consoles]
    one = train(data, tmp_path / "one", **changes)
    two, one = (clip.read_checkpoint(folder / "final_checkpoint.pt")["state_dict"] for folder in (run, one))
    assert all(torch.allclose(one[name], two[name], atol=2e-5, rtol=0) for name in one)


def test_the_start_says_what_trains_and_how_large_the_checkpoints_are(data, tmp_path, capsys):
    run = train(data, tmp_path / "run", max_steps=3)
    said = capsys.readouterr().out
    assert "rank 2, alpha 32, added to 1 qkv, 1 out, 2 mlp in the image tower; 1 qkv, 1 out, 2 mlp in the text" in said
    # of each block: q, k, v, out 32 x 32, and two of 32 x 128
    assert f"trainable {2 * (4 * 2 * 64 + 2 * 2 * 160) + 1:,}" in said
    assert f"saved {run / 'final_lora.pt'}" in said or f"{run / 'final_lora.pt'} holds LoRA additions alone" in said


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(data, run, *more, **changes):
    with pytest.raises((ValueError, SystemExit)) as refusal:
        train(data, run, *more, **changes)
    return str(refusal.value)


def test_additions_without_their_base_are_refused(data, finished, tmp_path):
    moved = trained_weights(tmp_path / "elsewhere.pt", data)
    run = train(data, tmp_path / "run", model_pretrained=moved, max_steps=3, **FREE)
    moved.unlink()
    for path in ("final_lora.pt", "checkpoint_00000002.pt"):
        with pytest.raises(
            ValueError, match=r"holds LoRA additions alone, .*not there: \S+elsewhere.pt\); put that file"
        ):
            clip.load_model(run / path)
    assert clip.load_model(run / "final_checkpoint.pt").model is not None  # the merged one needs none
    trained_weights(run / "elsewhere.pt", data)  # beside it does as well
    assert clip.load_model(run / "final_lora.pt").model is not None


def test_another_base_is_refused(data, tmp_path):
    base = trained_weights(tmp_path / "base.pt", data)
    run = train(data, tmp_path / "run", model_pretrained=base, max_steps=3, **FREE)
    trained_weights(base, data, seed=1)
    with pytest.raises(ValueError, match="final_lora.pt holds LoRA additions to other weights .* their hashes differ"):
        clip.load_model(run / "final_lora.pt")
    assert "their hashes differ" in refused(data, run, "--resume", model_pretrained=base, max_steps=5)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "loss": "siglip"}])
def test_a_run_that_keeps_its_start_goes_on_to_the_bit_where_its_base_is_other_weights_now(
    data, tmp_path, monkeypatch, capsys, changes
):
    """And what it saves is its start's share and the trained weights', in small files and in merged ones."""
    base = trained_weights(tmp_path / "base.pt", data)
    changes = {"model_pretrained": base, "max_steps": 4, **changes}
    whole = train(data, tmp_path / "whole", **changes)
    stop_at(3, monkeypatch)
    run = train(data, tmp_path / "run", **changes)
    trained_weights(base, data, seed=1)
    capsys.readouterr()
    train(data, run, "--resume", **changes)
    assert f"adds to the weights in {run / 'start.pt'}: they are no longer in {base}" in capsys.readouterr().out
    found, expected = (clip.read_checkpoint(folder / "final_checkpoint.pt") for folder in (run, whole))
    averaged = "average_state_dict" if "ema_decay" in changes else "raw_state_dict"
    for part in ("state_dict", "raw_state_dict", averaged):
        assert same(found[part], expected[part])
    small = clip.read_checkpoint(whole / "checkpoint_00000002.pt")
    held = sum(value.numel() for part in ("raw_state_dict", averaged) for value in small[part].values())
    assert held < 5_000 and (whole / "checkpoint_00000002.pt").stat().st_size < base.stat().st_size / 10
    start = clip.load_model(run / "start.pt").model.state_dict()
    trained = clip.load_model(run / "start.pt")
    lora_file.merge(trained.model, lora_file.read("run", found)._replace(additions=found[averaged]), "run")
    for saved in (found["state_dict"], clip.load_model(run / "final_lora.pt").model.state_dict()):
        for name, value in trained.model.state_dict().items():
            if name in saved and torch.isfinite(value).all():
                assert torch.allclose(saved[name], 0.1 * start[name] + 0.9 * value, atol=1e-6), name


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora_rank": 3}, "LORA_RANK was 2, is 3"),
        ({"lora_targets": "qkv,out"}, "LORA_TARGETS was qkv,out,mlp, is qkv,out;"),
        ({"lora_alpha": 16}, "LORA_ALPHA was 32.0, is 16.0"),
        ({"tune": "full"}, "TUNE was lora, is full"),
    ],
)
def test_a_run_does_not_go_on_with_other_additions(data, finished, changes, words):
    assert words in refused(data, finished, "--resume", max_steps=9, **changes)


def test_a_full_run_does_not_go_on_with_additions(data, tmp_path):
    run = train(data, tmp_path / "run", tune="full", max_steps=2)
    assert "TUNE was full, is lora" in refused(data, run, "--resume", max_steps=9)


def test_random_weights_and_additions_are_no_base(data, finished, tmp_path):
    assert "random ones have no name: set MODEL_PRETRAINED" in refused(data, tmp_path / "run", model_pretrained="")
    path = finished / "final_lora.pt"
    assert "TUNE=lora cannot add to additions: take the merged" in refused(data, tmp_path, model_pretrained=path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora_targets": "qkv,proj"}, "LORA_TARGETS=qkv,proj is not allowed: 'proj' is none of qkv, out, mlp"),
        ({"lora_rank": 33}, "LORA_RANK=33 is larger than the matrix visual.transformer.resblocks.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data, tmp_path, changes, words):
    assert words in refused(data, tmp_path, **changes)


FORGED = {
    "no base": lambda saved: saved.pop("base"),
    "a rank that is none": lambda saved: saved.update(rank="2"),
    "another rank": lambda saved: saved.update(rank=4),
    "an alpha without bound": lambda saved: saved.update(alpha=float("inf")),
    "half a pair": lambda saved: saved["additions"].pop("transformer.resblocks.0.attn.in_proj_weight.Bk"),
    "no tensors": lambda saved: saved["additions"].update({"x.A": [1], "x.B": [2]}),
    "targets that are a number": lambda saved: saved.update(targets=3),
    "a base that is a list": lambda saved: saved.update(base=["ViT-B-32"]),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_file_whose_additions_are_not_sound_is_refused_in_one_line(finished, tmp_path, what):
    content = torch.load(finished / "final_lora.pt", weights_only=True)
    FORGED[what](content["lora"])
    torch.save(content, tmp_path / "forged.pt")
    with pytest.raises(ValueError, match="holds no LoRA additions that can be read: its field lora"):
        clip.load_model(tmp_path / "forged.pt")


def test_additions_to_a_matrix_that_the_base_has_not_are_refused(finished, tmp_path):
    content = torch.load(finished / "final_lora.pt", weights_only=True)
    content["lora"]["additions"] |= {
        "visual.nothing.weight.A": torch.zeros(2, 4),
        "visual.nothing.weight.B": torch.ones(4, 2),
    }
    torch.save(content, tmp_path / "forged.pt")
    with pytest.raises(ValueError, match="LoRA additions to visual.nothing.weight, 4 x 4, which its base has not"):
        clip.load_model(tmp_path / "forged.pt")


def test_additions_that_name_themselves_as_base_end(finished, tmp_path):
    content = torch.load(finished / "final_lora.pt", weights_only=True)
    content["lora"]["base"]["pretrained"] = str(tmp_path / "forged.pt")
    torch.save(content, tmp_path / "forged.pt")
    with pytest.raises(ValueError, match="has no weights but additions itself"):
        clip.load_model(tmp_path / "forged.pt")


def test_a_base_that_a_new_run_moves_aside_keeps_a_name_of_its_own(data, tmp_path):
    """CHECKPOINT_DIR holds the run before: its last checkpoint would come to be this one's."""
    run = train(data, tmp_path, tune="full", max_steps=1, **FREE)
    train(data, run, model_pretrained=run / "final_checkpoint.pt", max_steps=3, **FREE)
    base = str(run / "earlier_run_1" / "final_checkpoint.pt")
    for name in ("final_checkpoint.pt", "checkpoint_00000002.pt"):
        assert clip.read_checkpoint(run / name)["pretrained"] == base
    train(data, run, "--resume", "--force", model_pretrained=run / "final_checkpoint.pt", max_steps=4, **FREE)
    assert clip.read_checkpoint(run / "final_lora.pt")["lora"]["base"]["pretrained"] == base
