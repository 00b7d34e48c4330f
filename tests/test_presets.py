"""Every preset of the pages runs: the same command, tokenizer class and loss, with weights and sizes of a test."""

import json
import re
import shlex
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save

import clipFineTuner
import openClipManagement as clip
from tests.helpers import TINY, tiny_siglip_tower
from tests.hub_server import Hub, point_to
from tests.test_readme import PAGES

ROWS = re.findall(r"^\| ([^|]+) \| (the defaults|`--[^`|]+`) \|", PAGES["docs/training.md"], re.MULTILINE)
PRESETS = {row: "" if flags == "the defaults" else flags.strip("`") for row, flags in ROWS}
# Those that name a model elsewhere, in a line of a shell.
PRESETS |= {
    line: line.partition("clipFineTuner.py")[2].partition("#")[0]
    for page in PAGES.values()
    for line in re.findall(r"^python clipFineTuner\.py .*--model-name .*$", page, re.MULTILINE)
}
SMALLER = [
    "--batch-size",
    "4",
    "--micro-batch-size",
    "2",
    "--max-steps",
    "1",
    "--eval-interval",
    "1",
    "--num-workers",
    "0",
    "--device",
    "cpu",
]


def gemma_files(folder):
    """The files of a tokenizer of SigLIP2's class, with a vocabulary of a few words."""
    from tokenizers import Tokenizer, models, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    letters = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["▁caption▁of▁product▁0123456789"], letters)
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "right"}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shrunk(config, siglip):
    """An architecture of the same kind, tokenizer and parts, with the sizes of a test."""
    vision, text = siglip if config["vision_cfg"].get("timm_model_name") else (TINY["vision_cfg"], TINY["text_cfg"])
    kept = {
        key: config["text_cfg"][key] for key in ("hf_tokenizer_name", "tokenizer_kwargs") if key in config["text_cfg"]
    }
    return {**config, "embed_dim": 32, "vision_cfg": vision, "text_cfg": {**text, **kept}}


def test_the_pages_have_presets():
    assert len(PRESETS) >= 5 and any("SigLIP2" in flags for flags in PRESETS.values())


@pytest.mark.parametrize("flags", PRESETS.values(), ids=PRESETS)
def test_a_preset_runs(flags, tmp_path, monkeypatch, make_shards, capsys):
    given = shlex.split(flags)
    args = clipFineTuner.parse_arguments(given)
    name, tag = args.model_name, args.model_pretrained
    shards = make_shards(tmp_path / "train", products=8, views=1, shards=1)
    with tiny_siglip_tower() as siglip:
        config = shrunk(open_clip.get_model_config(name), siglip)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        weights = {n: v.contiguous() for n, v in open_clip.create_model(name).state_dict().items()}
        repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")[0]
        files = {"open_clip_model.safetensors": save(weights)}
        hubs = {repository: files}
        if tokenizer := config["text_cfg"].get("hf_tokenizer_name"):
            (tmp_path / "tokenizer").mkdir()
            hubs[tokenizer] = {**hubs.get(tokenizer, {}), **gemma_files(tmp_path / "tokenizer")}
        (tmp_path / "cache").mkdir()
        where = ["--train-dataset-pattern", shards, "--valid-dataset-pattern", shards]
        where += ["--checkpoint-dir", str(tmp_path / "run"), "--model-cache-dir", str(tmp_path / "cache")]
        with Hub(hubs) as hub:
            point_to(monkeypatch, hub.address)
            clipFineTuner.main([*given, *SMALLER, *where])
        told = capsys.readouterr().out
        assert f"{name}, from {tag}" in told
        saved = clip.read_checkpoint(tmp_path / "run" / "final_checkpoint.pt")
        assert saved["step"] == 1 and saved["settings"]["LOSS"] == args.loss
        assert not torch.equal(saved["state_dict"]["logit_scale"], weights["logit_scale"])
        monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: pytest.fail("downloaded again"))
        loaded = clip.load_model(tmp_path / "run" / "final_checkpoint.pt", cache_dir=str(tmp_path / "cache"))
        if tokenizer:
            assert type(loaded.tokenizer.tokenizer).__name__.startswith("GemmaTokenizer")
            tokens = loaded.tokenizer(["of"])[0].tolist()
            assert tokens[0] > 3 and 1 in tokens and tokens[-1] == 0  # no beginning, an end, and padding


def test_a_missing_transformers_is_named_as_what_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(
        ValueError, match="transformers, which has its tokenizer timm/ViT-B-16-SigLIP2-256, is not installed"
    ):
        clip.create_model("ViT-B-16-SigLIP2-256", "webli")
