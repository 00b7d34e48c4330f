"""The device of a run: which one, in which precision, and what one needs that is not the current one.

The functions of torch.cuda and its kin mean the current device, `cuda:0`, unless they are told another.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_finetuning.runtime.out_of_memory import is_out_of_memory

AUTOCAST_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ONE_OF_A_KIND = ("mps",)  # there is one such device in a machine, so torch.mps of torch 2.6 lets nobody choose


# ---------------------------------------------------------------------------------------------------------- the choice


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The torch device of a name; `auto` takes CUDA, then Apple's MPS, then the CPU. `local_rank` chooses the GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0][:120]
        raise ValueError(f"DEVICE={name} cannot be used here ({reason}); set DEVICE=auto or cpu") from error
    return device


def make_current(device: torch.device) -> None:
    """Let this process's unnamed device of that kind be this one: pinned memory and library handles then belong to it."""
    if device.index is not None and hasattr(torch.get_device_module(device), "set_device"):
        torch.get_device_module(device).set_device(device)


def prepare(name: str, local_rank: int = 0) -> torch.device:
    """The device of a name, made this process's current one; matrices are multiplied in TF32 where a GPU has it."""
    device = pick_device(name, local_rank)
    make_current(device)
    torch.set_float32_matmul_precision("high")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """`fp16`, `bf16` or `fp32`; `auto` takes what is fast and safe on the device.

    CUDA: bf16 where the hardware has it (Ampere and later), else fp16. CPU: bf16 if it multiplies matrices faster here.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and _bf16_is_faster() else "fp32"


def _bf16_is_faster(rounds: int = 15) -> bool:
    """Whether the CPU multiplies matrices of a small transformer's size faster in bf16.

    Best times of many turns, so that what else runs on the machine does not decide; of three where it is beyond doubt:
    without instructions for it, bf16 takes 80 times as long, and all turns take seconds.
    """
    best = {}
    for done in range(rounds):
        if done >= 3 and best[torch.bfloat16] > 10 * best[torch.float32]:
            return False
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            start = time.perf_counter()
            torch.matmul(a, b)
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.bfloat16] < 0.8 * best[torch.float32]


# ----------------------------------------------------------------------------------------------------------- precision


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast context of a precision; none for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES[precision])


def training_attention(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a training step, forward and backward, that chooses its attention kernels.

    On the CPU in bf16 the fused kernel's backward pass takes 3 to 8 times as long as that of its parts (torch 2.15), up
    to half of a step. In fp32, and on a GPU, the choice is torch's.
    """
    if device.type == "cpu" and precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Matrices of float32 are multiplied in float32, not in TF32 or less, whatever a run has chosen for its model."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -------------------------------------------------------------------------------------------------------------- memory


def free_bytes(device: torch.device) -> int | None:
    """How much of a device's memory is free, where it says so."""
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return ask(device)[0] if device.type != "cpu" and ask is not None else None


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


# -------------------------------------------------------------------------------------------------------- random state


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


def _choice(device: torch.device) -> tuple[()] | tuple[torch.device]:
    return () if device.type in ONE_OF_A_KIND else (device,)
