"""The loss that holds a model to its frozen start, against its formulas, and in a step."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

import openClipManagement as clip
from clip_finetuning.model import clip_model as clip_model_module
from clip_finetuning.training import losses, optimizer
from clip_finetuning.training.anchor import Anchor, embedding_distance, frozen, similarity_distance
from clip_finetuning.training.step import train_step
from tests.helpers import write_config
from tests.training.test_step import a_plan

SCALE = 7.0


def embeddings(seed, number=5, dimensions=4):
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(number, dimensions, generator=random), dim=1)


FOUR = [embeddings(seed) for seed in range(4)]  # images, texts, and the start's


def divergence(rows, targets):
    """KL of softmax(rows) from softmax(targets), number by number."""
    total = 0.0
    for row, target in zip(rows.tolist(), targets.tolist()):
        q, p = ([math.exp(SCALE * value) for value in values] for values in (row, target))
        q, p = [value / sum(q) for value in q], [value / sum(p) for value in p]
        total += sum(there * math.log(there / here) for there, here in zip(p, q))
    return total / len(rows)


def test_the_distances_are_those_of_the_formulas():
    images, texts, start_images, start_texts = FOUR
    cosines = [sum(a * b for a, b in zip(x, y)) for x, y in zip(images.tolist(), start_images.tolist())]
    cosines += [sum(a * b for a, b in zip(x, y)) for x, y in zip(texts.tolist(), start_texts.tolist())]
    assert embedding_distance(*FOUR).item() == pytest.approx(1 - sum(cosines) / 10, abs=1e-6)
    now, then = images @ texts.T, start_images @ start_texts.T
    expected = (divergence(now, then) + divergence(now.T, then.T)) / 2
    assert similarity_distance(*FOUR, torch.tensor(SCALE)).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def parts(tmp_path):
    """(model, optimizer, scaler, batch) of a tiny training, without randomness."""
    clip_model = clip.create_model(write_config(tmp_path))
    adamw = optimizer.create_optimizer(
        clip_model.model, learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6
    )
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=random)
    tokens = clip_model.tokenizer([f"caption {number} " * (number + 1) for number in range(6)])
    batch = SimpleNamespace(images=images, tokens=tokens, identities=torch.tensor([0, 0, 1, 2, 3, 4]))
    return clip_model, adamw, torch.amp.GradScaler("cpu", enabled=False), batch


def moved(clip_model):
    """A start from which the model has gone away, so that its loss pulls."""
    start = frozen(clip_model)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in clip_model.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return start


@pytest.mark.parametrize("kind", ["embeddings", "similarities", "both"])
@pytest.mark.parametrize("micro_batch_size", [6, 4])
def test_a_step_has_the_gradient_of_both_losses(parts, kind, micro_batch_size):
    clip_model, adamw, scaler, batch = parts
    start = moved(clip_model)
    model = clip_model.model
    # ---- by hand, with open_clip's own embeddings
    model.eval()
    pair = clip.encode_images(clip_model, batch.images), clip.encode_texts(clip_model, batch.tokens)
    with torch.no_grad():
        begun = clip.encode_images(start, batch.images), clip.encode_texts(start, batch.tokens)
    distances = {
        "embeddings": embedding_distance(*pair, *begun),
        "similarities": similarity_distance(*pair, *begun, start.model.logit_scale.exp()),
    }
    distances["both"] = sum(distances.values())
    contrastive = losses.clip_loss(*pair, batch.identities, model.logit_scale.exp())
    expected = torch.autograd.grad(contrastive + 3 * distances[kind], list(model.parameters()))
    # ---- by a step
    plan = a_plan(grad_clip_norm=None)
    anchor = Anchor(start, 3.0, kind)
    done = train_step(clip_model, adamw, scaler, batch, plan, step=0, micro_batch_size=micro_batch_size, anchor=anchor)
    assert done.loss.item() == pytest.approx((contrastive + 3 * distances[kind]).item(), rel=1e-4)
    assert done.anchor_loss.item() == pytest.approx(3 * distances[kind].item(), rel=1e-4)
    assert done.record["anchor_loss"] is done.anchor_loss
    for (name, parameter), gradient in zip(model.named_parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, atol=2e-5, rtol=2e-3, msg=name)
    assert all(p.grad is None for p in start.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_the_start_there_is_nothing_to_hold(parts, precision):
    """The same pixels, the same way through the towers, also under autocast: the distance is nil."""
    plan, start = a_plan(precision=precision), frozen(parts[0])
    done = train_step(*parts, plan, step=0, micro_batch_size=6, anchor=Anchor(start, 1.0, "both"))
    assert done.anchor_loss.item() == pytest.approx(0, abs=1e-6)


def test_an_anchor_of_no_weight_changes_no_bit_and_none_is_not_logged(parts):
    before = {name: value.clone() for name, value in parts[0].model.state_dict().items()}
    free = train_step(*parts, a_plan(), step=0, micro_batch_size=6)
    after = {name: value.clone() for name, value in parts[0].model.state_dict().items()}
    parts[0].model.load_state_dict(before)
    parts[1].state.clear()
    train_step(*parts, a_plan(), step=0, micro_batch_size=6, anchor=Anchor(frozen(parts[0]), 0.0))
    assert all(torch.equal(value, after[name]) for name, value in parts[0].model.state_dict().items())
    assert "anchor_loss" not in free.record


@pytest.mark.parametrize("kind", ["embeddings", "similarities"])
def test_the_anchored_model_stays_nearer(parts, kind):
    ways, before = [], {name: value.clone() for name, value in parts[0].model.state_dict().items()}
    start = frozen(parts[0])
    for weight in (0.0, 10.0):
        parts[0].model.load_state_dict(before)
        parts[1].state.clear()
        for step in range(6):
            anchor = Anchor(start, weight, kind)
            train_step(*parts, a_plan(), step=step, micro_batch_size=6, anchor=anchor)
        batch = parts[3].images, parts[3].tokens
        now = Anchor(parts[0], 1.0).targets(*batch)
        ways.append(Anchor(start, 1.0, kind).loss(*now, *anchor.targets(*batch)).item())
    assert ways[1] < 0.8 * ways[0]


def test_the_start_embeds_a_step_once_and_stays_what_it_was(parts, monkeypatch):
    start, seen, real = frozen(parts[0]), [], clip_model_module.encode_images
    before = {name: value.clone() for name, value in start.model.state_dict().items()}

    def encode(clip_model, images, fast=False):
        if clip_model is start:
            seen.append(len(images))
            assert not torch.is_grad_enabled() and not clip_model.model.training
        return real(clip_model, images, fast)

    monkeypatch.setattr(clip_model_module, "encode_images", encode)
    train_step(*parts, a_plan(), step=0, micro_batch_size=4, anchor=Anchor(start, 1.0))
    assert seen == [4, 2]
    assert all(torch.equal(value, before[name]) for name, value in start.model.state_dict().items())


def test_a_frozen_copy_has_what_is_parametrized_worked_in(parts):
    model = parts[0].model
    expected = model.visual.conv1.weight.detach().clone()
    names = list(model.state_dict())

    class Twice(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    with torch.no_grad():
        model.visual.conv1.weight /= 2
    torch.nn.utils.parametrize.register_parametrization(model.visual.conv1, "weight", Twice())
    start = frozen(parts[0])
    assert sorted(start.model.state_dict()) == sorted(names)
    assert torch.equal(start.model.visual.conv1.weight, expected)
    assert not any(p.requires_grad for p in start.model.parameters())
