"""Building models, their preprocessing and embeddings, and checkpoints that plain open_clip loads."""

import contextlib
import errno
import io
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

import openClipManagement as clip
from clip_finetuning.model import building
from clip_finetuning.runtime.version import version
from tests.helpers import TINY, write_config


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def tiny(config):
    return clip.create_model(config, seed=1)


@pytest.fixture
def inputs(tiny):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, tiny.tokenizer(["a red shirt", "blue trousers", "a hat"])


def embed(clip_model, inputs):
    clip_model.model.eval()
    with torch.inference_mode():
        return torch.cat([clip.encode_images(clip_model, inputs[0]), clip.encode_texts(clip_model, inputs[1])])


def test_random_weights_are_announced_and_follow_the_seed(config, capsys, inputs, tiny):
    again, other = clip.create_model(config, seed=1), clip.create_model(config, seed=2)
    assert "random weights" in capsys.readouterr().out
    assert torch.equal(embed(again, inputs), embed(tiny, inputs))
    assert not torch.equal(embed(other, inputs), embed(tiny, inputs))


@pytest.mark.parametrize("tower", [{}, {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}])
def test_random_weights_are_known_as_such_until_the_first_step(tmp_path, tower):
    vision = {**TINY["vision_cfg"], **tower}
    fresh = clip.create_model(write_config(tmp_path, vision_cfg=vision))
    clip.save_checkpoint(tmp_path / "start.pt", fresh)
    again = clip.load_model(tmp_path / "start.pt")
    assert clip.is_untrained(again.model)
    model = again.model
    image_features, text_features, _ = model(torch.randn(4, 3, 32, 32), torch.randint(1, 99, (4, 16)))
    (image_features @ text_features.T).diagonal().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert not clip.is_untrained(model)


def test_embeddings_are_unit_vectors_of_the_models_size(tiny, inputs):
    embeddings = embed(tiny, inputs)
    assert embeddings.shape == (6, TINY["embed_dim"])
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(6), atol=1e-5)


def test_a_checkpoint_loads_in_plain_open_clip_with_identical_embeddings(tiny, inputs, tmp_path):
    path = tmp_path / "final_checkpoint.pt"
    clip.save_checkpoint(path, tiny, step=3)
    model, _, preprocess = eval(clip.read_checkpoint(path)["open_clip_model"])
    model.eval()
    picture = Image.effect_noise((50, 40), 80).convert("RGB")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    ours = clip.image_transform(tiny, train=False)(encoded.getvalue())
    with torch.inference_mode():
        theirs = model.encode_image(preprocess(picture)[None], normalize=True)
        tiny.model.eval()
        assert torch.allclose(
            clip.encode_images(tiny, ours[None]), theirs, atol=1e-3
        )  # uint8 and float resize round apart
        assert torch.equal(clip.encode_texts(tiny, inputs[1]), model.encode_text(inputs[1], normalize=True))
    for name, value in model.state_dict().items():
        assert torch.equal(value, tiny.model.state_dict()[name])


def test_a_checkpoint_says_which_version_wrote_it_and_one_that_does_not_is_read(tiny, inputs, tmp_path):
    clip.save_checkpoint(tmp_path / "a.pt", tiny)
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    assert saved["version"] == version() != "unknown"
    del saved["version"]  # as 0.1.0 wrote it
    torch.save(saved, tmp_path / "old.pt")
    assert torch.equal(embed(clip.load_model(tmp_path / "old.pt"), inputs), embed(tiny, inputs))


def test_the_architecture_comes_from_the_checkpoint(tiny, config, inputs, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    clip.save_checkpoint(path, tiny)
    Path(config).unlink()
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})  # another machine, without the config file
    loaded = clip.load_model(path)
    assert (loaded.name, loaded.preprocess["size"]) == (tiny.name, tiny.preprocess["size"])
    assert torch.equal(embed(loaded, inputs), embed(tiny, inputs))


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tiny, tmp_path):
    path = tmp_path / "a.pt"
    clip.save_checkpoint(path, tiny)
    with pytest.raises(ValueError, match="checkpoint of tiny-test, but MODEL_NAME is ViT-B-16"):
        clip.load_model(path, name="ViT-B-16")
    with pytest.raises(ValueError, match="tiny-test"):
        clip.create_model("ViT-B-16", str(path))


def rewrite_bare(weights):
    return weights


def rewrite_open_clip_train(weights):
    return {
        "epoch": 2,
        "name": "run",
        "state_dict": {f"module.{k}": v for k, v in weights.items()},
        "optimizer": {"state": {}},
    }


def rewrite_model_state_dict(weights):
    return {"model_state_dict": weights, "loss": 1.0}


def rewrite_model(weights):
    return {"model": weights}


def rewrite_compiled(weights):
    return {"state_dict": {f"module._orig_mod.{k}": v for k, v in weights.items()}}


def rewrite_parallel_then_compiled(weights):
    return {"state_dict": {f"_orig_mod.module.{k}": v for k, v in weights.items()}}


@pytest.mark.parametrize(
    "rewrite",
    [
        rewrite_bare,
        rewrite_open_clip_train,
        rewrite_model_state_dict,
        rewrite_model,
        rewrite_compiled,
        rewrite_parallel_then_compiled,
    ],
)
def test_other_trainers_files_are_read(tiny, config, inputs, tmp_path, rewrite):
    path = tmp_path / "other.pt"
    torch.save(rewrite(tiny.model.state_dict()), path)
    assert torch.equal(embed(clip.create_model(config, str(path)), inputs), embed(tiny, inputs))
    assert torch.equal(embed(clip.load_model(path, default_name=config), inputs), embed(tiny, inputs))


def test_safetensors_are_read(tiny, config, inputs, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({k: v.contiguous() for k, v in tiny.model.state_dict().items()}, path)
    assert torch.equal(embed(clip.create_model(config, str(path)), inputs), embed(tiny, inputs))


def test_weights_that_do_not_fit_are_refused_in_one_line(tiny, tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(tiny.model.state_dict(), path)
    wider = write_config(tmp_path, "wider", embed_dim=24)
    with pytest.raises(ValueError, match="does not hold the weights of wider: .* of another shape") as refusal:
        clip.load_model(path, name=wider)
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_mapped_is_read_whole_with_a_word(tiny, config, inputs, tmp_path, capsys, monkeypatch):
    """As torch wrote them before 1.6; or on a file system without maps."""
    torch.save(tiny.model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(embed(clip.load_model(tmp_path / "old.pt", default_name=config), inputs), embed(tiny, inputs))
    assert "old.pt cannot be mapped into memory" in capsys.readouterr().out
    clip.save_checkpoint(tmp_path / "new.pt", tiny)
    clip.load_model(tmp_path / "new.pt")
    assert "mapped" not in capsys.readouterr().out

    def refuse(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    assert torch.equal(embed(clip.load_model(tmp_path / "new.pt"), inputs), embed(tiny, inputs))
    assert "No such device" in capsys.readouterr().out


def test_a_mapped_checkpoint_outlives_its_replacement(tiny, tmp_path):
    path = tmp_path / "a.pt"
    clip.save_checkpoint(path, tiny, step=1)
    mapped = clip.read_checkpoint(path, mapped=True)
    clip.save_checkpoint(path, tiny, {name: value * 0 for name, value in tiny.model.state_dict().items()}, step=2)
    assert mapped["step"] == 1
    assert all(torch.equal(mapped["state_dict"][name], value) for name, value in tiny.model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.pt"):
        clip.load_model(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="evil.pt"):
        clip.read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ViT-B-23",), "near names: .*ViT-B-32"),
        (("no/such.json",), "there is no such config file"),
        (("ViT-B-32", "laion3b"), "its tags: .*laion2b_s34b_b79k"),
        (("ViT-B-32", "laion2b_s34b_b79k", "/no/such/folder"), "MODEL_CACHE_DIR=/no/such/folder"),
    ],
)
def test_what_does_not_exist_ends_in_one_line_with_the_remedy(arguments, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as refusal:
        clip.create_model(*arguments)
    assert "\n" not in str(refusal.value)


def test_no_network_on_first_download_ends_in_one_line_with_the_remedy(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise RuntimeError("cannot reach the hub\nlong story")

    monkeypatch.setattr("clip_finetuning.model.hub.look", lambda _: ("", 0))  # which may be wrong a moment later
    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(ValueError, match="cannot reach the hub.*MODEL_PRETRAINED to a local file") as refusal:
        clip.create_model("ViT-B-32", "laion2b_s34b_b79k", str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_weights_trained_with_quickgelu_get_a_model_that_has_it(monkeypatch, capsys):
    built = []
    monkeypatch.setattr(building, "_build", lambda architecture, *_: built.append(architecture.name))
    clip.create_model("ViT-B-32", "openai")
    clip.create_model("ViT-B-32", "laion2b_s34b_b79k")
    assert built == ["ViT-B-32-quickgelu", "ViT-B-32"]
    assert "QuickGELU" in capsys.readouterr().out


def test_an_added_logit_bias_stays_out_of_the_weights_but_survives(tiny, tmp_path):
    clip.add_logit_bias(tiny)
    assert tiny.model.logit_bias.item() == -10
    assert tiny.model.logit_scale.exp().item() == pytest.approx(10)
    path = tmp_path / "siglip.pt"
    clip.save_checkpoint(path, tiny)
    eval(clip.read_checkpoint(path)["open_clip_model"])
    assert clip.load_model(path).model.logit_bias.item() == -10


def test_a_models_own_logit_bias_is_kept(tmp_path):
    siglip = clip.create_model(write_config(tmp_path, "own-bias", init_logit_bias=-3.0))
    clip.add_logit_bias(siglip)
    assert siglip.model.logit_bias.item() == -3


def test_precision_and_device_are_picked():
    cpu = clip.pick_device("cpu")
    assert clip.pick_precision("fp16", cpu) == "fp16"
    assert clip.pick_precision("auto", cpu) in ("bf16", "fp32")
    with pytest.raises(ValueError, match="DEVICE=cuda:77"):
        clip.pick_device("cuda:77")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_precision_encodes_on_the_cpu(tiny, inputs, precision):
    with clip.autocast(tiny.device, precision):
        mixed = embed(tiny, inputs)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, embed(tiny, inputs), atol=0.05)


def test_parameters_are_counted(tiny):
    everything, trainable = clip.count_parameters(tiny.model)
    assert everything == trainable == sum(p.numel() for p in tiny.model.parameters())
    tiny.model.visual.requires_grad_(False)
    assert clip.count_parameters(tiny.model)[1] < everything


def test_attention_in_training_gives_the_same_numbers(tmp_path):
    """On the CPU in bf16 its kernels are chosen by hand: outputs and gradients stay within the precision."""
    clip_model = clip.create_model(write_config(tmp_path), "", None, torch.device("cpu"), seed=1)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    tokens = clip_model.tokenizer(["red dress", "blue shirt", "green hat with a long name", "shoes"])

    def gradients(context):
        clip_model.model.zero_grad()
        with context, clip.autocast(clip_model.device, "bf16"):
            scores = clip.encode_images(clip_model, images) @ clip.encode_texts(clip_model, tokens).T
            scores.float().diagonal().sum().backward()
        return torch.cat([p.grad.flatten() for p in clip_model.model.parameters() if p.grad is not None])

    clip_model.model.train()
    chosen = gradients(clip.training_attention(clip_model.device, "bf16"))
    usual = gradients(contextlib.nullcontext())
    assert torch.nn.functional.cosine_similarity(chosen, usual, dim=0) > 0.999
