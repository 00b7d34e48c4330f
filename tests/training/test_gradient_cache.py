"""Gradients with micro-batches, several ranks, half precision and lost memory against one plain backward pass."""

import sys
import types
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import settings
from clip_finetuning.runtime import console, distributed
from clip_finetuning.training.gradient_cache import backward, backward_with_retry
from clip_finetuning.training.losses import clip_loss
from tests.processes import run_ranks

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
        self.failure = torch.OutOfMemoryError("injected")

    def embed(self, images, tokens):
        self.passes.append(len(images))
        if len(images) > self.largest or len(self.passes) == self.fails_at:
            raise self.failure
        features = self.image(images), self.text(tokens).mean(1)
        return [torch.nn.functional.normalize(f.float(), dim=-1) for f in features]

    def loss(self, images, texts, products, *taught):
        if self.losses_left_to_fail:
            self.losses_left_to_fail -= 1
            raise torch.OutOfMemoryError("injected")
        value = clip_loss(images, texts, products, self.logit_scale.exp())
        return value + sum((own - other).square().sum() for own, other in zip((images, texts), taught))

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


class Teacher:
    """Other towers, whose embeddings the loss gets too."""

    def __init__(self):
        self.towers = Towers(dropout=0.0)
        with torch.no_grad():
            self.towers.image[0].weight.neg_()

    def __call__(self, images, tokens):
        with torch.no_grad():
            return self.towers.embed(images, tokens)


def plain_gradients(towers, sizes, seed=3, teach=None):
    """The loss and gradients of one graph over the whole batch, embedded in slices so that dropout draws alike."""
    images, tokens, products = batch()
    torch.manual_seed(seed)
    parts = [towers.embed(*part) for part in zip(images.split(sizes), tokens.split(sizes))]
    value = towers.loss(*map(torch.cat, zip(*parts)), products, *(teach(images, tokens) if teach else ()))
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


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_a_teacher_sees_every_sample_once_and_gets_no_gradient(micro_batch_size):
    towers, teach = Towers(), Teacher()
    value, expected = plain_gradients(towers, micro_batch_size or N, teach=Teacher())
    found = run(towers, micro_batch_size=micro_batch_size, teach=teach)
    torch.testing.assert_close(found, value)
    assert_equal(towers.gradients(), expected)
    assert sum(teach.towers.passes) == N
    assert all(p.grad is None for p in teach.towers.parameters())


def test_a_teacher_that_runs_out_of_memory_halves_the_micro_batch_too():
    towers, teach = Towers(dropout=0.0), Teacher()
    teach.towers.largest = 3
    assert run(towers, backward_with_retry, teach=teach, say=lambda line: None)[1] == 3
    assert_equal(towers.gradients(), plain_gradients(towers, N, teach=Teacher())[1])


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


def test_both_passes_draw_alike_on_a_device_that_is_not_the_current_one(monkeypatch):
    """A stand-in for a second GPU: its own generator draws the masks, and the first one's is of no use."""
    generators = [torch.Generator(), torch.Generator().manual_seed(3)]
    module = types.SimpleNamespace(
        get_rng_state=lambda device="cuda": generators[torch.device(device).index or 0].get_state(),
        set_rng_state=lambda state, device="cuda": generators[torch.device(device).index or 0].set_state(state),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    masks = []

    def embed(images, tokens):
        masks.append(torch.rand(len(images), 1, generator=generators[1]))
        return [images * weight * masks[-1], tokens * weight]

    weight = torch.nn.Parameter(torch.ones(6))
    images = torch.randn(N, 6).as_subclass(OnTheSecondGpu)
    products = PRODUCTS.as_subclass(OnTheSecondGpu)
    backward(embed, lambda x, y, _: (x * y).sum(), images, torch.ones(N, 6), products, [weight], micro_batch_size=4)
    assert len(masks) == 6
    assert all(torch.equal(first, second) for first, second in zip(masks[:3], masks[3:]))


class OnTheSecondGpu(torch.Tensor):
    """A tensor that says so; it is on the CPU."""

    @property
    def device(self):
        return torch.device("cuda:1")


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


def test_libraries_that_run_out_of_memory_in_their_own_words():
    towers, said = Towers(), []
    towers.largest = 6
    towers.failure = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert run(towers, backward_with_retry, say=said.append)[1] == 6
    assert_equal(towers.gradients(), plain_gradients(Towers(), 6)[1])


def test_other_errors_are_no_reason_to_try_again():
    towers = Towers()
    towers.largest, towers.failure = 6, RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(towers, backward_with_retry, say=lambda line: None)
    assert towers.passes == [N]


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


# A job of two processes -> the size of the micro-batch that it ends with.
JOBS = {
    "whole": None,
    "sliced": 2,
    "one rank out of memory": 3,
    "one rank out of memory in the loss": 3,
    "one rank out of memory for all embeddings": 3,
    "one rank out of memory for all products": 3,
    "one rank out of memory for the exchange of gradients": 3,
    "taught": None,
    "taught in slices": 2,
}


class MemoryEnds(TorchDispatchMode):
    """The first tensor that `is_too_large` is one too many."""

    def __init__(self, is_too_large):
        super().__init__()
        self.is_too_large = is_too_large

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if self.is_too_large and isinstance(result, torch.Tensor) and self.is_too_large(result):
            self.is_too_large = None
            raise torch.OutOfMemoryError("injected")
        return result


TOO_LARGE = {
    "one rank out of memory for all embeddings": lambda tensor: tensor.shape == (N, 16),
    "one rank out of memory for all products": lambda tensor: tensor.shape == (N,) and tensor.dtype == torch.int64,
    "one rank out of memory for the exchange of gradients": lambda tensor: tensor.numel() > 700,
}


def test_two_processes_equal_one(tmp_path):
    """Wherever memory ends on one of them: both do the step again, in smaller parts."""
    finished = run_ranks(__file__, str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    plain = plain_gradients(Towers(dropout=0.0), N)
    taught = plain_gradients(Towers(dropout=0.0), N, teach=Teacher())
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt")
        assert seen.keys() == JOBS.keys()
        for job, micro_batch_size in JOBS.items():
            value, expected = taught if "taught" in job else plain
            torch.testing.assert_close(seen[job]["loss"], value)
            assert_equal(seen[job]["gradients"], expected)
            assert (job, seen[job]["micro_batch_size"]) == (job, micro_batch_size)


def worker(folder):
    rank = distributed.start(timeout=timedelta(seconds=20)).rank
    seen = {}
    for job in JOBS:
        towers = Towers(dropout=0.0)
        if job == "one rank out of memory" and rank == 1:
            towers.largest = 3
        if job == "one rank out of memory in the loss" and rank == 1:
            towers.losses_left_to_fail = 1
        half = [tensor[6 * rank : 6 * rank + 6] for tensor in batch()]
        parameters = list(towers.parameters())
        with MemoryEnds(TOO_LARGE.get(job) if rank == 1 else None):
            value, micro_batch_size = backward_with_retry(
                towers.embed, towers.loss, *half, parameters,
                micro_batch_size=2 if "slice" in job else None,
                teach=Teacher() if "taught" in job else None,
            )  # fmt: skip
        seen[job] = {"loss": value, "gradients": towers.gradients(), "micro_batch_size": micro_batch_size}
    torch.save(seen, Path(folder, f"{rank}.pt"))


if __name__ == "__main__":
    console.run(lambda: worker(*sys.argv[1:]), settings)
