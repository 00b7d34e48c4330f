"""Which parameters decay, which AdamW runs, and the learning rate of every step."""

import itertools
import math
import re
from types import SimpleNamespace

import open_clip
import pytest
import timm.models.convnext as timm_convnext
import timm.models.eva as timm_eva
import timm.models.fastvit as timm_fastvit
import timm.models.swin_transformer as timm_swin
import timm.models.swin_transformer_v2 as timm_swin_v2
import timm.models.vision_transformer as timm_vits
import torch

from clip_finetuning.model import lora
from clip_finetuning.model.low_rank import is_addition
from clip_finetuning.training.optimizer import (
    MUON_RATE,
    count_moments,
    create_optimizer,
    decaying,
    hidden_matrices,
    learning_rate_at,
    load_state,
    pick_optimizer,
    set_learning_rate,
    warmup_complaints,
)

OPTIONS = {"learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-6}


def tiny_model(**options):
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64}
    text = {"context_length": 8, "vocab_size": 50, "layers": 1, "width": 32, "heads": 2}
    return open_clip.CLIP(embed_dim=16, vision_cfg={**vision, **options}, text_cfg=text)


def coca():
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "ls_init_value": 1e-4}
    pooled = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True}
    text = {"context_length": 8, "vocab_size": 50, "layers": 1, "width": 32, "heads": 2}
    return open_clip.CoCa(16, text, {**text, "embed_cls": True, "output_tokens": True}, {**vision, **pooled})


def scaled_attention():
    return tiny_model(scaled_cosine_attn=True, scale_heads=True)


def resnet():
    return tiny_model(layers=[1, 1, 1, 1], width=8)


def timm_vit():
    """SigLIP's and Perception Encoder's: pooled by attention; with register tokens and layer scales."""
    options = {"global_pool": "map", "reg_tokens": 2, "init_values": 1e-4, "num_classes": 4}
    return timm_vits.VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, **options)


def eva():
    options = {"init_values": 1e-4, "num_reg_tokens": 1, "qkv_fused": False, "num_classes": 4}
    return timm_eva.Eva(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, **options)


def swin():
    options = {"depths": (1, 1), "num_heads": (2, 2), "num_classes": 4}
    return timm_swin.SwinTransformer(img_size=32, patch_size=4, window_size=4, embed_dim=16, **options)


def swin_v2():
    options = {"depths": (1, 1), "num_heads": (2, 2), "num_classes": 4}
    return timm_swin_v2.SwinTransformerV2(img_size=32, patch_size=4, window_size=4, embed_dim=16, **options)


def convnext():
    return timm_convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), num_classes=4)


def mobile_clip():
    options = {"token_mixers": ("repmixer", "repmixer", "repmixer", "attention"), "num_classes": 4}
    return timm_fastvit.FastVit(layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64), mlp_ratios=(1, 1, 1, 1), **options)


class HuggingFaceTower(torch.nn.Module):
    """The layers of a BERT and of a T5 under Hugging Face's names, for its library need not be there."""

    def __init__(self):
        super().__init__()
        embeddings, layer = torch.nn.Module(), torch.nn.Module()
        embeddings.word_embeddings = torch.nn.Embedding(50, 32)
        embeddings.position_embeddings = torch.nn.Embedding(16, 32)
        embeddings.token_type_embeddings = torch.nn.Embedding(2, 32)
        embeddings.LayerNorm = torch.nn.LayerNorm(32)
        layer.query = torch.nn.Linear(32, 32)
        layer.relative_attention_bias = torch.nn.Embedding(32, 2)
        self.embeddings, self.encoder = embeddings, torch.nn.ModuleList([layer])

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings


# A family of towers -> the last two parts of the names of what decays, and of what does not; numbers are N.
BLOCK = "attn.in_proj_weight out_proj.weight c_fc.weight c_proj.weight"
BLOCK_NOT = "attn.in_proj_bias out_proj.bias c_fc.bias c_proj.bias ln_N.weight ln_N.bias"
TEXT, TEXT_NOT = (
    "token_embedding.weight text_projection",
    "positional_embedding ln_final.weight ln_final.bias logit_scale",
)
VIT, VIT_NOT = (
    "convN.weight visual.proj",
    "visual.class_embedding visual.positional_embedding ln_pre.weight ln_pre.bias",
)
VIT_NOT += " ln_post.weight ln_post.bias"
FAMILIES = {
    tiny_model: (f"{BLOCK} {TEXT} {VIT}", f"{BLOCK_NOT} {TEXT_NOT} {VIT_NOT}"),
    coca: (
        f"{BLOCK} {VIT} token_embedding.weight text.text_projection text_decoder.text_projection attn.q_proj_weight "
        "attn.k_proj_weight attn.v_proj_weight",
        f"{BLOCK_NOT} {VIT_NOT} text.positional_embedding text.cls_emb ln_final.weight ln_final.bias logit_scale ls_N.gamma "
        "attn_pool.query ln_q.weight ln_q.bias ln_k.weight ln_k.bias ln_N_kv.weight ln_N_kv.bias",
    ),
    scaled_attention: (f"{BLOCK} {TEXT} {VIT}", f"{BLOCK_NOT} {TEXT_NOT} {VIT_NOT} attn.logit_scale attn.head_scale"),
    resnet: (
        f"{BLOCK} {TEXT} convN.weight N.weight q_proj.weight k_proj.weight v_proj.weight",
        f"{BLOCK_NOT} {TEXT_NOT} attnpool.positional_embedding bnN.weight bnN.bias N.weight/1 N.bias q_proj.bias "
        "k_proj.bias v_proj.bias",
    ),
    timm_vit: (
        "proj.weight qkv.weight fcN.weight q.weight kv.weight head.weight",
        "cls_token reg_token pos_embed attn_pool.latent lsN.gamma proj.bias qkv.bias fcN.bias q.bias kv.bias head.bias "
        "norm.weight norm.bias normN.weight normN.bias",
    ),
    eva: (
        "proj.weight q_proj.weight k_proj.weight v_proj.weight fcN.weight head.weight",
        "cls_token reg_token pos_embed N.gamma_N proj.bias q_proj.bias v_proj.bias fcN.bias head.bias fc_norm.weight "
        "fc_norm.bias normN.weight normN.bias",
    ),
    swin: (
        "proj.weight qkv.weight fcN.weight reduction.weight fc.weight",
        "attn.relative_position_bias_table proj.bias qkv.bias fcN.bias fc.bias norm.weight norm.bias normN.weight normN.bias",
    ),
    swin_v2: (
        "proj.weight qkv.weight fcN.weight reduction.weight fc.weight N.weight",
        "attn.logit_scale attn.q_bias attn.v_bias N.bias proj.bias fcN.bias fc.bias norm.weight norm.bias normN.weight normN.bias",
    ),
    convnext: (
        "N.weight conv_dw.weight fcN.weight fc.weight",
        "N.gamma N.weight/1 N.bias conv_dw.bias fcN.bias fc.bias norm.weight norm.bias",
    ),
    mobile_clip: (
        "conv.weight proj.weight qkv.weight fcN.weight fc.weight",
        "layer_scale.gamma layer_scale_N.gamma bn.weight bn.bias identity.weight identity.bias norm.weight norm.bias "
        "proj.bias fcN.bias fc.bias",
    ),
    HuggingFaceTower: (
        "word_embeddings.weight query.weight",
        "position_embeddings.weight token_type_embeddings.weight relative_attention_bias.weight LayerNorm.weight "
        "LayerNorm.bias query.bias",
    ),
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_only_matrices_decay(family):
    model = family()
    decay = {id(p) for p in decaying(model)}
    found = {True: set(), False: set()}
    for name, p in model.named_parameters():
        short = re.sub(r"\d+", "N", ".".join(name.split(".")[-2:]))
        found[id(p) in decay].add(short + "/1" * (short == "N.weight" and p.ndim == 1))
    assert (found[True], found[False]) == tuple(set(names.split()) for names in FAMILIES[family])


def test_every_trainable_parameter_is_in_one_group():
    model = tiny_model()
    model.visual.proj.requires_grad_(False)
    optimizer = create_optimizer(model, **OPTIONS)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.defaults["fused"] is True
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_fused_step_is_the_default_step():
    """On the same gradients; and without gradient, decay shrinks the matrices alone."""
    models = [tiny_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = create_optimizer(models[0], **OPTIONS)
    groups = [{"params": ps, "weight_decay": wd} for ps, wd in _by_decay(models[1])]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=False, foreach=False)
    for seed in range(3):
        for model, optimizer in zip(models, (ours, reference)):
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p) if seed else torch.zeros_like(p)
            optimizer.step()
    for p, q in zip(*(m.parameters() for m in models)):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def _by_decay(model):
    matrices = decaying(model)
    kept = {id(p) for p in matrices}
    return (matrices, 0.1), ([p for p in model.parameters() if id(p) not in kept], 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_model_without_trainable_parameters_is_refused(kind):
    with pytest.raises(ValueError, match="no trainable parameters"):
        create_optimizer(tiny_model().requires_grad_(False), kind=kind, **OPTIONS)


# ---------------------------------------------------------------------------------------------------- Muon


def names_of(model, parameters):
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for p in parameters}


def test_muon_gets_what_activations_are_multiplied_by():
    model = tiny_model()
    block = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    towers = ("transformer", "visual.transformer")
    inner = {f"{tower}.resblocks.0.{name}" for tower in towers for name in block}
    assert names_of(model, hidden_matrices(model)) == inner | {"visual.proj", "text_projection"}


def test_no_kernel_no_embedding_and_no_query_is_for_muon():
    queries = tiny_model(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2)
    assert "visual.attn_pool.query" not in names_of(queries, hidden_matrices(queries))
    assert "visual.attn_pool.attn.q_proj_weight" in names_of(queries, hidden_matrices(queries))
    kernels = resnet()
    names = names_of(kernels, hidden_matrices(kernels))
    assert "visual.attnpool.q_proj.weight" in names
    assert not [name for name in names if "conv" in name or "embedding" in name]


def test_muon_and_adamw_share_the_parameters_and_the_schedule():
    model = tiny_model()
    model.visual.proj.requires_grad_(False)
    optimizer = create_optimizer(model, kind="muon", **OPTIONS)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * MUON_RATE, 0.5, 0.5]
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    assert count_moments(optimizer) == 2 * sum(sizes) - sum(p.numel() for p in hidden_matrices(model))
    assert count_moments(create_optimizer(model, **OPTIONS)) == 2 * sum(sizes)


def test_the_state_of_both_is_that_of_one_optimizer_and_goes_on_to_the_bit(tmp_path):
    models = [tiny_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [create_optimizer(model, kind="muon", **OPTIONS) for model in models]
    for seed in range(2):
        for model, optimizer in zip(models, optimizers):
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        state = optimizers[1].state_dict()
        assert sorted(state["state"]) == sorted(n for group in state["param_groups"] for n in group["params"])
        torch.save(state, tmp_path / "state.pt")
        optimizers[1] = create_optimizer(models[1], kind="muon", **OPTIONS)
        optimizers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in models)))


def before_there_were_names(model, state, muon):
    """A checkpoint's optimizer as it was numbered by dimensions and words in names."""
    words = ("positional_embedding", "pos_embed", "cls_token", "bias")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first = {id(p) for p in hidden_matrices(model)} if muon else set()
    rest = [(name, p) for name, p in named if id(p) not in first]
    matrices = [name for name, p in rest if p.ndim >= 2 and not any(word in name for word in words)]
    groups = [[name for name, p in named if id(p) in first]] * muon
    groups += [matrices, [name for name, _ in rest if name not in matrices]]
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    saved = zip((name for group in state["param_groups"] for name in group["param_names"]), sorted(state["state"]))
    return {
        "state": {numbers[name]: state["state"][number] for name, number in saved},
        "param_groups": [
            {"params": [numbers[name] for name in group], "weight_decay": 0.1 * (group is not groups[-1])}
            | ({"momentum": 0.95} if muon and group is groups[0] else {})
            for group in groups
        ],
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(("family", "spared"), [(coca, ["visual.attn_pool.query"]), (tiny_model, [])])
def test_moments_from_before_there_were_names_go_to_their_parameters(family, spared, kind):
    model = family()
    optimizer, again = (create_optimizer(model, kind=kind, **OPTIONS) for _ in range(2))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    expected = optimizer.state_dict()
    assert load_state(again, model, before_there_were_names(model, expected, kind == "muon")) == spared
    found = again.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, moments in expected["state"].items():
        assert all(torch.equal(found["state"][number][key], value) for key, value in moments.items())


def test_moments_of_other_parameters_are_refused():
    model = tiny_model()
    state = create_optimizer(model, **OPTIONS).state_dict()
    model.visual.proj.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"has 38 parameters, the model trains 37 \(visual.proj \.\.\.\): start a new run"
    ):
        load_state(create_optimizer(model, **OPTIONS), model, state)


def test_a_step_that_overflows_in_fp16_moves_neither_of_them():
    model = tiny_model()
    optimizer, scaler = create_optimizer(model, kind="muon", **OPTIONS), torch.amp.GradScaler("cpu")
    before = [p.clone() for p in model.parameters()]
    for scale in (math.inf, 1.0):
        scaler.scale(sum((p * scale).sum() for p in model.parameters())).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before)]
        assert not any(moved) if scale == math.inf else all(moved)
        model.zero_grad()


def test_auto_takes_muon_for_random_weights_unless_the_batch_is_too_small_for_it():
    model = tiny_model()  # 64 wide
    assert pick_optimizer("auto", model, 16, untrained=True) == "muon"
    assert pick_optimizer("auto", model, 15, untrained=True) == "adamw"
    assert pick_optimizer("auto", model, 4096, untrained=False) == "adamw"
    assert pick_optimizer("muon", model, 1, untrained=False) == "muon"
    assert pick_optimizer("adamw", model, 4096, untrained=True) == "adamw"


# ------------------------------------------------------------------------------------------- learning rate


def test_warmup_and_cosine():
    def rates(**options):
        return [learning_rate_at(s, peak=2.0, total_steps=110, warmup_steps=10, **options) for s in range(110)]

    cosine = rates()
    assert cosine[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert cosine[10] == 2.0 == max(cosine)
    assert cosine[60] == pytest.approx(1.0)
    assert cosine[109] == pytest.approx(1 + math.cos(math.pi * 0.99))
    assert all(a > b > 0 for a, b in itertools.pairwise(cosine[10:]))
    assert rates(schedule="constant") == cosine[:10] + [2.0] * 100


def test_no_warmup_and_a_single_step():
    assert learning_rate_at(0, peak=3.0, total_steps=1, warmup_steps=0) == 3.0
    assert learning_rate_at(5, peak=3.0, total_steps=5, warmup_steps=0) == 0.0


def test_a_warmup_longer_than_half_is_complained_of():
    assert warmup_complaints(50, 100) == warmup_complaints(0, 1) == []
    (complaint,) = warmup_complaints(51, 100)
    assert re.search(r"WARMUP_STEPS=51 is more than half of the 100 steps .* at most 50", complaint)


def test_loras_additions_are_for_decay_and_for_muon_and_locked_weights_for_nobody():
    model = tiny_model()
    lora.add(SimpleNamespace(model=model, name="tiny", pretrained="", lora=None), lora.Lora(2, 4.0))
    additions = {name for name, _ in model.named_parameters() if is_addition(name)}
    assert names_of(model, hidden_matrices(model)) == additions
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {*additions, "logit_scale"} and names_of(model, decaying(model)) & trained == additions
    optimizer = create_optimizer(model, **OPTIONS, kind="muon")
    held = [name for group in optimizer.state_dict()["param_groups"] for name in group["param_names"]]
    assert sorted(held) == sorted(trained) and count_moments(optimizer) == 2 + sum(
        parameter.numel() for name, parameter in model.named_parameters() if name in additions
    )
