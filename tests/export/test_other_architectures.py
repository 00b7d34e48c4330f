"""Models that are no plain CLIP: SigLIP with timm's tower and a tokenizer of its own, ResNets, CoCa."""

import re

import numpy as np
import pytest
import timm
from timm.models.vision_transformer import VisionTransformer

import export_clip
import openClipManagement as clip
from tests.helpers import TINY, write_config

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


def export(config, folder, make_shards, form, *arguments):
    pattern = make_shards(folder / "shards" / "valid", products=2, views=1, shards=1)
    command = [
        "--model-name",
        config,
        "--model-pretrained",
        "",
        "--pictures",
        pattern,
        "--max-samples",
        "2",
        "--form",
        form,
    ]
    export_clip.main([*command, "--output", str(folder / "out"), *arguments])
    return folder / "out"


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_siglip_becomes_a_siglip_model_that_pads_as_it_was_trained(mode, tmp_path, make_shards, capsys):
    import torch
    from transformers import AutoModel, AutoProcessor, SiglipModel

    config = siglip(tmp_path)
    out = export(config, tmp_path, make_shards, "transformers", "--image-resize-mode", mode)
    model, processor = AutoModel.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert type(model) is SiglipModel and model.logit_bias.item() == -10
    inputs = processor(text=["A  Caption: of PRODUCT_1!"], padding="max_length", truncation=True, return_tensors="pt")
    assert set(inputs) == {"input_ids"} and inputs["input_ids"].shape == (1, LENGTH)
    assert ("takes pictures of exactly this size alone" in capsys.readouterr().out) == (mode == "shortest")
    original = clip.create_model(config)
    assert torch.equal(inputs["input_ids"], original.tokenizer(["A  Caption: of PRODUCT_1!"]))


@pytest.mark.parametrize("form", ["open_clip", "onnx"])
def test_siglip_in_the_other_forms(form, tmp_path, make_shards, capsys):
    export(siglip(tmp_path), tmp_path, make_shards, form)
    assert "of equal texts" in capsys.readouterr().out


def test_sentence_transformers_has_no_siglip(tmp_path, make_shards):
    with pytest.raises(
        ValueError, match="CLIPModel has no such architecture as tiny-siglip: its text tower is SigLIP's"
    ):
        export(siglip(tmp_path), tmp_path, make_shards, "sentence-transformers")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"no_causal_mask": False}, "causal mask"), ({"proj_bias": False}, "projection has no bias")],
)
def test_what_siglip_model_lacks_is_said(changes, reason, tmp_path, make_shards):
    with pytest.raises(ValueError, match=f"SiglipModel has no such architecture as tiny-siglip: .*{reason}"):
        export(siglip(tmp_path, **changes), tmp_path, make_shards, "transformers")


OTHERS = {
    "ResNet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
    "oblong pictures": {"vision_cfg": {**TINY["vision_cfg"], "image_size": [32, 48]}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_onnx_takes_what_transformers_lacks(what, tmp_path, make_shards, capsys):
    export(write_config(tmp_path, **OTHERS[what]), tmp_path, make_shards, "onnx")
    differences = re.search(
        r"embeddings: ([\d.e-]+) of equal pixels, ([\d.e-]+) of equal texts", capsys.readouterr().out
    )
    assert max(map(float, differences.groups())) < 1e-4


def test_quick_gelu_stays_quick_in_transformers(tmp_path, make_shards, capsys):
    from transformers import AutoConfig

    out = export(write_config(tmp_path, quick_gelu=True), tmp_path, make_shards, "transformers")
    config = AutoConfig.from_pretrained(out)
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == ("quick_gelu", "quick_gelu")
    assert np.isclose(config.logit_scale_init_value, np.log(1 / 0.07))
