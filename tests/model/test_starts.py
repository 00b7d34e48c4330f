"""Weights that others saved: whatever they are wrapped in, the model gives what it gave there."""

import argparse
import json
import pathlib
import re
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import openClipManagement as clip
from tests.helpers import TINY, tiny_siglip_tower, write_config

NAMED = "tiny-test"


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(3)
    return open_clip.CLIP(**TINY).eval()


@pytest.fixture(scope="module")
def weights(original):
    return original.state_dict()


@pytest.fixture(scope="module")
def inputs():
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=random)
    return pixels, torch.tensor([[49406, 320, 49407] + [0] * 13, [49406, 17, 900, 49407] + [0] * 12])


def same_as(original, loaded, inputs):
    with torch.no_grad():
        for encode, rows in zip(("encode_image", "encode_text"), inputs):
            one, other = (getattr(model, encode)(rows) for model in (original, loaded.model.eval()))
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    return True


def load(path, config):
    """By MODEL_PRETRAINED and by --checkpoint; both must be the same."""
    loaded = clip.create_model(config, str(path))
    again = clip.load_model(path, name=config)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in loaded.model.state_dict().items())
    return loaded


# ------------------------------------------------------------------------------------------------------ transformers


def hf_clip(activation="gelu", **changes):
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_act": activation}
    torch.manual_seed(1)
    text = {**sizes, "max_position_embeddings": 16, "vocab_size": 49408, "eos_token_id": 49407, "projection_dim": 16}
    vision = {**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, **changes)).eval()


def two_layers(**changes):
    return {
        "vision_cfg": {**TINY["vision_cfg"], "layers": 2},
        "text_cfg": {**TINY["text_cfg"], "layers": 2},
        **changes,
    }


def features(model, inputs):
    with torch.no_grad():
        found = model.get_image_features(pixel_values=inputs[0]), model.get_text_features(input_ids=inputs[1])
    return [output if isinstance(output, torch.Tensor) else output.pooler_output for output in found]


def assert_features(model, loaded, inputs):
    with torch.no_grad():
        ours = loaded.model.eval().encode_image(inputs[0]), loaded.model.encode_text(inputs[1])
    for expected, found in zip(features(model, inputs), ours):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(loaded.model.logit_scale, model.logit_scale.reshape(loaded.model.logit_scale.shape))


@pytest.mark.parametrize("how", ["file", "folder", "index", "bin"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_a_clip_model_of_transformers(tmp_path, inputs, how, custom_text):
    model, folder = hf_clip(), tmp_path / "hf"
    options = {"max_shard_size": "200KB"} if how == "index" else {}
    model.save_pretrained(folder, **options)
    assert len(list(folder.glob("*.safetensors"))) > 1 or how != "index"
    path = folder
    if how == "file":
        path = (folder / "model.safetensors").rename(tmp_path / "a.safetensors")
    elif how == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    config = write_config(tmp_path, **two_layers(**({"custom_text": True} if custom_text else {})))
    assert_features(model, load(path, config), inputs)


def test_a_siglip_model_of_transformers(tmp_path, inputs):
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(2)
    text = {
        **sizes,
        "intermediate_size": 128,
        "max_position_embeddings": 16,
        "vocab_size": 49408,
        "projection_size": 32,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        model.logit_bias.fill_(-7)
    model.save_pretrained(tmp_path / "hf")
    with tiny_siglip_tower() as (vision_cfg, text_cfg):
        text_cfg = {**text_cfg, "context_length": 16, "vocab_size": 49408}
        config = write_config(
            tmp_path, embed_dim=32, init_logit_bias=-10, custom_text=True, vision_cfg=vision_cfg, text_cfg=text_cfg
        )
        loaded = load(tmp_path / "hf", config)
    assert_features(model, loaded, inputs)
    assert loaded.model.logit_bias.item() == -7


# ------------------------------------------------------------------------------------------------- what trainers write


def prefixed(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def without_scale(weights):
    return {name: value for name, value in weights.items() if name != "logit_scale"}


def old(weights):
    """The weights before an average of them: others."""
    return {name: value * 0 for name, value in weights.items()}


@pytest.mark.parametrize("how", ["TorchScript", "its state dict"])
def test_openais_files(tmp_path, inputs, capsys, how):
    """In fp16, its state dict with the sizes beside it, and QuickGELU whatever MODEL_NAME says."""
    torch.manual_seed(5)
    model = open_clip.CLIP(**TINY, quick_gelu=True).eval()
    open_clip.model.convert_weights_to_fp16(model)
    if how == "TorchScript":
        torch.jit.save(torch.jit.script(model), tmp_path / "ViT.pt")
    else:
        sizes = {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}
        torch.save({**model.state_dict(), **{k: torch.tensor(v) for k, v in sizes.items()}}, tmp_path / "ViT.pt")
    loaded = load(tmp_path / "ViT.pt", write_config(tmp_path))
    same_as(model.float(), loaded, inputs)
    assert loaded.config["quick_gelu"] is True
    assert "QuickGELU taken, because it is laid out as OpenAI publishes CLIP" in capsys.readouterr().out


class Callback:
    """What a trainer keeps beside the weights, of a class that nobody else has."""

    def __init__(self):
        self.best = pathlib.Path("x")


WRAPPED = {
    "Lightning": lambda w, m: {
        "state_dict": {**prefixed(w, "model."), "loss.weight": torch.ones(3)},
        "hyper_parameters": argparse.Namespace(lr=1),
        "callbacks": {"c": Callback()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    },
    "a bare state dict": lambda w, m: dict(w),
    "under one key": lambda w, m: {"network": w, "epoch": 3},
    "under two keys": lambda w, m: {"checkpoint": {"clip": w}, "epoch": 3},
    "DistributedDataParallel and compile": lambda w, m: {"state_dict": prefixed(w, "module._orig_mod.")},
    "one tower compiled": lambda w, m: {n.replace("visual.", "visual._orig_mod."): v for n, v in w.items()},
    "FullyShardedDataParallel": lambda w, m: prefixed(w, "_fsdp_wrapped_module."),
    "a prefix of two words": lambda w, m: prefixed(w, "model.clip."),
    "AveragedModel": lambda w, m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "timm's average": lambda w, m: {"state_dict": old(w), "state_dict_ema": w},
    "model_ema": lambda w, m: {"model": old(w), "model_ema": {"module": w, "decay": 0.9}},
    "ema_state_dict alone": lambda w, m: {"ema_state_dict": w, "step": 1},
    "a teacher": lambda w, m: {**prefixed(old(w), "student."), **prefixed(w, "teacher.")},
    "a teacher of other sizes": lambda w, m: {
        **prefixed(w, "student."),
        **prefixed({n: v.reshape(-1) for n, v in w.items()}, "teacher."),
    },
    "ema_pytorch": lambda w, m: {
        **prefixed(old(w), "online_model."),
        **prefixed(w, "ema_model."),
        "initted": torch.tensor(True),
    },
    "a whole module": lambda w, m: m,
    "a whole module under a key": lambda w, m: {"model": m, "args": argparse.Namespace()},
    "sixteen bits": lambda w, m: {"state_dict": {n: v.bfloat16() for n, v in w.items()}},
    "a prefix as open_clip calls a tower": lambda w, m: prefixed(w, "visual."),
    "a prefix as MobileCLIP calls a tower": lambda w, m: {"state_dict": prefixed(w, "image_encoder.")},
    "a prefix as transformers calls a tower": lambda w, m: prefixed(w, "module.vision_model."),
    "a prefix without a dot": lambda w, m: {"model": prefixed(w, "clip_")},
    "the scale in a loss": lambda w, m: {
        "state_dict": {**prefixed(without_scale(w), "model."), "loss.logit_scale": w["logit_scale"]}
    },
    "the scale beside the model": lambda w, m: {"model": without_scale(w), "logit_scale": w["logit_scale"]},
    "an average without the scale": lambda w, m: {
        "state_dict": {**old(w), "logit_scale": w["logit_scale"]},
        "ema": without_scale(w),
    },
    "an average with a scale of one": lambda w, m: {
        "model": old(w),
        "emaModel": {**w, "logit_scale": w["logit_scale"].reshape(1)},
    },
    "a name in another trainer's words": lambda w, m: {"model_name": "ViT-B/32", "model": w, "preprocess": "none"},
    "such a name and a prefix": lambda w, m: {"model_name": "my-clip", "state_dict": prefixed(w, "module.")},
    "MMEngine": lambda w, m: {"meta": {"a": 1}, "state_dict": prefixed(w, "backbone."), "message_hub": Callback()},
}
SILENT = (
    *("a bare state dict", "DistributedDataParallel and compile", "sixteen bits", "one tower compiled"),
    *("a name in another trainer's words", "such a name and a prefix"),
)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("how", WRAPPED)
def test_whatever_a_trainer_wraps_weights_in(tmp_path, original, weights, how, mapped, capsys):
    path = tmp_path / "theirs.ckpt"
    torch.save(WRAPPED[how](weights, original), path)
    found = clip.read_checkpoint(path, mapped=mapped)["state_dict"]
    told = capsys.readouterr().out
    loaded = clip.create_model(write_config(tmp_path), str(path))
    exact = weights if how != "sixteen bits" else {n: v.bfloat16().float() for n, v in weights.items()}
    assert all(torch.equal(value, exact[name]) for name, value in loaded.model.state_dict().items())
    assert set(weights) <= set(found)
    assert (told == "") == (how in SILENT or how == "FullyShardedDataParallel"), told
    assert told.count("\n") <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hugging_face", [False, True])
def test_half_precision_weights_of_another_picture_size(tmp_path, weights, capsys, dtype, hugging_face):
    halves = hf_clip().state_dict() if hugging_face else weights
    torch.save({name: v.to(dtype) if v.is_floating_point() else v for name, v in halves.items()}, tmp_path / "a.pt")
    changes = two_layers() if hugging_face else dict(TINY)
    changes["vision_cfg"] = {**changes["vision_cfg"], "image_size": 48}
    clip.create_model(write_config(tmp_path, **changes), str(tmp_path / "a.pt"))
    assert "interpolated from 17 to 37 places" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda v: (v * 100).to(torch.int8), "is in whole numbers .torch.int8., as quantised weights are"),
        (lambda v: v.to_sparse(), "is no plain tensor of numbers"),
        (lambda v: v.to(torch.complex64), "is no plain tensor of numbers"),
        (lambda v: v.to("meta"), "is no plain tensor of numbers"),
    ],
)
def test_numbers_that_are_no_weights_are_refused_in_one_line(tmp_path, weights, how, words):
    torch.save({**weights, "visual.proj": how(weights["visual.proj"])}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words) as error:
        clip.create_model(write_config(tmp_path), str(tmp_path / "a.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("the scale in a loss", "its logit_scale is loss.logit_scale$"),
        ("the scale beside the model", "its logit_scale is logit_scale$"),
        (
            "Lightning",
            "nothing of argparse.Namespace.*; their names are read without 'model.'; 1 tensors .*loss.weight",
        ),
        ("timm's average", "those under 'state_dict_ema'; the average of the weights is taken, not state_dict$"),
        ("a teacher", "without 'teacher.'; the average of the weights is taken, not student$"),
        ("a teacher of other sizes", "without 'student.'; this one is taken, not teacher$"),
        ("under two keys", "the weights are those under 'checkpoint.clip'$"),
    ],
)
def test_what_was_chosen_is_said(tmp_path, original, weights, how, words, capsys):
    torch.save(WRAPPED[how](weights, original), tmp_path / "a.pt")
    clip.read_checkpoint(tmp_path / "a.pt")
    assert re.search(f"a.pt: .*{words}", capsys.readouterr().out.strip())


def test_several_models_are_not_chosen_from(tmp_path, weights):
    torch.save({"best": weights, "last": weights}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="several models, in best, last; save the state dict of one"):
        clip.read_checkpoint(tmp_path / "a.pt")


# --------------------------------------------------------------------------------------------- what is no such model


def names(*found):
    return {name: torch.ones(2) for name in found}


NAMED_LAYOUTS = [
    (names("vision_model.post_layernorm.weight"), "image tower of transformers alone"),
    (names("text_model.final_layer_norm.weight"), "text tower of transformers alone"),
    (names("vision_model.x.weight", "text_model.encoder.layer.0.attention.self.query.weight"), "ChineseCLIPModel"),
    (names("vision_model.x.weight", "text_model.roberta.encoder.layer.0.x"), "AltCLIP"),
    (names("vision_model.x.weight", "qformer.x.weight"), "BLIP-2"),
    (names("base_model.model.visual.proj.lora_A.weight"), "adapter .* merge it"),
    (names("visual.blocks.0.attn.q_proj.weight", "text.x.weight"), "EVA-CLIP"),
    (names("patch_embed.proj.weight", "cls_token"), "timm alone, without a text tower"),
    (names("embeddings.word_embeddings.weight"), "BERT"),
    (names("conv1.weight", "layer1.0.conv1.weight"), "ResNet of torchvision"),
]


@pytest.mark.parametrize(("content", "words"), NAMED_LAYOUTS, ids=[words for _, words in NAMED_LAYOUTS])
def test_another_layout_is_named(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"its names are those of .*{words}") as error:
        clip.create_model(write_config(tmp_path), str(tmp_path / "a.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.pt", b"<!DOCTYPE html><html>", "a web page"),
        ("a.bin", b"GGUF\x03\0\0\0", "llama.cpp"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "Keras"),
        ("a.npz", b"PK\x03\x04", "big_vision"),
        ("flax_model.msgpack", b"\x82", "from_flax=True"),
    ],
)
def test_another_file_is_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.*{words}"):
        clip.create_model(write_config(tmp_path), str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "words"),
    [(".metadata", "dcp_to_torch"), ("x.txt", "none of open_clip_model.safetensors")],
)
def test_a_folder_without_weights_is_named(tmp_path, name, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).touch()
    with pytest.raises(ValueError, match=f"folder is a folder without weights .*{words}"):
        clip.create_model(write_config(tmp_path), str(tmp_path / "folder"))


def test_a_folder_with_a_file_lost_is_refused(tmp_path):
    folder = tmp_path / "hf"
    hf_clip().save_pretrained(folder, max_shard_size="200KB")
    lost = min(folder.glob("model-*.safetensors"))
    kept = load_file(lost)
    lost.unlink()
    config = write_config(tmp_path, **two_layers())
    with pytest.raises(ValueError, match=f"files are missing, first of all {lost.name}"):
        clip.create_model(config, str(folder))
    kept.pop(next(iter(kept)))
    save_file(kept, lost)
    with pytest.raises(ValueError, match="1 of its .* tensors are in none of its files"):
        clip.create_model(config, str(folder))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="something else than files beside it"):
        clip.create_model(config, str(folder))


# ------------------------------------------------------------------------------------------------------------ hostility


def archive(path, pickled, records=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, data in records:
            file.writestr(f"a/data/{name}", data)


def test_a_module_that_would_run_code_runs_none(tmp_path, original):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"state_dict": original.state_dict(), "x": Evil()}, tmp_path / "a.pt")
    clip.create_model(write_config(tmp_path), str(tmp_path / "a.pt"))
    assert not (tmp_path / "ran").exists()


def tensor_beyond_its_record(path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    shape = b"K\x00(K\x64K\x64t(K\x64K\x01t\x89ccollections\nOrderedDict\n)RtR"
    name = b"X\x06\x00\x00\x00weight"
    archive(
        path,
        b"\x80\x02}" + name + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"s.",
        [("0", b"\0" * 8)],
    )


def modules_in_each_other(path):
    thing = b"c__torch__\nM\n)\x81q\x01}X\x01\x00\x00\x00ah\x01sb."
    archive(path, b"\x80\x02" + thing, [])


HOSTILE = {
    "beyond": (tensor_beyond_its_record, "record does not hold"),
    "circle": (modules_in_each_other, "without end"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, how):
    write, words = HOSTILE[how]
    write(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt.*{words}"):
        clip.read_checkpoint(tmp_path / "a.pt")
