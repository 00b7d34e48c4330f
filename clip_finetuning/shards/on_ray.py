"""Writes shards on the machines of a Ray cluster: the same bytes as one process."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clip_finetuning.pictures.stored import file_of
from clip_finetuning.runtime import ray_tasks
from clip_finetuning.shards.write import Job, write_shard


class WitnessedJob(NamedTuple):
    """A shard to write, and one of its pictures' files as the machine sees it that knows the catalogue."""

    job: Job
    path: str | None
    size: int | None


def write_on_ray(address: str, jobs: Sequence[Job]) -> Iterator[bool]:
    """`write_shard` of each job, in any order. Raises OSError, also where the machines do not see the same files."""
    if not jobs:
        return
    with ray_tasks.connected(address) as processors:
        yield from ray_tasks.run(_write_as_witnessed, [_witnessed(job) for job in jobs], processors)
    shards = jobs[0].shards
    if missing := [job for job in jobs if not shards.record(job.shard)]:
        file = shards.file(missing[0].shard.number)
        raise OSError(
            f"{file} was written, and is not in {shards.output_dir}: with --ray it must be a URL, or a folder that all machines share"
        )
    shards.clean([job.shard for job in jobs])  # what a machine left that died


def _write_as_witnessed(witnessed: WitnessedJob) -> bool:
    """Write a shard, unless pictures would be missing from it that are there. Raises OSError."""
    if witnessed.path is not None and _size(witnessed.path) != witnessed.size:
        raise ray_tasks.not_shared(witnessed.path)
    return write_shard(witnessed.job)


def _witnessed(job: Job) -> WitnessedJob:
    for sample in job.shard.samples:
        path = file_of(sample.image_path)
        if (size := _size(path)) is not None:
            return WitnessedJob(job, path, size)
    return WitnessedJob(job, None, None)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None
