"""Several processes, one training: what `torchrun --nproc-per-node=N clipFineTuner.py` needs of torch.distributed.

Every function also works in a single process, where there is nothing to exchange. Each process embeds its share of
the global batch, all gather all embeddings (`gather_with_gradient`), compute the same loss, and average their
gradients (`average`); the result is the gradient of one process with the whole batch.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from clip_finetuning.runtime import console
from clip_finetuning.runtime.out_of_memory import is_out_of_memory

# A rank that waits longer than this for another one gives up, so that a dead rank never holds the others for ever.
TIMEOUT = timedelta(minutes=15)
BUCKET_BYTES = 64 * 2**20  # gradients travel in buckets of about this size: few calls, little extra memory

Result = TypeVar("Result")


class Ranks(NamedTuple):
    """This process's place among all: `rank` of `world_size`, the `local_rank`-th one on its machine."""

    rank: int
    world_size: int
    local_rank: int


def start(device: str = "auto", timeout: timedelta = TIMEOUT) -> Ranks:
    """Join the processes that torchrun started -> Ranks; without torchrun's environment, Ranks(0, 1, 0).

    `device` is the knob DEVICE: "auto" and "cuda" give every process the GPU of its local rank.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, 0)
    ranks = Ranks(*(int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise ValueError("RANK and WORLD_SIZE are set but MASTER_ADDR or MASTER_PORT is not: start with torchrun")
    if device.startswith("cuda:") and ranks.world_size > 1:
        raise ValueError(f"DEVICE={device} would put every process on one GPU: with torchrun, leave it at auto or cuda")
    backend = "gloo"
    if torch.cuda.is_available() and device.startswith(("auto", "cuda")):
        gpus = torch.cuda.device_count()
        if ranks.local_rank >= gpus:
            raise ValueError(
                f"local rank {ranks.local_rank} has no GPU of its own, the machine shows {gpus}: lower --nproc-per-node"
            )
        torch.cuda.set_device(ranks.local_rank)
        backend = "cpu:gloo,cuda:nccl"  # flags and objects travel between the CPUs, without waiting for the GPU
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # One torchrun has started all: after a restart they meet under another name, because under the old one its store
        # still has the addresses of processes that are gone.
        name = f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = dist.PrefixStore(name, store)  # pyright: ignore[reportPrivateImportUsage] - torch documents it here
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    console.at_end(end)
    return ranks


def end(code: int) -> None:
    """End this process here, with its exit code, if it is one of several; in a single one, return.

    Its connections are left to the system: gloo's own way to close them, by `destroy_process_group` or when the
    interpreter ends, waits for ever in one run out of three or so (torch 2.6 and 2.7; seen up to 2.14). After an error
    too: only a process that has ended lets torchrun end the others.
    """
    if not dist.is_initialized():
        return
    if code == 0:
        dist.barrier()  # nobody may still be waiting for what this process has to send
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def world_size() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 in a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_objects(value: Any) -> list:
    """The `value` of every rank, in the order of ranks, on every rank. Also a barrier."""
    values = [value]
    if world_size() > 1:
        values = [value] * world_size()
        dist.all_gather_object(values, value)
    return values


def agree(value: Any) -> Any:
    """Rank 0's `value`, on every rank: for what each could decide for itself, but differently."""
    return gather_objects(value)[0]


def part_of(count: int) -> tuple[int, int]:
    """(first, last + 1) of this rank's share of `count` things, which all ranks share in their order."""
    return count * rank() // world_size(), count * (rank() + 1) // world_size()


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on any: how ranks agree on what only one of them saw."""
    if world_size() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    if "gloo" not in dist.get_backend_config():
        flags = flags.to(torch.accelerator.current_accelerator())
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def on_all_ranks(stage: Callable[[], Result]) -> Result:
    """stage(), with torch.OutOfMemoryError on every rank if memory ends on any: one left alone in a collective would hang.

    So whatever needs memory is done in a stage, and a collective fills what a stage has made room for.
    """
    results, failure = [], ""
    try:
        results.append(stage())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error) or "out of memory"  # not the error itself, whose traceback would hold the activations
    if any_rank(bool(failure)):
        raise torch.OutOfMemoryError(failure or "another rank ran out of memory")
    return results[0]


def room_for(tensor: torch.Tensor) -> torch.Tensor | None:
    """What `gather` writes into: memory for (n, ...) of every rank. None in a single process."""
    if world_size() == 1:
        return None
    return tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))


class Stopped(Exception):
    """What was going on was given up half-way, on every rank, because of a wish to stop."""


def until(wished: Callable[[], bool], batches: Iterable) -> Iterator:
    """Yield this rank's batches until all ranks are through theirs; Stopped on every rank if `wished()` is true between two.

    The ranks go in step, with empty rounds for those that are through, because `wished` asks all of them.
    """
    batches = iter(batches)
    while True:
        batch = next(batches, None)
        if wished():
            raise Stopped
        if not any_rank(batch is not None):
            return
        if batch is not None:
            yield batch


def gather(tensor: torch.Tensor, room: torch.Tensor | None) -> torch.Tensor:
    """(n, ...) of every rank -> (world_size * n, ...) in the order of ranks, without a graph.

    Every rank must bring the same n, and `room_for(tensor)`, which becomes the result.
    """
    if world_size() == 1:
        return tensor.detach()
    assert room is not None, "gather is given what room_for(tensor) returns"
    dist.all_gather_into_tensor(room, tensor.detach())
    return room


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, room):
        ctx.rows = len(tensor)
        return gather(tensor, room)

    @staticmethod
    def backward(ctx, gradient):
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows] * world_size(), None


def gather_with_gradient(tensor: torch.Tensor, room: torch.Tensor | None) -> torch.Tensor:
    """(n, ...) of every rank -> (world_size * n, ...) in its `room_for` it, with a gradient for this rank's own rows.

    It is for a loss that every rank computes alike over the whole batch. Each rank's own rows then receive their
    whole gradient without communication. It comes multiplied by the world size, since `average` divides by
    it; parameters of the loss itself, such as the logit scale, have the same gradient everywhere and stay as they are.
    """
    return _GatherWithGradient.apply(tensor, room) if world_size() > 1 else tensor


def average(tensors: list[torch.Tensor]) -> None:
    """Replace every tensor by its mean over the ranks, the same to the bit on all of them.

    Raises torch.OutOfMemoryError, with nothing replaced, on every rank if memory for the exchange ends on any.
    """
    if world_size() == 1:
        return
    buckets = _buckets(tensors)
    sizes = {}  # of the largest bucket of each dtype
    for bucket in buckets:
        sizes[bucket[0].dtype] = max(_count(bucket), sizes.get(bucket[0].dtype, 0))
    rooms = on_all_ranks(lambda: {t: tensors[0].new_empty(size, dtype=t) for t, size in sizes.items()})
    for bucket in buckets:
        flat = rooms[bucket[0].dtype][: _count(bucket)]
        pieces = [piece.view_as(t) for t, piece in zip(bucket, flat.split([t.numel() for t in bucket]))]
        for tensor, piece in zip(bucket, pieces):
            piece.copy_(tensor)
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, piece in zip(bucket, pieces):
            tensor.copy_(piece)


def _buckets(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors in their order, cut into lists of one dtype and about BUCKET_BYTES."""
    buckets: list[list[torch.Tensor]] = []
    size = 0
    for tensor in tensors:
        if not buckets or size >= BUCKET_BYTES or tensor.dtype != buckets[-1][0].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel() * tensor.element_size()
    return buckets


def _count(bucket: list[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in bucket)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite every tensor by rank 0's: parameters and buffers, so that all ranks start from the same model."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)
