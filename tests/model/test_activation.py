"""Weights by path whose activation nobody says: one line tells which was taken, and how to choose."""

import json
import re

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import openClipManagement as clip
from clip_finetuning.model.image_recipe import tag_in
from tests.helpers import TINY, write_config
from tests.model.test_starts import hf_clip, two_layers


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(4)
    return {name: value.contiguous() for name, value in open_clip.CLIP(**TINY).state_dict().items()}


@pytest.fixture
def shrunk(monkeypatch):
    """ViT-B-32 and its twin with QuickGELU, small; the names and tags stay."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", TINY)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", {**TINY, "quick_gelu": True})


@pytest.mark.parametrize(
    ("name", "quick", "words"),
    [
        ("ViT-B-32", False, r"GELU \(MODEL_NAME=ViT-B-32-quickgelu for QuickGELU\) assumed"),
        ("ViT-B-32-quickgelu", True, r"QuickGELU \(MODEL_NAME=ViT-B-32 for GELU\) assumed"),
    ],
)
def test_what_was_assumed_is_said_with_the_way_to_choose(tmp_path, weights, shrunk, capsys, name, quick, words):
    save_file(weights, tmp_path / "w.safetensors")
    model = clip.create_model(name, str(tmp_path / "w.safetensors"))
    assert bool(model.config.get("quick_gelu")) == quick
    capsys.readouterr()
    clip.load_model(tmp_path / "w.safetensors", default_name=name)
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert re.search(words, told)


@pytest.mark.parametrize("quick", [False, True])
def test_an_architecture_without_a_name_is_chosen_by_its_file(tmp_path, weights, capsys, quick):
    save_file(weights, tmp_path / "w.safetensors")
    config = write_config(tmp_path, **({"quick_gelu": True} if quick else {}))
    clip.create_model(config, str(tmp_path / "w.safetensors"))
    how = 'without "quick_gelu" for GELU' if quick else 'with "quick_gelu": true for QuickGELU'
    assert f"(a config JSON {how}) assumed" in capsys.readouterr().out


@pytest.mark.parametrize("quick", [False, True])
def test_open_clips_config_beside_the_weights_tells(tmp_path, weights, shrunk, capsys, quick):
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    content = {"model_cfg": {**TINY, "quick_gelu": quick}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        model = clip.create_model("ViT-B-32", str(path))
        assert (bool(model.config.get("quick_gelu")), model.preprocess["mean"]) == (quick, [0.5] * 3)
        told = capsys.readouterr().out
        assert "taken from" in told and "open_clip_config.json" in told and "assumed" not in told
        assert model.name == ("ViT-B-32-quickgelu" if quick else "ViT-B-32")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_transformers_config_beside_the_weights_tells(tmp_path, activation, capsys):
    hf_clip(activation).save_pretrained(tmp_path / "hf")
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps({**pictures, "do_center_crop": False}))
    config = write_config(tmp_path, **two_layers())
    model = clip.create_model(config, str(tmp_path / "hf"))
    assert bool(model.config.get("quick_gelu")) == (activation == "quick_gelu")
    assert (model.preprocess["std"], model.preprocess["interpolation"]) == ([0.2] * 3, "bilinear")
    assert model.preprocess["resize_mode"] == "squash"
    assert "config.json" in capsys.readouterr().out
    without = clip.load_model(tmp_path / "hf")  # nobody named an architecture: the folder tells it
    assert without.name == "hf" and without.model.state_dict().keys() == model.model.state_dict().keys()


def test_the_pictures_of_transformers_5_are_told_by_its_processor(tmp_path, capsys):
    folder = tmp_path / "hf"
    hf_clip().save_pretrained(folder)
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "resample": 2, "size": {"height": 32, "width": 32}}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": pictures | {"do_center_crop": False}}))
    for name, path in ((write_config(tmp_path, **two_layers()), str(folder)), (f"local-dir:{folder}", "")):
        recipe = clip.create_model(name, path).preprocess
        assert (recipe["mean"], recipe["std"], recipe["interpolation"]) == ([0.5] * 3, [0.2] * 3, "bilinear")
        assert recipe["resize_mode"] == "squash"
    assert "assumed" not in capsys.readouterr().out
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    clip.create_model(f"local-dir:{folder}")
    assert "does not say how pictures are prepared, so OpenCLIP's usual way is assumed" in capsys.readouterr().out


def test_two_activations_are_not_taken_for_one(tmp_path, capsys):
    folder = tmp_path / "hf"
    hf_clip().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "quick_gelu"
    (folder / "config.json").write_text(json.dumps(config))
    clip.create_model(write_config(tmp_path, **two_layers()), str(folder))
    assert "not understood (its towers have two activations" in capsys.readouterr().out
    with pytest.raises(ValueError, match="open_clip has no such architecture"):
        clip.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize("content", ["[1]", '{"model_type": "clip", "vision_config": {"num_attention_heads": 0}}'])
def test_a_folder_whose_config_is_none_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="its config.json is not understood"):
        clip.create_model(f"local-dir:{tmp_path}")


def test_another_architecture_beside_the_weights_is_refused_by_name(tmp_path):
    hf_clip().save_pretrained(tmp_path / "hf")
    with pytest.raises(
        ValueError, match=r"holds hf, as .*config.json says, but MODEL_NAME is tiny-test; set MODEL_NAME=local-dir:"
    ):
        clip.create_model(write_config(tmp_path), str(tmp_path / "hf"))


def test_a_config_that_is_not_understood_says_so(tmp_path, weights, capsys):
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text("[1]")
    clip.create_model(write_config(tmp_path), str(tmp_path))
    assert "open_clip_config.json lies beside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "name", "tag"),
    [
        ("vit_b_32-laion2b_e16-af8d.pt", "ViT-B-32", "laion2b_e16"),
        ("b32_400m.pt", "ViT-B-32", "metaclip_400m"),
        ("l14_fullcc2.5b.pt", "ViT-L-14", "metaclip_fullcc"),
        ("DFN2B-CLIP-ViT-B-16/open_clip_pytorch_model.bin", "ViT-B-16", "dfn2b"),
        ("models--apple--DFN5B-CLIP-ViT-H-14/snapshots/1/open_clip_pytorch_model.bin", "ViT-H-14", "dfn5b"),
        ("models--apple--DFN5B-CLIP-ViT-H-14-378/snapshots/1/x.bin", "ViT-H-14", None),
        ("vit_base_patch32_clip_224.openai/open_clip_model.safetensors", "ViT-B-32", "openai"),
        ("finetuned.pt", "ViT-B-32", None),
    ],
)
def test_known_weights_are_known_by_their_names(tmp_path, path, name, tag):
    assert tag_in(tmp_path / path, name) == tag


def test_the_activation_of_a_known_repository_is_taken(tmp_path, weights, shrunk, capsys):
    folder = tmp_path / "vit_base_patch32_clip_224.metaclip_2pt5b"
    folder.mkdir()
    save_file(weights, folder / "open_clip_model.safetensors")
    assert clip.create_model("ViT-B-32", str(folder)).config["quick_gelu"] is True
    assert "tag 'metaclip_fullcc'" in capsys.readouterr().out
