"""`local-dir:` and `hf-hub:` names: their weights are named, and a checkpoint needs nothing of them any more."""

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import save, save_file

import clipFineTuner
import evaluate_clip
import export_clip
import openClipManagement as clip
from clip_finetuning.model import building
from tests.export.test_other_architectures import tokenizer_folder
from tests.helpers import TINY, local_folder
from tests.hub_server import Hub, point_to

CAPTIONS = ["caption of product 1", "women's café"]
OWN_TOKENIZER = {"hf_tokenizer_name": "anybody/tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"}}


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(4)
    return {name: value.contiguous() for name, value in open_clip.CLIP(**TINY).state_dict().items()}


def folder_of(path, weights, own_tokenizer=False):
    text = {**TINY["text_cfg"], **(OWN_TOKENIZER if own_tokenizer else {})}
    name = local_folder(path, {**TINY, "text_cfg": text}, {"mean": [0.5] * 3, "std": [0.5] * 3})
    save_file(weights, path / "open_clip_model.safetensors")
    if own_tokenizer:
        tokenizer_folder(path)
    return name


def same(one, other):
    assert torch.equal(one.tokenizer(CAPTIONS), other.tokenizer(CAPTIONS))
    assert one.preprocess == other.preprocess and one.config == other.config
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("own_tokenizer", [False, True])
def test_a_checkpoint_outlives_the_folder(tmp_path, weights, own_tokenizer):
    name = folder_of(tmp_path / "mine", weights, own_tokenizer)
    original = clip.create_model(name)
    assert original.pretrained == str(tmp_path / "mine" / "open_clip_model.safetensors")
    assert original.preprocess["mean"] == [0.5] * 3
    assert torch.equal(original.model.visual.proj, weights["visual.proj"])
    if own_tokenizer:  # padded with 0, as transformers' are, and by its own words
        assert not torch.equal(original.tokenizer(CAPTIONS), open_clip.get_tokenizer("ViT-B-32", 16)(CAPTIONS))
    clip.save_checkpoint(tmp_path / "a.pt", original)
    shutil.rmtree(tmp_path / "mine")
    for named in (None, name):
        again = clip.load_model(tmp_path / "a.pt", name=named, default_name="ViT-B-32")
        same(original, again)
    clip.save_checkpoint(tmp_path / "b.pt", again)  # as a resumed run does
    same(original, clip.load_model(tmp_path / "b.pt"))


def test_a_run_is_resumed_evaluated_and_exported_without_the_folder(tmp_path, make_shards, weights, capsys):
    name = folder_of(tmp_path / "mine", weights, own_tokenizer=True)
    shards, run = make_shards(tmp_path / "train", products=6, views=1, shards=1), tmp_path / "run"
    given = ["--train-dataset-path", shards, "--checkpoint-dir", str(run), "--device", "cpu", "--num-workers", "0"]
    given = [g if g != "--train-dataset-path" else "--train-dataset-pattern" for g in given]
    given += ["--batch-size", "6", "--model-name", name, "--model-pretrained", "", "--valid-dataset-pattern", shards]
    clipFineTuner.main([*given, "--max-steps", "1"])
    assert f"{name}, from {tmp_path / 'mine' / 'open_clip_model.safetensors'}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "mine")
    clipFineTuner.main([*given, "--max-steps", "2", "--resume", "auto"])
    final = run / "final_checkpoint.pt"
    assert clip.read_checkpoint(final)["step"] == 2
    out = str(tmp_path / "r.json")
    evaluate_clip.main(["--dataset-path", shards, "--checkpoint", str(final), "--output", out, "--num-workers", "0"])
    assert json.loads((tmp_path / "r.json").read_text())["model"]["name"] == name
    export_clip.main(
        ["--checkpoint", str(final), "--output", str(tmp_path / "x"), "--form", "open_clip", "--pictures", shards]
    )
    same(clip.load_model(final), clip.create_model(f"local-dir:{tmp_path / 'x'}"))


def test_results_name_the_weights_of_a_folder(tmp_path, make_shards, weights):
    name = folder_of(tmp_path / "mine", weights)
    shards = make_shards(tmp_path / "valid", products=4, views=1, shards=1)
    given = ["--model-name", name, "--model-pretrained", "", "--output", str(tmp_path / "r.json"), "--num-workers", "0"]
    evaluate_clip.main(["--dataset-path", shards, *given])
    about = json.loads((tmp_path / "r.json").read_text())["model"]
    assert about["weights"] == str(tmp_path / "mine" / "open_clip_model.safetensors")


def test_a_folder_without_weights_is_said_to_be_random(tmp_path, capsys):
    assert clip.create_model(local_folder(tmp_path / "mine", TINY)).pretrained == ""
    assert "random weights, because the folder has none (seed 0)" in capsys.readouterr().out


def test_a_folder_of_transformers_is_a_name_too(tmp_path):
    from tests.model.test_starts import features, hf_clip

    hf_clip("quick_gelu").save_pretrained(tmp_path / "hf")
    model = clip.create_model(f"local-dir:{tmp_path / 'hf'}")
    assert model.config["quick_gelu"] is True and model.pretrained.endswith("model.safetensors")
    pixels, tokens = torch.rand(2, 3, 32, 32), torch.tensor([[49406, 320, 49407] + [0] * 13] * 2)
    with torch.no_grad():
        found = model.model.eval().encode_image(pixels), model.model.encode_text(tokens)
    for ours, theirs in zip(found, features(hf_clip("quick_gelu"), (pixels, tokens))):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.fixture
def hub(monkeypatch, weights):
    config = {"model_cfg": TINY, "preprocess_cfg": {}}
    files = {"open_clip_config.json": json.dumps(config).encode(), "open_clip_model.safetensors": save(weights)}
    with Hub(
        {"somebody/model": files, "somebody/empty": {"open_clip_config.json": files["open_clip_config.json"]}}
    ) as hub:
        point_to(monkeypatch, hub.address)
        yield hub


def test_a_repository_names_its_weights_and_is_not_needed_again(tmp_path, hub, weights, monkeypatch):
    name, cache = "hf-hub:somebody/model", str(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    original = clip.create_model(name, "", cache)
    assert original.pretrained == name and torch.equal(original.model.visual.proj, weights["visual.proj"])
    clip.save_checkpoint(tmp_path / "a.pt", original)
    point_to(monkeypatch, "http://127.0.0.1:9")
    again = clip.load_model(tmp_path / "a.pt")
    same(original, again)
    checkpoint = clip.read_checkpoint(tmp_path / "a.pt")
    same(building.create_start(again, checkpoint, cache), original)  # what it began with is in the cache
    with pytest.raises(ValueError, match="began with hf-hub:somebody/model, which would be fetched"):
        building.create_start(again, checkpoint, str(tmp_path))


def test_a_repository_without_weights_is_not_a_random_model(tmp_path, hub):
    with pytest.raises(ValueError, match="hf-hub:somebody/empty: its weights could not be had"):
        clip.create_model("hf-hub:somebody/empty", "", str(tmp_path))


def test_a_tag_beside_such_a_name_is_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="brings its own weights; leave MODEL_PRETRAINED empty"):
        clip.create_model(folder_of(tmp_path / "mine", weights), "laion2b_s34b_b79k")


@pytest.mark.parametrize("files", [{"../x.json": torch.zeros(1, dtype=torch.uint8)}, {"x.py": torch.zeros(1)}, [1]])
def test_hostile_tokenizer_files_are_refused(tmp_path, weights, files):
    original = clip.create_model(folder_of(tmp_path / "mine", weights))
    clip.save_checkpoint(tmp_path / "a.pt", original, tokenizer_files=files)
    with pytest.raises(ValueError, match="tokenizer_files"):
        clip.load_model(tmp_path / "a.pt")
