"""How batches come from the worker processes: through shared memory where `/dev/shm` has room for them, else through pipes.

A container's `/dev/shm` often has 64 MB, and a process that writes beyond it is killed by the system. A pipe takes any
batch, at the price of two copies.
"""

import logging
import mmap
import multiprocessing
import os
import sys
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch

SHARED_MEMORY = "/dev/shm"
ASSUMED_SIZE = (384, 384)  # of what a transform makes that does not say it
PREFETCH = 2  # batches that wait for each worker's turn, torch's own number
PICTURES = 4  # dimensions of a batch of pictures
IN_USE = 2  # batches that the main process holds: the present one, and the next before it lets go of that
MARGIN = 1.1  # for pages that are not full, and for others who take room
log = logging.getLogger(__name__)
_reserved: "weakref.WeakKeyDictionary[Any, int]" = (
    weakref.WeakKeyDictionary()
)  # loader -> bytes that it may come to need


class Transport(NamedTuple):
    """How many workers there are, and whether their batches lie in shared memory."""

    num_workers: int
    shared: bool


def batch_bytes(transform: Any, batch_size: int) -> int:
    """About the bytes of a batch's pictures."""
    size = getattr(transform, "size", None)  # of an ImageTransform
    height, width = size if isinstance(size, tuple) and len(size) == 2 else ASSUMED_SIZE
    return batch_size * 3 * height * width


def choose(loader: Any, num_workers: int, batch_bytes: int, aloud: bool = True) -> Transport:
    """What the room in /dev/shm allows this loader, and a line about it where that is not what was asked for."""
    if not num_workers or sys.platform != "linux":
        return Transport(num_workers, True)
    say = log.warning if aloud else log.debug
    if failure := _why_no_locks():
        say(
            "no worker processes, since they need %s (%s): the main process decodes, which is slower; "
            "with Docker, `--shm-size=1g` mounts it", SHARED_MEMORY, failure,
        )  # fmt: skip
        return Transport(0, False)
    needed, room = int(batch_bytes * (PREFETCH * num_workers + IN_USE) * MARGIN), _room()
    if needed <= room:
        _reserved[loader] = needed
        return Transport(num_workers, True)
    say(
        "%s has room for %s MB and the batches of %d workers need %s: they come through pipes, which is a little slower; "
        "with Docker, `--shm-size=1g` makes room", SHARED_MEMORY, room >> 20, num_workers, (needed >> 20) + 1,
    )  # fmt: skip
    return Transport(num_workers, False)


def _room() -> int:
    """Bytes of /dev/shm that are left to another loader of this process, which shares it with others of one torchrun."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return max(0, status.f_bavail * status.f_frsize // processes - sum(_reserved.values()))


def _why_no_locks() -> str | None:
    """What the system says to a lock that processes share, if it says no: glibc keeps them in /dev/shm."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (OSError, ImportError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def shared_numbers(count: int) -> torch.Tensor:
    """int64 (count,), 0, which forked processes share; on Linux not in /dev/shm, which may be full or absent."""
    if sys.platform != "linux":
        return torch.zeros(count, dtype=torch.int64).share_memory_()
    return torch.frombuffer(mmap.mmap(-1, 8 * count), dtype=torch.int64)


def packed(batch: Any, shared: bool) -> Any:
    """A worker's batch, a NamedTuple, as it is sent: arrays go through the pipe, tensors lie in shared memory.

    Those are the pictures, of four dimensions, where there is room.
    """
    arrays = {}
    for name, value in zip(batch._fields, batch):
        if isinstance(value, torch.Tensor) and not (shared and value.ndim == PICTURES):
            is_pictures = value.ndim == PICTURES  # which lie in memory with their channels last
            arrays[name] = (value.permute(0, 2, 3, 1).contiguous() if is_pictures else value).numpy()
    return batch._replace(**arrays)


def unpacked(batch: Any) -> Any:
    """The batch of tensors that was sent."""
    tensors = {name: _tensor(value) for name, value in zip(batch._fields, batch) if isinstance(value, np.ndarray)}
    for name, tensor in tensors.items():
        tensors[name] = tensor.permute(0, 3, 1, 2) if tensor.ndim == PICTURES else tensor
    return batch._replace(**tensors)


def _tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
