"""Models that are no plain CLIP: SigLIP with timm's tower and a tokenizer of its own, ResNets, CoCa."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
from open_clip.tokenizer import HFTokenizer
from timm.models.vision_transformer import VisionTransformer

import export_clip
import openClipManagement as clip
from clip_finetuning.export import onnx_form, open_clip_form, sentence_transformers_form, transformers_form
from clip_finetuning.export.check import CheckFailed, Original
from clip_finetuning.export.form import Options
from clip_finetuning.loading.sample import parse_sample
from tests.helpers import TINY, catalogue_sample, write_config

TOWER = "export_test_siglip"
LENGTH = 12


def build(pretrained=False, **options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    return VisionTransformer(
        **sizes, class_token=False, global_pool="map", **{k: v for k, v in options.items() if k == "num_classes"}
    )


@pytest.fixture(scope="module", autouse=True)
def tower():
    """A SigLIP tower small enough for a test, under a name that timm knows."""
    build.__name__, build.__module__ = TOWER, "timm.models.vision_transformer"
    registry = timm.models._registry
    registry._model_entrypoints[TOWER] = build
    yield
    del registry._model_entrypoints[TOWER]


def tokenizer_folder(folder):
    """A tokenizer as SigLIP has one: pieces of words, an end, padding that is not 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(
        ["Caption of product 0123456789 new co. café 50% off", "women's quotes naïve"], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.save_pretrained(folder)
    return str(folder)


def siglip(folder, **changes):
    text = {
        "context_length": LENGTH, "vocab_size": 220, "hf_tokenizer_name": tokenizer_folder(folder / "tokenizer"), "width": 32,
        "heads": 2, "layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # fmt: skip
    vision = {"image_size": 32, "timm_model_name": TOWER, "timm_pool": "map", "timm_proj": "none"}
    return write_config(
        folder,
        "tiny-siglip",
        embed_dim=32,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=vision,
        text_cfg=text | changes,
    )


@pytest.fixture(scope="module")
def samples():
    return [parse_sample(raw_sample(number)) for number in range(2)]


def raw_sample(number):
    files = catalogue_sample(number, number)
    return {"__key__": str(number), **{name.partition(".")[2]: data for name, data in files.items()}}


def export(clip_model, form, folder, samples):
    """The script's own steps -> the folder and what its check found."""
    clip_model.model.eval()
    form.refuse(clip_model)
    args = argparse.Namespace(form=form.__name__.rpartition(".")[2].removesuffix("_form"), dtype="fp32")
    folder.mkdir()
    facts = export_clip.write(form, clip_model, folder, Options(), args)
    return facts, export_clip.check(form, Original(clip_model, samples), folder, Options(), args)[0]


def model_of(folder, **changes):
    return clip.create_model(write_config(folder, **changes))


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_siglip_becomes_a_siglip_model_that_pads_as_it_was_trained(mode, tmp_path, samples):
    import torch
    from transformers import AutoModel, AutoProcessor, SiglipModel

    original = clip.create_model(siglip(tmp_path))
    original.preprocess["resize_mode"] = mode
    facts, _ = export(original, transformers_form, tmp_path / "out", samples)
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(model) is SiglipModel and model.logit_bias.item() == -10
    inputs = processor(text=["A  Caption: of PRODUCT_1!"], padding="max_length", truncation=True, return_tensors="pt")
    assert set(inputs) == {"input_ids"} and inputs["input_ids"].shape == (1, LENGTH)
    assert ("takes pictures of exactly this size alone" in " ".join(facts.notes)) == (mode == "shortest")
    assert torch.equal(inputs["input_ids"], original.tokenizer(["A  Caption: of PRODUCT_1!"]))


def roberta(folder):
    """A text tower of transformers and its tokenizer, in a folder of the user's."""
    from transformers import AutoConfig

    path = tokenizer_folder(folder / "roberta")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    numbers = {"vocab_size": 220, "max_position_embeddings": 40, "pad_token_id": 0, "eos_token_id": 1}
    AutoConfig.for_model("roberta", **sizes, **numbers).save_pretrained(path)
    names = {"hf_model_name": path, "hf_tokenizer_name": path, "hf_model_pretrained": False}
    return {**names, "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler", "context_length": LENGTH}


def wordpieces(folder, **text):
    """CLIP's own towers with another tokenizer."""
    return {
        "text_cfg": {
            **TINY["text_cfg"],
            "vocab_size": 220,
            "hf_tokenizer_name": tokenizer_folder(folder / "tokenizer"),
            **text,
        }
    }


VISION, TEXT = TINY["vision_cfg"], TINY["text_cfg"]
COCA = {
    "custom_text": True,
    "vision_cfg": {
        **VISION,
        "image_size": [32, 48],
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2, "mlp_ratio": 4},
}
TANH, EPS = {"act_kwargs": {"approximate": "tanh"}}, {"norm_kwargs": {"eps": 1e-3}}
TAKEN = {
    "QuickGELU in a custom text tower": lambda _: {"quick_gelu": True, "custom_text": True},
    "tanh, eps, a logit bias": lambda _: {"vision_cfg": VISION | TANH, "text_cfg": TEXT | EPS, "init_logit_bias": -10},
    "another tokenizer, read at its end": lambda folder: wordpieces(folder, pool_type="eos", eos_id=1),
    "another tokenizer, read at the largest number": wordpieces,
}


@pytest.mark.parametrize("what", TAKEN)
def test_what_clip_model_takes(what, tmp_path, samples):
    model = model_of(tmp_path, **TAKEN[what](tmp_path))
    try:
        _, report = export(model, transformers_form, tmp_path / "out", samples)
    except CheckFailed as error:
        if "another tokenizer" in what and "backend_tokenizer" in str(error):
            pytest.skip(
                "this version of transformers loads a CLIPModel with CLIP's own tokenizer alone, and the check says so"
            )
        raise
    assert max(report.pictures, report.captions) < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quick = what.startswith("QuickGELU")
    assert (config["text_config"]["hidden_act"] == "quick_gelu") == quick
    assert np.isclose(config["logit_scale_init_value"], np.log(1 / 0.07))


LACKING = {
    "a ResNet": (lambda _: {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}, "ModifiedResNet"),
    "a tower of timm's": (lambda _: {"vision_cfg": {"timm_model_name": "resnet18", "image_size": 32}}, "timm ResNet"),
    "CoCa": (lambda _: COCA, "attention pooling"),
    "a text tower of transformers": (lambda folder: {"text_cfg": roberta(folder)}, "its text tower is a roberta of transformers"),
    "a mean over patches": (lambda _: {"vision_cfg": VISION | {"pool_type": "avg"}}, "pooled by 'avg'"),
    "layer scale": (lambda _: {"vision_cfg": VISION | {"ls_init_value": 0.1}}, "ls_1.gamma"),
    "no norm before the blocks": (lambda _: {"vision_cfg": VISION | {"no_ln_pre": True}}, "no ln_pre"),
    "no causal mask": (lambda _: {"text_cfg": TEXT | {"no_causal_mask": True}}, "causal mask"),
    "texts read at the last place": (lambda _: {"custom_text": True, "text_cfg": TEXT | {"pool_type": "last"}}, "pooled by 'last'"),
    "a class token of texts": (lambda _: {"custom_text": True, "text_cfg": TEXT | {"embed_cls": True}}, "class token"),
    "a bias behind texts": (lambda _: {"custom_text": True, "text_cfg": TEXT | {"proj_bias": True}}, "has a bias"),
    "an end of number 2": (lambda folder: wordpieces(folder, pool_type="eos", eos_id=2), "texts end with number 2"),
    "oblong pictures": (lambda _: {"vision_cfg": VISION | {"image_size": [32, 48]}}, "no squares"),
}  # fmt: skip


@pytest.mark.parametrize("what", LACKING)
def test_what_clip_model_lacks_is_said(what, tmp_path):
    changes, reason = LACKING[what]
    model = model_of(tmp_path, **changes(tmp_path))
    for form in (transformers_form, sentence_transformers_form):
        with pytest.raises(
            ValueError, match="^transformers' CLIPModel has no such architecture as tiny-test: "
        ) as caught:
            form.refuse(model)
        assert reason in str(caught.value) and "--form open_clip takes it" in str(caught.value)


def test_sentence_transformers_has_no_siglip(tmp_path):
    with pytest.raises(
        ValueError, match="CLIPModel has no such architecture as tiny-siglip: its text tower is SigLIP's"
    ):
        sentence_transformers_form.refuse(clip.create_model(siglip(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"no_causal_mask": False}, "causal mask"), ({"proj_bias": False}, "projection has no bias")],
)
def test_what_siglip_model_lacks_is_said(changes, reason, tmp_path):
    with pytest.raises(ValueError, match=f"SiglipModel has no such architecture as tiny-siglip: .*{reason}"):
        transformers_form.refuse(clip.create_model(siglip(tmp_path, **changes)))


OTHERS = {
    "ResNet": lambda folder: write_config(folder, **LACKING["a ResNet"][0](folder)),
    "CoCa, oblong pictures": lambda folder: write_config(folder, **COCA),
    "a text tower of transformers": lambda folder: write_config(folder, text_cfg=roberta(folder)),
    "SigLIP": siglip,
}


@pytest.mark.parametrize("form", [open_clip_form, onnx_form])
@pytest.mark.parametrize("what", OTHERS)
def test_the_other_forms_take_what_transformers_lacks(what, form, tmp_path, samples):
    facts, report = export(clip.create_model(OTHERS[what](tmp_path)), form, tmp_path / "out", samples)
    assert max(report.pictures, report.captions) < 1e-5
    needs_folder = form is open_clip_form and "transformers" in what
    assert ("text tower's architecture from this machine's folder" in " ".join(facts.notes)) == needs_folder


# -------------------------------------------------------------------------------------------- open_clip's own way


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without network: what open_clip pushes lies in the folder that is returned, and its loader finds it there."""
    from open_clip import push_to_hf_hub as push

    module, stored = sys.modules[push.__module__], tmp_path / "stored"
    own = argparse.Namespace(save_pretrained=lambda folder: (Path(folder) / "tokenizer.json").write_text("{}"))
    for name, stand_in in {
        "create_repo": lambda *_, **__: "https://huggingface.co/me/shop",
        "repo_type_and_id_from_hf_id": lambda _: ("model", "me", "shop"),
        "list_repo_files": lambda *_: [],
        "hf_hub_url": lambda **_: "",
        "get_hf_file_metadata": lambda *_: None,
        "EntryNotFoundError": OSError,
        "upload_folder": lambda folder_path, **_: shutil.copytree(folder_path, stored),
        "HFTokenizer": type("HFTokenizer", (HFTokenizer,), {"__new__": lambda *_: own}),  # of CLIP's, from the hub
    }.items():
        monkeypatch.setattr(module, name, stand_in, raising=False)  # not every huggingface_hub has all
    found = {"": "open_clip_model.safetensors", "open_clip_config.json": "open_clip_config.json"}
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained_from_hf", lambda _, filename="", **__: str(stored / found[filename])
    )
    return stored


@pytest.mark.parametrize("what", ["CLIP", "SigLIP"])
def test_the_open_clip_form_is_what_open_clip_pushes(what, hub, tmp_path, samples):
    import safetensors.torch
    import torch

    original = clip.create_model(siglip(tmp_path) if what == "SigLIP" else write_config(tmp_path, quick_gelu=True))
    out = tmp_path / "out"
    facts, _ = export(original, open_clip_form, out, samples)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    mine = json.loads((out / "open_clip_config.json").read_text())
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    open_clip.push_to_hf_hub(loaded, tokenizer, mine["model_cfg"], "me/shop", safe_serialization=True)
    theirs = json.loads((hub / "open_clip_config.json").read_text())
    assert (
        theirs["model_cfg"] == mine["model_cfg"] and theirs["preprocess_cfg"].items() <= mine["preprocess_cfg"].items()
    )
    tokenizers = (
        {"tokenizer.json"} if what == "CLIP" else set()
    )  # transformers' own for it, which open_clip does not read
    names = {path.name for path in hub.iterdir()} - tokenizers
    assert (
        names <= {path.name for path in out.iterdir()}
        and {"open_clip_config.json", "open_clip_model.safetensors"} <= names
    )
    pushed, kept = (safetensors.torch.load_file(folder / "open_clip_model.safetensors") for folder in (hub, out))
    assert pushed.keys() == kept.keys() and all(torch.equal(pushed[name], kept[name]) for name in kept)
    # and by open_clip's loader from a hub
    again, _, transforms = open_clip.create_model_and_transforms("hf-hub:me/shop")
    assert all(torch.equal(again.state_dict()[name], kept[name]) for name in kept)
    assert str(transforms) == str(preprocess)
    if what == "CLIP":
        assert torch.equal(open_clip.get_tokenizer("hf-hub:me/shop")(["a boot"]), tokenizer(["a boot"]))
    else:
        assert mine["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "tokenizer"
        assert "set `hf_tokenizer_name`" in " ".join(facts.notes)


def test_a_tokenizer_of_the_hub_keeps_its_name(tmp_path):
    """By a `hf-hub:` name open_clip takes the tokenizer of the repository that the config names."""
    model = clip.create_model(siglip(tmp_path))
    model.config["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    (tmp_path / "out").mkdir()
    facts = open_clip_form.write(model, tmp_path / "out", Options())
    content = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "timm/ViT-B-16-SigLIP" and not facts.notes
