"""Architectures and preprocessing from files: harmless ones pass, and no field chooses code, a path or a download."""

import copy
import json
import math
import sys
import types

import open_clip
import pytest
import torch

import openClipManagement as clip
from clip_finetuning.model import agreement, sources
from clip_finetuning.model.architecture import check_architecture, check_name, check_preprocess, least_parameters
from tests.helpers import TINY, local_folder, write_config


def changed(path, value, config=TINY):
    """A copy of a config with the entry at `section.key` set."""
    config = copy.deepcopy(config)
    *sections, key = path.split(".")
    place = config
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    return config


@pytest.fixture(scope="module")
def weights():
    return open_clip.CLIP(**TINY).state_dict()


@pytest.fixture
def transformers(monkeypatch):
    """A stand-in for transformers that records what it is asked to load."""
    asked = []

    def from_pretrained(source, **options):
        asked.append((str(source), options))
        return types.SimpleNamespace()

    stand_in = types.SimpleNamespace(AutoTokenizer=types.SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    return asked


def checkpoint(folder, weights, config, name="tiny-test", **fields):
    path = folder / "theirs.pt"
    torch.save({"state_dict": weights, "model_name": name, "model_config": config, **fields}, path)
    return path


SOURCES = [
    ("text_cfg.hf_tokenizer_name", "evil/tokenizer"),
    ("text_cfg.hf_tokenizer_name", "/tmp/evil"),
    ("text_cfg.hf_model_name", "evil/tower"),
    ("text_cfg.hf_model_name", "."),
    ("multimodal_cfg.hf_model_name", "evil/tower"),
    ("vision_cfg.timm_model_name", "hf-hub:evil/tower"),
    ("vision_cfg.timm_model_name", "hf_hub:evil/tower"),
    ("vision_cfg.timm_model_name", "local-dir:/tmp/evil"),
    ("vision_cfg.timm_model_name", "no_such_architecture"),
    ("text_cfg.tokenizer_kwargs", {"trust_remote_code": True}),
    ("text_cfg.tokenizer_kwargs", {"bpe_path": "/dev/zero"}),
    ("text_cfg.tokenizer_kwargs", {"additional_special_tokens": ["(a+)+$"]}),
    ("text_cfg.tokenizer_kwargs", {"subfolder": "evil"}),
    ("text_cfg.tokenizer_kwargs", {"clean": "evil"}),
    ("text_cfg.tokenizer_kwargs", "evil"),
]
ODD = [
    ("pretrained_image_path", "evil.pt"),
    ("cast_dtype", "float16"),
    ("self", 1),
    ("text_cfg.no_such_field", 1),
    ("vision_cfg", ["layers"]),
    ("embed_dim", "16"),
    ("embed_dim", True),
    ("embed_dim", 10**9),
    ("embed_dim", -1),
    ("quick_gelu", "yes"),
    ("custom_text", 1),
    ("init_logit_scale", math.nan),
    ("vision_cfg.image_size", 10**6),
    ("vision_cfg.image_size", [32, 32, 32]),
    ("vision_cfg.image_size", torch.tensor(32)),
    ("vision_cfg.patch_size", 0),
    ("vision_cfg.layers", [1, 2]),
    ("vision_cfg.layers", 10**9),
    ("vision_cfg.width", 1e3),
    ("vision_cfg.timm_pool", "../avg"),
    ("vision_cfg.act_kwargs", {"inplace": True}),
    ("text_cfg.norm_kwargs", {"device": "cuda:7"}),
    ("text_cfg.context_length", 10**6),
    ("text_cfg.vocab_size", 10**10),
    ("text_cfg.layers", None),
    ("text_cfg.tokenizer_mode", "clips; rm"),
    ("multimodal_cfg.n_queries", 10**9),
]


@pytest.mark.parametrize(("path", "value"), SOURCES + ODD)
def test_a_field_that_is_not_for_a_file_to_say_is_refused_in_one_line(tmp_path, weights, transformers, path, value):
    file = checkpoint(tmp_path, weights, changed(path, value))
    with pytest.raises(ValueError, match=r"theirs\.pt") as refusal:
        clip.load_model(file)
    assert path.split(".")[-1] in str(refusal.value)
    assert str(refusal.value).isprintable() and not transformers


def test_a_grid_of_very_many_patches_is_refused():
    with pytest.raises(ValueError, match="2048 patches of 1 pixels"):
        check_architecture(changed("vision_cfg.patch_size", 1, changed("vision_cfg.image_size", 2048)), "theirs.pt")


@pytest.mark.parametrize("config", [None, [], "ViT-B-32", {"embed_dim": 16}])
def test_what_is_no_architecture_at_all_is_refused(config):
    with pytest.raises(ValueError, match="needs embed_dim"):
        check_architecture(config, "theirs.pt")


def test_every_architecture_of_open_clip_passes_and_is_not_counted_too_large():
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        assert check_architecture(config, name) == config
    for config in (
        TINY,
        changed("vision_cfg", {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}),
    ):
        parameters = sum(p.numel() for p in open_clip.CLIP(**config).parameters())
        assert 0.5 * parameters < least_parameters(config) <= parameters


def test_sizes_are_those_of_the_weights_in_the_file(tmp_path, weights):
    """No field is beyond its bound, but together they ask for terabytes, which no expanded tensor hides."""
    config = changed("text_cfg.width", 16_384, changed("text_cfg.layers", 128))
    for tower in ({"width": 16_384, "layers": 128}, {"width": 8192, "layers": [99, 99, 99, 99]}):
        assert least_parameters({**TINY, "vision_cfg": tower}) > 10**11
    expanded = {**weights, "huge": torch.zeros(1).expand(10**14)}
    with pytest.raises(ValueError, match="says that it holds a model of .* parameters, but has"):
        clip.load_model(checkpoint(tmp_path, expanded, config))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "a\\b", "", ".", "..", "a b", "x\x1b[2J", 7, ["a"], None])
def test_a_name_from_a_file_is_a_plain_name(name):
    with pytest.raises(ValueError, match=r"theirs\.pt: .* is no name") as refusal:
        check_name(name, "theirs.pt")
    assert str(refusal.value).isprintable()
    assert check_name("ViT-B-32_my.best", "") == "ViT-B-32_my.best"


def test_a_checkpoint_writes_no_file(tmp_path, weights, monkeypatch):
    target = tmp_path / "tasks.json"
    target.write_text("mine")
    with pytest.raises(ValueError, match="no name of a model"):
        clip.load_model(checkpoint(tmp_path, weights, TINY, name=str(target.with_suffix(""))))
    assert target.read_text() == "mine"
    monkeypatch.setattr("pathlib.Path.write_text", lambda *_, **__: pytest.fail("a file was written"))
    before = open_clip.list_models(), open_clip.get_model_config("ViT-B-32")
    assert clip.load_model(checkpoint(tmp_path, weights, TINY, name="ViT-B-32")).config == TINY
    assert (open_clip.list_models(), open_clip.get_model_config("ViT-B-32")) == before  # nor does it replace a model


@pytest.mark.parametrize("name", ["hf-hub:evil/x", "local-dir:/tmp/evil", "evil.json"])
@pytest.mark.parametrize("config", [None, TINY])
def test_a_checkpoint_chooses_no_download_and_no_file(tmp_path, weights, monkeypatch, name, config):
    fail = lambda *_, **__: pytest.fail("something was fetched")  # noqa: E731
    for place in (open_clip.factory, sources):
        monkeypatch.setattr(place, "download_pretrained_from_hf", fail)
    monkeypatch.setattr(agreement, "_read_config", fail)
    path = checkpoint(tmp_path, weights, config, name=name)
    if config:
        assert clip.load_model(path).name == name  # a name and no more: the checkpoint holds all that is needed
        return
    with pytest.raises(ValueError, match="set MODEL_NAME"):
        clip.load_model(path, default_name="ViT-B-32")


def test_what_the_user_named_is_the_users_own(tmp_path, weights, transformers):
    """A config JSON of the user's brings its own tokenizer, in a checkpoint too, but never code from a download."""
    config = write_config(tmp_path, text_cfg={**TINY["text_cfg"], "hf_tokenizer_name": "mine/tokenizer"})
    clip.create_model(config)
    path = checkpoint(tmp_path, weights, json.loads((tmp_path / "tiny-test.json").read_text()))
    clip.load_model(path, name=config)
    clip.load_model(path, default_name=config)
    assert [source for source, _ in transformers] == ["mine/tokenizer"] * 3
    assert all(options["trust_remote_code"] is False for _, options in transformers)
    with pytest.raises(ValueError, match="mine/tokenizer"):
        clip.load_model(path)
    tokenizer = {"hf_tokenizer_name": "mine/tokenizer", "tokenizer_kwargs": {"trust_remote_code": True}}
    with pytest.raises(ValueError, match="trust_remote_code"):
        clip.create_model(write_config(tmp_path, text_cfg={**TINY["text_cfg"], **tokenizer}))


def test_a_folders_config_is_checked_as_a_checkpoints(tmp_path, weights, transformers):
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    assert clip.create_model(local_folder(tmp_path, TINY)).config == TINY
    for path, value in [*SOURCES[2:], ("text_cfg.context_length", 10**6)]:
        with pytest.raises(ValueError, match=path.rpartition(".")[2]):
            clip.create_model(local_folder(tmp_path, changed(path, value)))
    with pytest.raises(ValueError, match="std"):
        clip.create_model(local_folder(tmp_path, TINY, {"std": [0, 0, 0]}))
    assert not transformers
    clip.create_model(local_folder(tmp_path, changed("text_cfg.hf_tokenizer_name", "evil/x")))
    assert [source for source, _ in transformers] == [str(tmp_path)]  # the user's folder, not what the file names


GOOD = {"size": [32, 32], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
GOOD |= {"resize_mode": "squash", "fill_color": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 10**9),
        ("size", [31_623, 31_623]),
        ("size", "32"),
        ("mode", "CMYK"),
        ("mean", 0.5),
        ("mean", [0.5, 0.5]),
        ("mean", [math.inf] * 3),
        ("mean", ["a", "b", "c"]),
        ("std", [0, 1, 1]),
        ("std", [True] * 3),
        ("interpolation", "evil"),
        ("resize_mode", None),
        ("resize_mode", torch.ones(2)),
        ("fill_color", 256),
        ("fill_color", [0]),
        ("mode, resize_mode, size, std, not", 1),
    ],
)
def test_odd_preprocessing_is_refused(tmp_path, weights, key, value):
    assert check_preprocess({**GOOD, "size": 32}, "theirs.pt", [32, 32]) == GOOD
    with pytest.raises(ValueError, match=r"theirs\.pt.*" + key):
        check_preprocess({**GOOD, key: value}, "theirs.pt", [32, 32])


@pytest.mark.parametrize("preprocess", [[1, 2], "squash", {"size": 32}])
def test_a_checkpoint_with_another_kind_of_preprocessing_is_refused(tmp_path, weights, preprocess):
    with pytest.raises(ValueError, match=r"theirs\.pt"):
        clip.load_model(checkpoint(tmp_path, weights, TINY, preprocess=preprocess))
