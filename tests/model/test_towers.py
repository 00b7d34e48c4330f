"""Every parameter of every kind of tower has its place, and the places follow the order in which a tower computes."""

import copy
import re

import open_clip
import pytest
import torch
import transformers
from open_clip.hf_model import HFTextEncoder

from clip_finetuning.model import towers, tuning

# An architecture of open_clip -> blocks of both towers, and the last projections.
KINDS = {
    "ViT-B-32": (12, 2, "text_projection visual.proj"),
    "RN50": (16, 2, "text_projection visual.attnpool.c_proj"),
    "convnext_tiny": (18, 2, "text_projection visual.head.proj"),
    "swin_base_patch4_window7_224": (24, 2, "text_projection visual.head.proj"),
    "coca_ViT-B-32": (12, 2, "text.text_projection visual.proj"),
    "EVA02-B-16": (12, 2, "text.text_projection visual.trunk.head"),
    "MobileCLIP2-S0": (20, 2, "text.text_projection visual.trunk.head.fc"),
    "ViTamin-S": (14, 2, "text.text_projection visual.head.proj"),
    "ViT-B-16-SigLIP2": (12, 2, "text.text_projection visual.trunk.attn_pool visual.trunk.norm"),
}


def on_no_device(name):
    """The model of a config of open_clip, its text tower cut to two blocks, without memory for its weights."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["text_cfg"]["layers"] = 2
    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.device("meta"):
        return kind(**config).eval()


def used_by(model, compute):
    """Names of parameters in the order in which their modules compute first."""
    order: dict[str, None] = {}

    def note(names):
        return lambda *_: order.update(dict.fromkeys(names - order.keys()))

    outer = ("", "visual", "visual.trunk", "text")  # these hold parameters of both ends
    hooks = [
        module.register_forward_pre_hook(note({f"{path}.{n}" for n, _ in module.named_parameters(recurse=False)}))
        for path, module in model.named_modules()
        if path not in outer
    ]
    with torch.no_grad():
        compute()
    for hook in hooks:
        hook.remove()
    return list(order)


def assert_in_order(model, compute, image_blocks, text_blocks):
    places = towers.places(model)
    assert list(places) == [name for name, _ in model.named_parameters()]
    order = used_by(model, compute)
    for tower, blocks in (("image", image_blocks), ("text", text_blocks)):
        below = [places[name].below for name in order if places[name].tower == tower]
        assert below == sorted(below, reverse=True), tower
        assert {place.below for place in places.values() if place.tower == tower} == {*range(blocks + 2)}
    assert {name for name, place in places.items() if place.tower == "both"} <= {"logit_scale", "logit_bias"}


def heads(model):
    names = [name for name, place in towers.places(model).items() if place.is_head and place.tower != "both"]
    modules = {re.sub(r"\.(weight|bias)$", "", name) for name in names}
    return {re.sub(r"\d+$", "N", re.sub(r"(trunk\.attn_pool)\..*", r"\1", name)) for name in modules}


@pytest.mark.parametrize("name", KINDS)
def test_places_follow_the_order_of_computing(name):
    model = on_no_device(name)
    size = model.visual.image_size
    pixels = torch.empty(2, 3, *(size if isinstance(size, tuple) else (size, size)), device="meta")
    tokens = torch.empty(2, model.context_length, dtype=torch.long, device="meta")

    def compute():
        with torch.device("meta"):
            model.encode_image(pixels)
            model.encode_text(tokens[:, : 76 if "coca" in name else None])

    image_blocks, text_blocks, head = KINDS[name]
    assert_in_order(model, compute, image_blocks, text_blocks)
    assert heads(model) == {*head.split()}


HUGGING_FACE = {
    "roberta": transformers.RobertaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    ),
    "xlm-roberta": transformers.XLMRobertaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    ),
    "mt5": transformers.MT5Config(vocab_size=60, d_model=32, num_layers=2, num_heads=2, d_ff=32, d_kv=16),
    "m2m_100": transformers.M2M100Config(
        vocab_size=60, d_model=32, encoder_layers=4, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32
    ),
}


def hugging_face(kind, monkeypatch, proj="mlp"):
    """A tiny CustomTextCLIP whose text tower is of transformers."""
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: HUGGING_FACE[kind])
    monkeypatch.setattr("open_clip.hf_model.AutoConfig", transformers.AutoConfig)
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64}
    text = {"hf_model_name": kind, "hf_model_pretrained": False, "hf_proj_type": proj, "hf_pooler_type": "mean_pooler"}
    model = open_clip.CustomTextCLIP(16, vision, text).eval()
    assert isinstance(model.text, HFTextEncoder)
    return model


@pytest.mark.parametrize(("kind", "blocks"), [("roberta", 3), ("xlm-roberta", 2), ("mt5", 2), ("m2m_100", 4)])
def test_text_towers_of_transformers_have_their_places_too(kind, blocks, monkeypatch):
    model = hugging_face(kind, monkeypatch, "linear" if kind == "mt5" else "mlp")
    tokens = torch.randint(3, 60, (2, 8))
    assert_in_order(
        model, lambda: (model.encode_image(torch.zeros(2, 3, 32, 32)), model.encode_text(tokens)), 1, blocks
    )
    assert heads(model) == {"visual.proj", *(["text.proj"] if kind == "mt5" else ["text.proj.N"])}


def test_rates_fall_from_block_to_block_by_the_depth_of_each_tower():
    """By hand, for the two blocks of one tower and the one of the other."""
    text = {"context_length": 8, "vocab_size": 50, "layers": 1, "width": 32, "heads": 2}
    model = open_clip.CLIP(16, {"image_size": 32, "patch_size": 16, "layers": 2, "width": 64}, text)
    found = tuning.rates(model, layer_decay=0.5, image_rate=10, text_rate=3)
    patterns = {
        r"logit_scale": 1,
        r"visual\.(proj|ln_post\..*)": 10,
        r"visual\.transformer\.resblocks\.1\..*": 5,
        r"visual\.transformer\.resblocks\.0\..*": 2.5,
        r"visual\.(class_embedding|positional_embedding|conv1\..*|ln_pre\..*)": 1.25,
        r"text_projection|ln_final\..*": 3,
        r"transformer\.resblocks\.0\..*": 1.5,
        r"positional_embedding|token_embedding\..*": 0.75,
    }
    expected = {n: rate for n in found for pattern, rate in patterns.items() if re.fullmatch(pattern, n)}
    assert found == expected


class Unknown(torch.nn.Module):
    """A trunk of layers that no rule knows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)


def test_blocks_that_are_not_found_are_said_and_never_guessed():
    text = {"context_length": 8, "vocab_size": 50, "layers": 1, "width": 32, "heads": 2}
    model = open_clip.CLIP(16, {"image_size": 32, "patch_size": 16, "layers": 2, "width": 64}, text)
    model.visual = torch.nn.Module()
    model.visual.trunk, model.visual.head = Unknown(), torch.nn.Sequential()
    with pytest.raises(
        ValueError, match=r"LAYER_DECAY=0.5 .* image tower, .* in a Unknown: set LAYER_DECAY=1.*IMAGE_RATE=0"
    ):
        tuning.rates(model, layer_decay=0.5)
    locked = tuning.rates(model, layer_decay=0.5, image_rate=0)
    assert locked["visual.trunk.first.weight"] == 0 and locked["transformer.resblocks.0.ln_1.bias"] == 0.5
    assert {*tuning.rates(model).values()} == {1.0}
