"""Low-rank additions: the output unchanged at the start, one pair for each of q, k and v, what is merged equals what trained."""

import copy
from collections import Counter
from types import SimpleNamespace

import open_clip
import pytest
import torch

from clip_finetuning.model import fast_towers, lora, lora_file, low_rank
from clip_finetuning.model.clip_model import batch_norms, checkpoint_gradients
from clip_finetuning.model.fingerprint import fingerprint
from clip_finetuning.model.lora import Lora
from tests.model import test_fast_towers as towers

TIMM = "test_vit2"  # timm's own tiny one, as it is in SigLIP


def timm_vit():
    vision = {"timm_model_name": TIMM, "timm_pool": "map", "timm_proj": "none", "image_size": 32}
    return open_clip.CustomTextCLIP(64, vision, towers.TEXT | towers.BIDIRECTIONAL)


def hugging_face(kind="roberta"):
    from transformers import AutoConfig

    sizes = {
        "roberta": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
        "mt5": {"d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8, "num_layers": 2},
        "distilbert": {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2},
        "modernbert": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return AutoConfig.for_model(kind, vocab_size=towers.VOCABULARY, **sizes[kind], **special)


def with_text_of(kind):
    model = towers.custom_text_clip()
    options = {"config": hugging_face(kind), "pretrained": False, "proj_type": "linear"}
    model.text = open_clip.hf_model.HFTextEncoder("none", 16, **options)
    if kind == "mt5":  # as open_clip does by a name
        model.text.transformer = model.text.transformer.encoder
    return model


class AnyTower(torch.nn.Module):
    """As much of a model as is looked through for matrices."""

    def __init__(self, encoder):
        super().__init__()
        self.text = torch.nn.Module()
        self.text.transformer = encoder


KINDS = {
    "ViT": towers.clip,
    "ResNet": lambda: towers.clip(vision=towers.RESNET),
    "text tower of its own": towers.custom_text_clip,
    "CoCa": towers.coca,
    "SigLIP's text": lambda: towers.custom_text_clip(towers.BIDIRECTIONAL),
    "timm": timm_vit,
    "roberta": lambda: with_text_of("roberta"),
    "mt5": lambda: with_text_of("mt5"),
}


def made(kind):
    """A model of a kind, as much of a ClipModel as additions need, and pixels and tokens for it."""
    torch.manual_seed(0)
    model = KINDS[kind]() if isinstance(kind, str) else kind()
    size = getattr(model.visual, "image_size", 16)
    size = size[0] if isinstance(size, tuple) else size
    pixels = torch.randn(3, 3, size, size)
    tokens = torch.randint(3, towers.END, (3, towers.LENGTH))
    tokens[:, -1] = towers.END
    clip_model = SimpleNamespace(model=model, name="tiny", pretrained="there.pt", lora=None)
    return clip_model, pixels, tokens


def merged(model):
    return lora.merged(model.state_dict(), next(low_rank.low_ranks(model)).scale)


def embeddings(model, pixels, tokens, graph):
    """Of both towers, in evaluation and in training, by open_clip's own way and by the fast one."""
    found = []
    for training in (False, True):
        model.train(training)
        for norm in batch_norms(model):
            norm.eval()
        with torch.set_grad_enabled(graph):
            for module in (model, fast_towers):
                torch.manual_seed(1)  # of dropout in Hugging Face's towers
                of = (model,) if module is fast_towers else ()
                found += [module.encode_image(*of, pixels), module.encode_text(*of, tokens)]
    return found


def move(model):
    """Let the additions be what a training might have made of them."""
    for addition in low_rank.low_ranks(model):
        for parameter in addition.parameters():
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_unchanged_to_the_bit_then_what_is_merged_equals_what_trained(kind, graph):
    clip_model, pixels, tokens = made(kind)
    model = clip_model.model
    wanted = {matrix.name for matrix in lora.matrices(model)}
    for name, parameter in model.named_parameters():  # torch takes other kernels where a gradient is needed
        parameter.requires_grad_(graph and name in wanted)
    plain, before = copy.deepcopy(model), embeddings(model, pixels, tokens, graph)
    fast = fast_towers.is_image_fast(model), fast_towers.is_text_fast(model)
    lora.add(clip_model, Lora(2, 4.0))
    assert (fast_towers.is_image_fast(model), fast_towers.is_text_fast(model)) == fast
    assert all(map(torch.equal, before, embeddings(model, pixels, tokens, graph)))
    move(model)
    after = embeddings(model, pixels, tokens, graph)
    assert not any(map(torch.equal, before, after))
    plain.load_state_dict(merged(model))
    for one, other in zip(after, embeddings(plain, pixels, tokens, graph)):
        assert torch.allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_additions_and_the_scalars_of_the_loss_train_and_nothing_else(kind):
    clip_model, pixels, tokens = made(kind)
    model = clip_model.model.train()
    added = lora.add(clip_model, Lora(2, 4.0))
    move(model)
    similarity = fast_towers.encode_image(model, pixels) @ fast_towers.encode_text(model, tokens).T
    (similarity * model.logit_scale.exp()).square().sum().backward()
    for name, parameter in model.named_parameters():
        trains = low_rank.is_addition(name) or name == "logit_scale"
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trains, name
    assert {tower for tower, _ in added.counts} == {"image", "text"}


EXPECTED = {  # matrices by tower and target
    "ViT": {("image", "qkv"): 2, ("image", "out"): 2, ("image", "mlp"): 4},
    "ResNet": {("image", "qkv"): 3, ("image", "out"): 1},
    "timm": {("image", "qkv"): 10, ("image", "out"): 9, ("image", "mlp"): 18},  # of 8 blocks and of the pooling
    "CoCa": {("image", "qkv"): 3, ("image", "out"): 3, ("image", "mlp"): 4},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_matrix_of_the_image_tower_is_found(kind):
    added = lora.add(made(kind)[0], Lora(2, 4.0))
    assert {key: count for key, count in added.counts.items() if key[0] == "image"} == EXPECTED[kind]


@pytest.mark.parametrize(
    "kind, of_a_layer",
    [
        ("roberta", {"qkv": 3, "out": 1, "mlp": 2}),
        ("mt5", {"qkv": 3, "out": 1, "mlp": 3}),
        ("distilbert", {"qkv": 3, "out": 1, "mlp": 2}),
        ("modernbert", {"qkv": 1, "out": 1, "mlp": 2}),
    ],
)
def test_every_matrix_of_a_hugging_face_tower_is_found(kind, of_a_layer):
    from transformers import AutoModel, MT5EncoderModel

    config = hugging_face(kind)
    encoder = MT5EncoderModel(config) if kind == "mt5" else AutoModel.from_config(config)
    found = Counter(matrix.target for matrix in lora.matrices(AnyTower(encoder)))
    assert found == {target: 2 * count for target, count in of_a_layer.items()}


def test_queries_keys_and_values_have_pairs_of_their_own():
    clip_model, *_ = made("ViT")
    model, name = clip_model.model, "transformer.resblocks.1.attn.in_proj_weight"
    before = model.state_dict()[name].clone()
    lora.add(clip_model, Lora(2, 6.0, targets="qkv"))
    pairs = low_rank.by_weight(low_rank.additions(model.state_dict()))[name]
    assert {part: tuple(value.shape) for part, value in pairs.items()} == {
        **dict.fromkeys(("Aq", "Ak", "Av"), (2, 16)),
        **dict.fromkeys(("Bq", "Bk", "Bv"), (16, 2)),
    }
    torch.nn.init.normal_(pairs["Bk"])
    change = merged(model)[name] - before
    assert not change[:16].any() and not change[32:].any()
    assert torch.allclose(change[16:32], 3 * pairs["Bk"] @ pairs["Ak"], atol=1e-6)


def test_what_is_missing_in_a_tower_is_said():
    assert str(lora.add(made("ResNet")[0], Lora(2, 4.0))) == (
        "rank 2, alpha 4, added to 3 qkv, 1 out in the image tower (it has no mlp); 2 qkv, 2 out, 4 mlp in the text tower"
    )
    assert "nothing in the image tower; 4 mlp in the text tower" in str(
        lora.add(made("ResNet")[0], Lora(2, 4.0, targets="mlp"))
    )


def test_dropout_leaves_out_inputs_and_keeps_the_expected_value():
    weight = torch.zeros(8, 1000)
    addition = low_rank.LowRank(weight, ("",), Lora(2, 4.0, dropout=0.25))
    torch.nn.init.normal_(addition.B)
    whole = addition.eval()(weight)
    dropped = addition.train()(weight)
    gone = (dropped == 0).all(0)
    assert 180 < gone.sum() < 320  # of 1000, a quarter is dropped
    assert torch.allclose(dropped[:, ~gone], whole[:, ~gone] / 0.75, atol=1e-6)
    torch.manual_seed(3)
    first = addition(weight)
    torch.manual_seed(3)
    assert torch.equal(first, addition(weight)) and not torch.equal(first, dropped)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["ViT", "timm", "roberta"])
def test_gradients_are_the_same_when_activations_are_computed_again(kind, dropout):
    clip_model, pixels, tokens = made(kind)
    model = clip_model.model.train()
    lora.add(clip_model, Lora(2, 4.0, dropout))
    move(model)
    gradients = []
    for again in (False, True):
        if again:
            checkpoint_gradients(clip_model)
        torch.manual_seed(5)
        similarity = fast_towers.encode_image(model, pixels) @ fast_towers.encode_text(model, tokens).T
        names, trained = zip(*((n, p) for n, p in model.named_parameters() if low_rank.is_addition(n)))
        gradients.append(torch.autograd.grad(similarity.square().sum(), trained))
    for name, one, other in zip(names, *gradients):
        assert one.any() and torch.allclose(one, other, rtol=1e-4, atol=1e-5), name


def test_half_precision_does_not_round_the_additions():
    clip_model, *_ = made("ViT")
    lora.add(clip_model, Lora(2, 4.0))
    move(clip_model.model)
    block = clip_model.model.transformer.resblocks[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = block.mlp.c_fc.weight
    assert torch.equal(weight, merged(clip_model.model)["transformer.resblocks.0.mlp.c_fc.weight"])


def test_a_seed_draws_the_same_additions():
    states = []
    for seed in (1, 1, 2):
        clip_model, *_ = made("ViT")
        torch.manual_seed(len(states))
        lora.add(clip_model, Lora(2, 4.0), seed)
        states.append(lora_file.trained(clip_model.model.state_dict()))
    same = [all(torch.equal(states[0][name], other[name]) for name in other) for other in states]
    assert same == [True, True, False]


@pytest.mark.parametrize(
    "settings, words",
    [
        (Lora(2, 4.0, targets="qkv,fc1"), "LORA_TARGETS=qkv,fc1 is not allowed: 'fc1' is none of qkv, out, mlp"),
        (Lora(2, 4.0, targets=""), "'' is none of qkv, out, mlp"),
        (
            Lora(17, 4.0),
            r"LORA_RANK=17 is larger than the matrix visual\.\S+in_proj_weight, 16 x 16: set it to at most 16",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_model_as_it_was(settings, words):
    clip_model, *_ = made("ViT")
    with pytest.raises(ValueError, match=words):
        lora.add(clip_model, settings)
    assert all(parameter.requires_grad for parameter in clip_model.model.parameters())
    assert not list(low_rank.low_ranks(clip_model.model))


def test_a_model_without_any_target_is_refused():
    clip_model, *_ = made(towers.other_towers)
    with pytest.raises(ValueError, match="TUNE=lora finds no matrices for LORA_TARGETS=qkv,out,mlp in tiny"):
        lora.add(clip_model, Lora(2, 4.0))


def test_the_fingerprint_is_of_the_base_alone():
    clip_model, *_ = made("ViT")
    model = clip_model.model
    before = fingerprint(model.state_dict())
    assert lora.add(clip_model, Lora(2, 4.0)).base == lora.Base("tiny", "there.pt", before)
    move(model)
    model.logit_scale.data += 1
    assert fingerprint(model.state_dict()) == before
    model.visual.conv1.weight.data[0, 0, 0, 0] += 1e-6
    assert fingerprint(model.state_dict()) != before
