"""The printed call of plain open_clip gives the model that was saved: same embeddings, same preprocessing."""

import contextlib
import copy
import io
import sys
import types

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import openClipManagement as clip
import settings
from clip_finetuning.model.architecture import check_architecture
from clip_finetuning.model.preprocessing import normalize
from clip_finetuning.runtime import command_line
from tests.helpers import TINY, local_folder, write_config

TEXT = TINY["text_cfg"]
TIMM = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
COCA = {
    "custom_text": True,
    "vision_cfg": {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2, "mlp_ratio": 4},
}
SIGLIP = {
    "custom_text": True,
    "init_logit_bias": -10,
    "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
}
# family: (name, what the shrunk architecture has that TINY has not, tag)
FAMILIES = {
    "ViT": ("ViT-B-32", {}, "laion2b_s34b_b79k"),
    "QuickGELU tag": ("ViT-B-32", {}, "openai"),
    "mean and std 0.5": ("ViT-L-14", {}, "laion2b_s32b_b82k"),
    "SigLIP": ("ViT-B-16-SigLIP", SIGLIP, "webli"),
    "SigLIP2": ("ViT-B-32-SigLIP2-256", SIGLIP, "webli"),
    "CLIPA, bilinear": ("ViT-H-14-CLIPA", {}, "datacomp1b"),
    "ResNet": ("RN50", {"vision_cfg": RESNET}, "cc12m"),
    "ConvNeXt": ("convnext_base", {"vision_cfg": TIMM}, "laion400m_s13b_b51k"),
    "CoCa": ("coca_ViT-B-32", COCA, "laion2b_s13b_b90k"),
}


@pytest.fixture
def shrunk(monkeypatch, tmp_path):
    """shrunk(name, changes): open_clip's model of that name, and its QuickGELU twin, become tiny; tags give tiny weights."""
    models = copy.deepcopy(open_clip.factory._MODEL_CONFIGS)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", models)
    weights = tmp_path / "downloaded.pt"
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(weights))

    def shrink(name, changes):
        # open_clip takes a tokenizer of SigLIP's from the hub; a stand-in keeps the name, and needs no network
        models[name] = {**copy.deepcopy(TINY), **changes}
        if "SigLIP" in name:
            models[name]["text_cfg"] = {**models[name]["text_cfg"], "hf_tokenizer_name": f"timm/{name}"}
            monkeypatch.setitem(sys.modules, "transformers", transformers())
        if f"{name}-quickgelu" in models:
            models[f"{name}-quickgelu"] = {**models[name], "quick_gelu": True}
        torch.manual_seed(1)
        architecture = {key: value for key, value in models[name].items() if key != "custom_text"}
        custom = open_clip.CoCa if "multimodal_cfg" in changes else open_clip.CustomTextCLIP
        torch.save((custom if changes.get("custom_text") else open_clip.CLIP)(**architecture).state_dict(), weights)

    return shrink


def transformers():
    """A stand-in: its tokenizer gives a number for each letter."""

    def tokenizer(texts, max_length, **_):
        rows = [[ord(letter) for letter in text[:max_length]] for text in texts]
        return types.SimpleNamespace(input_ids=torch.tensor([row + [1] * (max_length - len(row)) for row in rows]))

    tokenizer.batch_encode_plus = tokenizer  # as open_clip 3.2 calls it
    loader = types.SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    return types.SimpleNamespace(AutoTokenizer=loader)


def picture(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def check_call(clip_model, printed, path):
    """Run what saving printed, and compare preprocessing and embeddings with the suite's own."""
    lines = [line.strip() for line in printed.splitlines() if line.startswith("  open_clip.")]
    saved = clip.read_checkpoint(path)
    assert lines == [saved["open_clip_model"], saved["open_clip_tokenizer"]]
    model, _, preprocess = eval(lines[0], {"open_clip": open_clip})
    tokenizer = eval(lines[1], {"open_clip": open_clip})
    model.eval(), clip_model.model.eval()
    transform = clip.image_transform(clip_model, train=False)
    texts = ["a red shirt", "blue trousers, long"]
    with torch.inference_mode():
        for image in (picture(120, 80), picture(64, 160)):
            encoded = io.BytesIO()
            image.save(encoded, "PNG")
            pixels = transform(encoded.getvalue())[None]
            theirs = preprocess(image)[None]
            ours = normalize(pixels, clip_model.preprocess["mean"], clip_model.preprocess["std"])
            assert (ours - theirs).abs().max() <= 2.01 / 255 / min(clip_model.preprocess["std"])
            same = model.encode_image(ours, normalize=True)
            torch.testing.assert_close(clip.encode_images(clip_model, pixels), same, rtol=0, atol=1e-6)
        tokens = clip_model.tokenizer(texts)
        assert torch.equal(tokens, tokenizer(texts))
        torch.testing.assert_close(
            clip.encode_texts(clip_model, tokens), model.encode_text(tokens, normalize=True), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_printed_call_loads_a_member_of_each_family(shrunk, tmp_path, capsys, family):
    name, changes, tag = FAMILIES[family]
    if "timm_model_name" in changes.get("vision_cfg", {}):
        pytest.importorskip("timm")
    shrunk(name, changes)
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    clip_model = clip.create_model(name, tag)
    path = tmp_path / "final_checkpoint.pt"
    capsys.readouterr()
    clip.save_checkpoint(path, clip_model)
    printed = capsys.readouterr().out
    check_call(clip_model, printed, path)
    assert ("image_mean=(0.5, 0.5, 0.5)" in printed) == ("0.5" in family or "SigLIP" in family)
    assert ("image_resize_mode='squash'" in printed) == ("SigLIP" in family or "CLIPA" in family)
    assert ("quickgelu" in printed) == (tag in ("openai", "cc12m"))


OWN = {
    "plain": {},
    "QuickGELU": {"quick_gelu": True},
    "a text tower of its own": {"custom_text": True},
    "ResNet": {"vision_cfg": RESNET},
    "ConvNeXt": {"vision_cfg": TIMM},
    "CoCa": COCA,
    "tokenizer": {"text_cfg": {**TEXT, "tokenizer_kwargs": {"clean": "canonicalize"}}},
    "tokenizer of the hub": {"text_cfg": {**TEXT, "hf_tokenizer_name": "roberta-base"}},
}


@pytest.mark.parametrize("kind", OWN)
def test_the_printed_call_brings_an_architecture_of_the_users_own(tmp_path, capsys, monkeypatch, kind):
    if kind == "ConvNeXt":
        pytest.importorskip("timm")
    monkeypatch.setitem(sys.modules, "transformers", transformers())
    clip_model = clip.create_model(write_config(tmp_path, "my-own", **OWN[kind]), seed=1)
    (tmp_path / "my-own.json").unlink()
    capsys.readouterr()
    clip.save_checkpoint(tmp_path / "a.pt", clip_model)
    check_call(clip_model, capsys.readouterr().out, tmp_path / "a.pt")


def test_the_printed_call_brings_a_text_tower_of_transformers(tmp_path, capsys, monkeypatch):
    hub = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tower = hub.RobertaConfig(vocab_size=300, pad_token_id=1, **sizes)
    monkeypatch.setattr(hub.AutoConfig, "from_pretrained", lambda *_, **__: tower)
    monkeypatch.setattr(hub.AutoTokenizer, "from_pretrained", transformers().AutoTokenizer.from_pretrained)
    text = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base", "context_length": 16}
    clip_model = clip.create_model(write_config(tmp_path, "my-own", text_cfg=text), seed=1)
    capsys.readouterr()
    clip.save_checkpoint(tmp_path / "a.pt", clip_model)
    check_call(clip_model, capsys.readouterr().out, tmp_path / "a.pt")
    clip.load_model(tmp_path / "a.pt")


def test_the_printed_call_of_a_folders_model_takes_the_checkpoints_weights(tmp_path, capsys):
    """open_clip ignores `pretrained` beside a `local-dir:` name, so the call must not have one."""
    torch.save(open_clip.CLIP(**TINY).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.1, 0.2, 0.3], "resize_mode": "longest", "fill_color": 7}
    name = local_folder(tmp_path, TINY, preprocess)
    clip_model = clip.create_model(name)
    with torch.no_grad():
        clip_model.model.visual.proj.add_(1)  # as a training does
    capsys.readouterr()
    clip.save_checkpoint(tmp_path / "a.pt", clip_model)
    printed = capsys.readouterr().out
    assert "pads pictures with 0, this suite with 7" in printed
    clip_model.preprocess["fill_color"] = 0  # the one thing that no call can say
    check_call(clip_model, printed, tmp_path / "a.pt")
    again = clip.load_model(tmp_path / "a.pt", default_name=name)
    assert torch.equal(again.model.visual.proj, clip_model.model.visual.proj)


@pytest.mark.parametrize("how", ["as a checkpoint", "as weights", "by default"])
def test_the_name_that_was_trained_also_evaluates(shrunk, tmp_path, capsys, how):
    """ViT-B-32 with the tag `openai` becomes ViT-B-32-quickgelu; the same MODEL_NAME must find its checkpoint."""
    shrunk("ViT-B-32", {})
    trained = clip.create_model("ViT-B-32", "openai")
    path = str(tmp_path / "final_checkpoint.pt")
    clip.save_checkpoint(path, trained)
    if how == "as a checkpoint":
        again = clip.load_model(path, name="ViT-B-32")
    elif how == "as weights":
        again = clip.create_model("ViT-B-32", path)
    else:
        again = clip.load_model(path, default_name="ViT-B-32")
    assert again.name == "ViT-B-32-quickgelu" and again.config["quick_gelu"]
    assert ("ViT-B-32 with QuickGELU" in capsys.readouterr().out) == (how != "by default")
    plain = clip.create_model("ViT-B-32", "laion2b_s34b_b79k")
    clip.save_checkpoint(path, plain)
    with pytest.raises(ValueError, match="checkpoint of ViT-B-32, but MODEL_NAME is ViT-B-32-quickgelu"):
        clip.load_model(path, name="ViT-B-32-quickgelu")


@pytest.mark.parametrize(
    ("file", "name", "tag"),
    [
        ("ViT-B-32-openai.pt", "ViT-B-32", "openai"),
        ("vit_b_32-laion2b_s34b_b79k-1f2e3d4c.pt", "ViT-B-32", "laion2b_s34b_b79k"),
        ("vit_b_32-quickgelu-laion400m_e31-d867053b.pt", "ViT-B-32", "laion400m_e31"),
        ("laion2b_s32b_b82k.pth", "ViT-L-14", "laion2b_s32b_b82k"),
        ("open_clip_pytorch_model.bin", "ViT-B-32", None),
        ("my_openai.pt", "ViT-B-32", None),
        ("openair.pt", "ViT-B-32", None),
        ("ViT-L-14-openai.pt", "ViT-B-32", None),
    ],
)
def test_a_bare_files_name_may_tell_its_tag(shrunk, tmp_path, capsys, file, name, tag):
    shrunk(name, {})
    path = tmp_path / file
    (tmp_path / "downloaded.pt").rename(path)
    found = clip.create_model(name, str(path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(path))]
    assert len(lines) == 1
    if tag is None:
        assert f"GELU (MODEL_NAME={name}-quickgelu for QuickGELU)" in lines[0] and "assumed" in lines[0]
        assert found.name == name
        return
    known = open_clip.get_pretrained_cfg(name, tag)
    assert f"'{tag}'" in lines[0]
    assert found.config.get("quick_gelu", False) == known.get("quick_gelu", False) == ("QuickGELU" in lines[0])
    assert found.preprocess["mean"] == list(known["mean"]) and found.preprocess["resize_mode"] == known["resize_mode"]


def test_a_bare_file_is_prepared_as_all_weights_of_its_architecture(shrunk, tmp_path, capsys):
    shrunk("ViT-B-16-SigLIP", SIGLIP)
    found = clip.create_model("ViT-B-16-SigLIP", str(tmp_path / "downloaded.pt"))
    assert "all published weights of ViT-B-16-SigLIP" in capsys.readouterr().out
    assert found.preprocess["mean"] == [0.5] * 3 and found.preprocess["resize_mode"] == "squash"


def test_settings_say_how_pictures_are_prepared(tmp_path, capsys):
    config = write_config(tmp_path)
    torch.save(open_clip.CLIP(**TINY).state_dict(), tmp_path / "bare.pt")
    knobs = ["IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION"]
    flags = ["--image-mean=0.5,0.4,0.3", "--image-std=.5,.5,.5", "--image-resize-mode=squash"]

    def load(*more):
        args = command_line.Parser(settings, "", knobs).parse_args([*flags, *more])
        return clip.create_model(config, str(tmp_path / "bare.pt"), image=clip.image_settings(args))

    found = load("--image-interpolation=bilinear")
    said = capsys.readouterr().out
    assert "IMAGE_MEAN=[0.5, 0.4, 0.3] takes the place of [0.48145466" in said
    wanted = {"mean": [0.5, 0.4, 0.3], "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
    assert found.preprocess == {**found.preprocess, **wanted}
    clip.save_checkpoint(tmp_path / "a.pt", found)
    check_call(found, capsys.readouterr().out, tmp_path / "a.pt")
    assert clip.load_model(tmp_path / "a.pt").preprocess == found.preprocess
    for wrong in ("--image-mean=0.5", "--image-mean=a,b,c", "--image-std=0,1,1", "--image-std=nan,1,1"):
        with pytest.raises(ValueError, match="IMAGE_"):
            load(wrong)
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        load("--image-resize-mode=evil")


def test_shrunk_families_are_what_files_may_hold():
    for name, changes, _ in FAMILIES.values():
        check_architecture({**TINY, **changes}, name)
