"""The device that is meant, not the current one: stand-ins for torch.cuda with two devices, and for torch.mps of torch 2.6."""

import types

import pytest
import torch

from clip_finetuning.runtime import device as devices


class TwoDevices:
    """Like torch.cuda: whoever names no device means the current one, which is the first."""

    def __init__(self):
        self.states, self.current, self.emptied = {0: torch.tensor([10]), 1: torch.tensor([11])}, 0, 0

    def get_rng_state(self, device="cuda"):
        return self.states[self._number(device)].clone()

    def set_rng_state(self, state, device="cuda"):
        self.states[self._number(device)] = state.clone()

    def set_device(self, device):
        self.current = self._number(device)

    def empty_cache(self):
        self.emptied += 1

    def _number(self, device):
        number = torch.device(device).index
        return self.current if number is None else number


@pytest.fixture
def two_devices(monkeypatch):
    module = TwoDevices()
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return module


def test_the_random_state_is_that_of_the_device(two_devices):
    device = torch.device("cuda:1")
    before, on_the_cpu = devices.random_state(device), torch.get_rng_state()
    two_devices.states = {0: torch.tensor([20]), 1: torch.tensor([21])}
    torch.rand(1)
    devices.set_random_state(device, before)
    assert two_devices.states == {0: torch.tensor([20]), 1: torch.tensor([11])}
    assert torch.equal(torch.get_rng_state(), on_the_cpu)


def test_the_chosen_device_becomes_the_current_one(two_devices):
    devices.make_current(torch.device("cuda:1"))
    assert two_devices.current == 1
    devices.make_current(torch.device("cuda"))  # no certain one
    assert two_devices.current == 1


def test_where_there_is_but_one_device_nobody_may_choose(monkeypatch):
    """torch.mps of torch 2.6 takes no device, and has none to set."""
    states = [torch.tensor([1])]
    module = types.SimpleNamespace(
        get_rng_state=lambda: states[0], set_rng_state=lambda state: states.append(state), empty_cache=lambda: None
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = torch.device("mps:0")
    devices.make_current(device)
    devices.set_random_state(device, devices.random_state(device))
    assert states == [torch.tensor([1]), torch.tensor([1])]
    devices.empty_cache(device)


def test_memory_is_given_back_without_what_only_newer_torch_has(two_devices, monkeypatch):
    monkeypatch.delattr(torch.accelerator, "empty_cache", raising=False)
    devices.empty_cache(torch.device("cuda:1"))
    assert two_devices.emptied == 1


def test_the_cpu_needs_nothing_of_it():
    devices.make_current(torch.device("cpu"))
    devices.empty_cache(torch.device("cpu"))
    state = devices.random_state(torch.device("cpu"))
    drawn = torch.rand(1)
    devices.set_random_state(torch.device("cpu"), state)
    assert torch.rand(1) == drawn


def encode_at_most(largest, error, seen):
    def encode(rows):
        seen.append(len(rows))
        if len(rows) > largest:
            raise error
        return rows * 2

    return encode


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("injected"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")]
)
def test_halves_until_they_fit(two_devices, error):
    rows, seen = torch.arange(7), []
    parts = devices.in_halves(encode_at_most(2, error, seen), rows, torch.device("cuda:1"))
    assert torch.equal(torch.cat(parts), rows * 2)
    assert seen == [7, 4, 2, 2, 3, 2, 1]
    assert two_devices.emptied == 3


def test_one_row_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        devices.in_halves(
            encode_at_most(0, torch.OutOfMemoryError("injected"), []), torch.arange(4), torch.device("cpu")
        )
    seen = []
    with pytest.raises(RuntimeError, match="assert"):
        devices.in_halves(
            encode_at_most(0, RuntimeError("device-side assert"), seen), torch.arange(4), torch.device("cpu")
        )
    assert seen == [4]
