"""Adapters that PEFT trains and reads, against PEFT itself: the same embeddings here and there."""

import json

import peft
import pytest
import torch
from peft.tuners.lora.layer import MultiheadAttention

import export_clip
import openClipManagement as clip
from clip_finetuning.model import lora, low_rank
from tests.helpers import write_config
from tests.model.test_starts import features, hf_clip, two_layers


@pytest.fixture
def base(tmp_path):
    """The path of a checkpoint with transformers' weights, and that of its architecture."""
    hf_clip().save_pretrained(tmp_path / "hf")
    config = write_config(tmp_path, **two_layers())
    clip.save_checkpoint(tmp_path / "base.pt", clip.create_model(config, str(tmp_path / "hf")))
    return tmp_path / "base.pt", config


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, 49406, (3, 16), generator=generator)
    texts[:, 9:], texts[:, 0] = 49407, 49406
    return torch.rand(3, 3, 32, 32, generator=generator), texts


def embeddings(model, inputs):
    with torch.no_grad():
        return [model.eval().encode_image(inputs[0]), model.encode_text(inputs[1])]


def assert_same(found, expected, plain):
    for one, other, before in zip(found, expected, plain):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert (other - before).abs().max() > 0.1, "the adapter does something"


def trained(model, **options):
    """A model with an adapter of PEFT's in which nothing is zero."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted


def saved(adapted, base, folder):
    """The folder of an adapter that names its base."""
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_peft_reads_what_is_exported(base, inputs, tmp_path):
    clip_model = clip.load_model(base[0])
    plain = embeddings(clip_model.model, inputs)
    lora.add(clip_model, lora.Lora(3, 6.0))
    for addition in low_rank.low_ranks(clip_model.model):
        for parameter in addition.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    clip.save_checkpoint(tmp_path / "final_lora.pt", clip_model, alone=True)
    export_clip.main([f"--checkpoint={tmp_path}/final_lora.pt", "--form=peft", f"--output={tmp_path}/adapter"])
    adapted = peft.PeftModel.from_pretrained(hf_clip(), str(tmp_path / "adapter")).eval()
    assert_same(embeddings(clip_model.model, inputs), features(adapted.base_model.model, inputs), plain)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "out_proj", "fc1"]},
        {"r": 3, "lora_alpha": 6, "target_modules": ["k_proj", "fc2"], "use_rslora": True},
        {"r": 3, "target_modules": ["q_proj", "fc1"], "rank_pattern": {"fc1": 5}, "alpha_pattern": {"fc1": 20}},
        {"r": 2, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    ],
)
def test_an_adapter_to_clip_model_is_read(base, inputs, tmp_path, options):
    adapted = trained(hf_clip(), **options)
    loaded = clip.load_model(saved(adapted, base[0], tmp_path / "adapter"), name=base[1])
    plain = embeddings(clip.load_model(base[0]).model, inputs)
    assert_same(embeddings(loaded.model, inputs), features(adapted.base_model.model, inputs), plain)


@pytest.mark.parametrize("targets", [["attn"], ["attn", "c_fc"], ["c_fc", "c_proj"]])
def test_an_adapter_to_open_clips_own_modules_is_read(base, inputs, tmp_path, targets):
    model = clip.load_model(base[0]).model
    plain = embeddings(model, inputs)
    adapted = trained(model, r=2, lora_alpha=8, target_modules=targets)
    assert any(isinstance(module, MultiheadAttention) for module in adapted.modules()) == ("attn" in targets)
    loaded = clip.load_model(saved(adapted, base[0], tmp_path / "adapter"), name=base[1])
    assert_same(embeddings(loaded.model, inputs), embeddings(adapted.base_model.model, inputs), plain)
