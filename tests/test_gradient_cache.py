"""Gradients with micro-batches, several ranks, half precision and lost memory against one plain backward pass."""

import sys
from pathlib import Path

import pytest
import torch

import distributed
from gradient_cache import backward, backward_with_retry
from losses import clip_loss
from tests.helpers import launch

N = 12
PRODUCTS = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 7])


class Towers(torch.nn.Module):
    """Two towers with dropout and a logit scale; counts its forward passes, and can run out of memory."""

    def __init__(self, dropout=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.image = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Dropout(dropout))
        self.text = torch.nn.Sequential(torch.nn.Embedding(20, 16), torch.nn.Dropout(dropout), torch.nn.Linear(16, 16))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.passes, self.largest, self.fails_at, self.losses_left_to_fail = [], N, None, 0

    def embed(self, images, tokens):
        self.passes.append(len(images))
        if len(images) > self.largest or len(self.passes) == self.fails_at:
            raise torch.OutOfMemoryError("injected")
        features = self.image(images), self.text(tokens).mean(1)
        return [torch.nn.functional.normalize(f.float(), dim=-1) for f in features]

    def loss(self, images, texts, products):
        if self.losses_left_to_fail:
            self.losses_left_to_fail -= 1
            raise torch.OutOfMemoryError("injected")
        return clip_loss(images, texts, products, self.logit_scale.exp())

    def gradients(self):
        return [p.grad.clone() for p in self.parameters()]


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(N, 6, generator=generator)
    return images, torch.randint(20, (N, 5), generator=generator), PRODUCTS


def run(towers, function=backward, seed=3, **options):
    torch.manual_seed(seed)
    return function(towers.embed, towers.loss, *batch(), list(towers.parameters()), **options)


def assert_equal(found, expected, tolerance=1e-6):
    for gradient, reference in zip(found, expected):
        torch.testing.assert_close(gradient, reference, atol=tolerance, rtol=1e-5)


def plain_gradients(towers, sizes, seed=3):
    """The loss and gradients of one graph over the whole batch, embedded in slices so that dropout draws alike."""
    images, tokens, products = batch()
    torch.manual_seed(seed)
    parts = [towers.embed(*part) for part in zip(images.split(sizes), tokens.split(sizes))]
    value = towers.loss(*map(torch.cat, zip(*parts)), products)
    return value.detach(), torch.autograd.grad(value, list(towers.parameters()))


@pytest.mark.parametrize("micro_batch_size", [None, 1, 4, 5, 12, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_equals_the_full_batch(micro_batch_size, dropout):
    towers = Towers(dropout)
    value, expected = plain_gradients(towers, min(micro_batch_size or N, N))
    found = run(towers, micro_batch_size=micro_batch_size)
    torch.testing.assert_close(found, value)
    assert_equal(towers.gradients(), expected)
    if not dropout:
        assert_equal(towers.gradients(), plain_gradients(towers, N)[1])


def test_random_state_goes_on_as_after_one_pass():
    states = []
    for micro_batch_size in (None, 4):
        run(Towers(), micro_batch_size=micro_batch_size)
        states.append(torch.rand(1))
    towers = Towers()
    plain_gradients(towers, 4)
    assert states[1] == torch.rand(1)
    plain_gradients(towers, N)
    assert states[0] == torch.rand(1)


def test_one_extra_pass_with_micro_batches_and_none_without():
    towers = Towers()
    run(towers, micro_batch_size=4)
    assert towers.passes == [4, 4, 4, 4, 4, 4]
    for micro_batch_size in (None, N, N + 1):
        towers.passes.clear()
        run(towers, micro_batch_size=micro_batch_size)
        assert towers.passes == [N]


def test_gradients_of_an_earlier_step_do_not_add_up():
    towers = Towers()
    run(towers, micro_batch_size=4)
    once = towers.gradients()
    run(towers, micro_batch_size=4)
    assert_equal(towers.gradients(), once, tolerance=0)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_scaler(dtype, around):
    """Also with one autocast around both passes, whose cache would carry weights without a graph into the second."""
    towers = Towers(dropout=0.5)
    embed = towers.embed

    def autocast_embed(*arguments):
        with torch.autocast("cpu", dtype=dtype):
            return embed(*arguments)

    towers.embed = autocast_embed
    _, expected = plain_gradients(towers, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    with torch.autocast("cpu", dtype=dtype, enabled=around):
        run(towers, micro_batch_size=4, scaler=scaler)
    assert_equal([g / 512 for g in towers.gradients()], expected, tolerance=1e-2)
    before = towers.logit_scale.clone()
    optimizer = torch.optim.SGD(towers.parameters(), lr=1.0)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(towers.logit_scale, before - expected[0], atol=1e-2, rtol=1e-2)


def test_a_tower_without_trainable_weights():
    towers = Towers()
    towers.image.requires_grad_(False)
    images, tokens, products = batch()
    trainable = [p for p in towers.parameters() if p.requires_grad]
    torch.manual_seed(3)
    parts = [towers.embed(*part) for part in zip(images.split(4), tokens.split(4))]
    expected = torch.autograd.grad(towers.loss(*map(torch.cat, zip(*parts)), products), trainable)
    run(towers, micro_batch_size=4)
    assert towers.image[0].weight.grad is None
    assert_equal([p.grad for p in trainable], expected)


@pytest.mark.parametrize("fails_at", [1, 2, 4, 5])
def test_out_of_memory_leaves_no_gradients(fails_at):
    """In the pass without graph (1, 2) and in the one with (4, 5), where some slices have already left gradients."""
    towers = Towers()
    towers.fails_at = fails_at
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        run(towers, micro_batch_size=4)
    assert all(p.grad is None for p in towers.parameters())


def test_out_of_memory_halves_the_micro_batch_and_redoes_the_step():
    towers, said = Towers(), []
    towers.largest = 3
    value, micro_batch_size = run(towers, backward_with_retry, say=said.append)
    assert micro_batch_size == 3
    assert len(said) == 2
    assert "from 12 to 6" in said[0]
    assert "from 6 to 3" in said[1]
    reference, expected = plain_gradients(Towers(), 3)
    torch.testing.assert_close(value, reference)
    assert_equal(towers.gradients(), expected)


def test_a_micro_batch_that_fits_stays():
    towers, said = Towers(), []
    assert run(towers, backward_with_retry, micro_batch_size=5, say=said.append)[1] == 5
    assert run(towers, backward_with_retry, say=said.append)[1] is None
    assert said == []


def test_no_micro_batch_fits():
    towers = Towers()
    towers.largest = 0
    with pytest.raises(torch.OutOfMemoryError, match="not even one sample"):
        run(towers, backward_with_retry, say=lambda line: None)


@pytest.mark.parametrize("job", ["whole", "sliced", "one rank out of memory", "one rank out of memory in the loss"])
def test_two_processes_equal_one(job, tmp_path):
    finished = launch(__file__, job, tmp_path)
    assert finished.returncode == 0, finished.stderr
    value, expected = plain_gradients(Towers(dropout=0.0), N)
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(seen["loss"], value)
        assert_equal(seen["gradients"], expected)
        assert seen["micro_batch_size"] == {"whole": None, "sliced": 2}.get(job, 3)


def worker(job, folder):
    rank = distributed.start().rank
    towers = Towers(dropout=0.0)
    if job == "one rank out of memory" and rank == 1:
        towers.largest = 3
    if job == "one rank out of memory in the loss" and rank == 1:
        towers.losses_left_to_fail = 1
    half = [tensor[6 * rank : 6 * rank + 6] for tensor in batch()]
    value, micro_batch_size = backward_with_retry(
        towers.embed, towers.loss, *half, list(towers.parameters()), micro_batch_size=2 if job == "sliced" else None
    )
    seen = {"loss": value, "gradients": towers.gradients(), "micro_batch_size": micro_batch_size}
    torch.save(seen, Path(folder, f"{rank}.pt"))
    distributed.stop()


if __name__ == "__main__":
    worker(*sys.argv[1:])
