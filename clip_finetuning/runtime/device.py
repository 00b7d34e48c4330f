"""What a device other than the current one needs: its own random state, its own memory.

The functions of torch.cuda and its kin mean the current device, `cuda:0`, unless they are told another.
"""

from collections.abc import Callable

import torch

from clip_finetuning.runtime.out_of_memory import is_out_of_memory

ONE_OF_A_KIND = ("mps",)  # there is one such device in a machine, so torch.mps of torch 2.6 lets nobody choose


def make_current(device: torch.device) -> None:
    """Let this process's unnamed device of that kind be this one: pinned memory and library handles then belong to it."""
    if device.index is not None and hasattr(torch.get_device_module(device), "set_device"):
        torch.get_device_module(device).set_device(device)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The random state of the CPU and, if it is another, of the device."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(*_choice(device)))
    return states


def set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    """Put back what `random_state(device)` returned."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], *_choice(device))


def _choice(device):
    return () if device.type in ONE_OF_A_KIND else (device,)


def empty_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device: pieces too small for what is wanted next."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def in_halves(encode: Callable[[torch.Tensor], object], rows: torch.Tensor, device: torch.device) -> list:
    """[encode(rows)], or where the device does not hold them at once, the results of ever smaller parts in their order."""
    try:
        return [encode(rows)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(rows) == 1:
            raise
    # Here, not in the handler, whose traceback would hold what the failed attempt has computed.
    empty_cache(device)
    return [result for half in rows.split((len(rows) + 1) // 2) for result in in_halves(encode, half, device)]
