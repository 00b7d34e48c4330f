"""What is locked is out of the way: its modes, and its share of the work."""

from types import SimpleNamespace

import pytest
import torch

import openClipManagement as clip
from clip_finetuning.model import clip_model as clip_models
from clip_finetuning.model.tuning import Tuning, apply, rates_of
from clip_finetuning.training.optimizer import MUON_RATE, create_optimizer, set_learning_rate
from clip_finetuning.training.step import train_step
from tests.helpers import TINY, write_config
from tests.training.test_step import a_plan

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
DROPPING = {**TINY["vision_cfg"], "patch_dropout": 0.5}
OPTIONS = {"learning_rate": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-6}


def tuned(tmp_path, tuning, vision=DROPPING):
    clip_model = clip.create_model(write_config(tmp_path, vision_cfg=vision))
    apply(clip_model, tuning)
    return clip_model


@pytest.mark.parametrize(
    ("tuning", "drops", "learns"),
    [
        (Tuning("full"), True, True),
        (Tuning("text"), False, False),
        (Tuning("head"), False, False),
        (Tuning("full", image_rate=0), False, False),
        (Tuning("image"), True, True),
    ],
)
def test_dropout_and_statistics_of_what_is_locked_belong_to_evaluation(tmp_path, tuning, drops, learns):
    model = tuned(tmp_path, tuning).model
    clip_models.training_mode(model, learn_statistics=True)
    assert model.training and model.visual.patch_dropout.training == drops
    norms = tuned(tmp_path, tuning, RESNET).model
    clip_models.training_mode(norms, learn_statistics=True)
    assert {norm.training for norm in clip_models.batch_norms(norms)} == {learns}


def test_the_dropout_before_a_head_that_trains_stays_one():
    head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 4))
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)), head)
    model[0].requires_grad_(False)
    clip_models.training_mode(model, learn_statistics=False)
    assert [module.training for module in (model[0][1], head[0])] == [False, True]


@pytest.mark.parametrize(("tune", "images", "texts"), [("full", 4, 4), ("image", 4, 2), ("text", 2, 4), ("head", 4, 4)])
def test_a_locked_tower_embeds_each_micro_batch_once_a_step(tmp_path, monkeypatch, tune, images, texts):
    clip_model, calls = tuned(tmp_path, Tuning(tune)), {"encode_images": 0, "encode_texts": 0}

    def counted(name, encode):
        def counting(*arguments):
            calls[name] += 1
            return encode(*arguments)

        return counting

    for name in calls:
        monkeypatch.setattr(clip_models, name, counted(name, getattr(clip_models, name)))
    identities = torch.arange(6)[:, None].expand(-1, 2).contiguous()
    tokens = clip_model.tokenizer([f"caption {number}" for number in range(6)])
    batch = SimpleNamespace(images=torch.zeros(6, 3, 32, 32, dtype=torch.uint8), tokens=tokens, identities=identities)
    optimizer = create_optimizer(clip_model.model, **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_step(clip_model, optimizer, scaler, batch, a_plan(), step=0, micro_batch_size=3)
    assert calls == {"encode_images": images, "encode_texts": texts}


def test_each_parameter_moves_at_its_rate_with_muon_too(tmp_path):
    tuning = Tuning("full", layer_decay=0.5, text_rate=0.25)
    clip_model = tuned(tmp_path, tuning)
    factors = rates_of(clip_model.model, tuning)
    optimizer = create_optimizer(clip_model.model, kind="muon", rates=factors, **OPTIONS)
    set_learning_rate(optimizer, 0.1)
    groups = optimizer.param_groups
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(factors)
    for group in groups:
        times = MUON_RATE if "momentum" in group else 1
        assert [factors[name] * times * 0.1 for name in group["param_names"]] == pytest.approx(
            [group["lr"]] * len(group["params"])
        )


def test_fixed_tables_of_positions_stay_fixed(tmp_path):
    clip_model = clip.create_model(
        write_config(tmp_path, vision_cfg={**TINY["vision_cfg"], "pos_embed_type": "sin_cos_2d"})
    )
    for tuning in (Tuning("image"), Tuning("full", layer_decay=0.5)):
        assert apply(clip_model, tuning)["visual.positional_embedding"] == 0
    assert not clip_model.model.visual.positional_embedding.requires_grad


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    clip_model = clip.create_model(write_config(tmp_path))
    clip_model.model.visual.requires_grad_(False)
    with pytest.raises(ValueError, match="TUNE=image leaves nothing of tiny-test to train: choose another TUNE"):
        apply(clip_model, Tuning("image"))
