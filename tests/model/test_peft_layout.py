"""LoRA additions as PEFT's files and back: the layout, and that a model with them computes what transformers' computes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import export_clip
import openClipManagement as clip
from clip_finetuning.export import hf_weights
from clip_finetuning.model import lora, low_rank
from clip_finetuning.model.lora import Lora
from tests.helpers import write_config


@pytest.fixture
def base(tmp_path):
    model = clip.create_model(write_config(tmp_path))
    clip.save_checkpoint(tmp_path / "base.pt", model)
    return clip.load_model(tmp_path / "base.pt")


@pytest.fixture
def trained(base, tmp_path):
    """The path of additions to the base, and the weights with them."""
    lora.add(base, Lora(2, 6.0))
    additions = list(low_rank.low_ranks(base.model))
    for addition in additions:
        for parameter in addition.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    clip.save_checkpoint(tmp_path / "final_lora.pt", base, alone=True)
    return tmp_path / "final_lora.pt", lora.merged(base.model.state_dict(), additions[0].scale)


def exported(path, folder):
    export_clip.main([f"--checkpoint={path}", "--form=peft", f"--output={folder}"])
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


def test_the_files_are_those_of_peft_for_clip_model(trained, tmp_path, capsys):
    """Each module with its pair: W + alpha / r * B A, which is what PEFT computes, gives transformers' merged weights."""
    config, tensors = exported(trained[0], tmp_path / "adapter")
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 2, 6.0, "none")
    weights = {}
    for path in (tmp_path / "base.pt", trained[0]):
        model = clip.load_model(path).model
        weights[path.name] = hf_weights.clip_vision(model.visual)[1] | hf_weights.clip_text(model)[1]
    before, after = weights["base.pt"], weights["final_lora.pt"]
    assert {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors} == {
        *config["target_modules"]
    }
    assert len(tensors) == 2 * len(config["target_modules"]) == 24
    for module in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        change = after[f"{module}.weight"] - before[f"{module}.weight"]
        assert change.any() and torch.allclose(change, 3 * b @ a, atol=1e-5), module
    assert "12 pairs of rank 2, to tiny-test with" in capsys.readouterr().out


def test_an_adapter_is_read_where_weights_are_named(trained, tmp_path, capsys):
    exported(trained[0], tmp_path / "adapter")
    config = str(tmp_path / "tiny-test.json")
    for model in (
        clip.load_model(tmp_path / "adapter", name=config),
        clip.create_model(config, str(tmp_path / "adapter")),
    ):
        for name, weight in model.model.state_dict().items():
            assert torch.allclose(weight, trained[1][name], atol=1e-5), name
    assert "has no hash of the weights that it adds to: they are taken to be" in capsys.readouterr().out


def write_adapter(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "base_model_name_or_path": str(folder.parent / "base.pt"),
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def pair(module, rows, columns, rank=3):
    a, b = torch.randn(rank, columns) / 9, torch.randn(rows, rank) / 9
    return {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}, b @ a


def changes(folder, base, tmp_path):
    model, before = clip.load_model(folder, name=str(tmp_path / "tiny-test.json")).model, base.model.state_dict()
    return {k: v - before[k] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def test_an_adapter_to_some_modules_with_ranks_and_scales_of_their_own(base, tmp_path):
    queries, change = pair("text_model.encoder.layers.0.self_attn.q_proj", 32, 32)
    wide, other = pair("vision_model.encoder.layers.0.mlp.fc1", 128, 32, rank=5)
    folder = write_adapter(
        tmp_path / "adapter", queries | wide, rank_pattern={"mlp.fc1": 5}, alpha_pattern={"mlp.fc1": 20}
    )
    found = changes(folder, base, tmp_path)
    assert found.keys() == {
        "transformer.resblocks.0.attn.in_proj_weight",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
    }
    packed = found["transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.allclose(packed[:32], 2 * change, atol=1e-5) and not packed[32:].any()
    assert torch.allclose(found["visual.transformer.resblocks.0.mlp.c_fc.weight"], 4 * other, atol=1e-5)


@pytest.mark.parametrize("version, times", [(None, 2), ("0.13.0", 2), ("0.21.2", 2), ("0.21.3", 1), ("1.0.0.dev0", 1)])
def test_an_adapter_to_open_clips_own_modules_and_its_packed_attention(base, tmp_path, capsys, version, times):
    """The output's pair counts as often as the PEFT that trained it added it: twice up to 0.21.2."""
    attention = "visual.transformer.resblocks.0.attn"
    packed, change = pair(attention, 96, 32)
    out, other = pair(f"{attention}.base_layer.out_proj", 32, 32)
    folder = write_adapter(tmp_path / "adapter", packed | out, use_rslora=True, peft_version=version)
    found = changes(folder, base, tmp_path)
    scale = 6 / 3**0.5
    assert torch.allclose(found[f"{attention}.in_proj_weight"], scale * change, atol=1e-5)
    assert torch.allclose(found[f"{attention}.out_proj.weight"], times * scale * other, atol=1e-5)
    assert ("added twice" in capsys.readouterr().out) == (times == 2)


QUERIES = "vision_model.encoder.layers.0.self_attn.q_proj"
BROKEN = {
    "DoRA": ({f"base_model.model.{QUERIES}.lora_magnitude_vector": torch.ones(32)}, {}, "has no place in this model"),
    "pairs that began with the base's parts": (pair(QUERIES, 32, 32)[0], {"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4"),
    "a layer that is not there": (pair("vision_model.encoder.layers.7.mlp.fc1", 128, 32)[0], {}, "has no place in this model"),
    "another width": (pair(QUERIES, 48, 32)[0], {}, "does not fit its 32 x 32"),
    "half a pair": (dict(list(pair(QUERIES, 32, 32)[0].items())[:1]), {}, "does not fit its 32 x 32"),
    "another kind": (pair(QUERIES, 32, 32)[0], {"peft_type": "IA3"}, "of another kind than LoRA"),
    "an alpha that is none": (pair(QUERIES, 32, 32)[0], {"lora_alpha": "much"}, "lora_alpha in adapter_config.json must be"),
    "a base on the hub": (pair(QUERIES, 32, 32)[0], {"base_model_name_or_path": "openai/clip"}, "be a tag of tiny-test or a file"),
    "nothing": ({"x": torch.ones(1)}, {}, "x has no place"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(base, tmp_path, what):
    tensors, config, words = BROKEN[what]
    folder = write_adapter(tmp_path / "adapter", tensors, **config)
    with pytest.raises(ValueError, match=words):
        clip.load_model(folder, name=str(tmp_path / "tiny-test.json"))


def test_what_has_no_additions_is_no_adapter(base, tmp_path):
    with pytest.raises(ValueError, match="--form peft needs a checkpoint of TUNE=lora"):
        export_clip.main([f"--checkpoint={tmp_path / 'base.pt'}", "--form=peft", f"--output={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match="--form peft needs the --checkpoint of a run with TUNE=lora"):
        export_clip.main(["--form=peft", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_additions_that_transformers_has_no_module_for_are_refused(tmp_path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    resnet = clip.create_model(write_config(tmp_path, vision_cfg=vision))
    lora.add(resnet, Lora(2, 4.0))
    clip.save_checkpoint(tmp_path / "final_lora.pt", resnet, alone=True)
    words = (
        "has additions to visual.attnpool.k_proj.weight and 3 others, which are no modules of transformers' CLIPModel"
    )
    with pytest.raises(ValueError, match=words):
        exported(tmp_path / "final_lora.pt", tmp_path / "out")
