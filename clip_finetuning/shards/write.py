"""Writes the shards of a plan, one process each, whole or not at all, and leaves alone those that are finished."""

import contextlib
import errno
import hashlib
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from typing import NamedTuple

from tqdm import tqdm

from clip_finetuning.pictures.decode import PictureError, read_source, to_jpeg
from clip_finetuning.pictures.stored import file_of, stored_row
from clip_finetuning.runtime.text import printable
from clip_finetuning.shards.manifest import ShardSet
from clip_finetuning.shards.plan import Sample, Shard
from clip_finetuning.shards.tar_writer import TarWriter

NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # no quotas on Windows


HELD = 64 << 20  # bytes of pictures that wait in memory for their turn; more wait on the disk


class PictureSettings(NamedTuple):
    """What decides the bytes of a picture, beside its source."""

    quality: int
    image_size: int | None  # bound of the shorter side
    crop_margins: bool
    inside: str | None  # pictures outside this folder are refused


class Job(NamedTuple):
    """One shard to write, where and how."""

    shards: ShardSet
    shard: Shard
    pictures: PictureSettings


def write_shards(
    shards: ShardSet,
    plan: Sequence[Shard],
    pictures: PictureSettings,
    part: tuple[int, int] = (1, 1),
    num_workers: int = 0,
    on_cluster: Callable[[Sequence[Job]], Iterator[bool]] | None = None,
) -> int:
    """Write the shards of a part (I, N) of a plan that are not finished, one process each -> how many were written.

    `on_cluster` does it elsewhere: `write_shard` of each job.
    """
    number, count = part
    mine = plan[number - 1 :: count]
    shards.clean(mine)
    jobs = [Job(shards, shard, pictures) for shard in mine]
    workers = min(num_workers, len(jobs))
    with explained_errors(shards.output_dir), contextlib.ExitStack() as stack:
        if on_cluster:
            written = on_cluster(jobs)
        elif workers > 1:
            pool = ProcessPoolExecutor(workers, initializer=end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            written = pool.map(write_shard, jobs)
        else:
            written = map(write_shard, jobs)
        return sum(tqdm(written, total=len(jobs), unit=" shards", disable=None))


@contextlib.contextmanager
def explained_errors(output_dir: str) -> Iterator[None]:
    """What can go wrong while writing, in words that say what to do."""
    try:
        yield
    except BrokenProcessPool as error:
        raise OSError("a writing process was killed, for want of memory? Run the same command again") from error
    except ImportError as error:  # a package that only some pictures need
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            place = f"no room left in {output_dir} ({error})"
            raise OSError(f"{place}; finished shards are whole: make room and run the same command again") from error
        if isinstance(error, FileNotFoundError) and str(error.filename).endswith(".partial"):
            raise FileNotFoundError(f"{error.filename} is gone; is another run writing the same shards?") from error
        raise


def end_with_parent() -> None:
    """In a worker: end when the main process does, however it ends, so that no orphan goes on writing."""

    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_shard(job: Job) -> bool:
    """Write one shard whole or not at all, unless it is finished already -> whether it was written."""
    sources = sources_digest(job.shard.samples)
    finished = job.shards.record(job.shard)
    # Changed pictures are taken anew; a catalogue that was deleted or not mounted must not empty its shards.
    if finished and sources in (None, finished["sources"]):
        return False
    with job.shards.write(job.shard) as (tar, record):
        record["sources"] = sources
        record.update(write_samples(tar, job.shard, job.pictures))
    return True


def sources_digest(samples: Sequence[Sample]) -> str | None:
    """A hash of the sizes and times of the pictures' files; None if there is none of them."""
    states = []
    for sample in samples:
        try:
            status = os.stat(file_of(sample.image_path))
            states.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            states.append(None)
    return hashlib.sha256(repr(states).encode()).hexdigest() if any(states) else None


def write_samples(tar: TarWriter, shard: Shard, pictures: PictureSettings) -> dict:
    """Append a shard's samples to a tar -> what its record says of them."""
    count, untouched, skipped = 0, 0, defaultdict(list)
    encoded = encoded_pictures([sample.image_path for sample in shard.samples], pictures)
    for key, (sample, (picture, same)) in enumerate(zip(shard.samples, encoded), shard.first_key):
        if isinstance(picture, PictureError):
            skipped[picture.reason].append(printable(sample.image_path))
            continue
        files = {"jpg": picture, "txt": sample.caption.encode(), "json": sample.metadata.encode()}
        tar.add({f"{key:09d}.{suffix}": data for suffix, data in files.items()})
        count += 1
        untouched += same
    return {"samples": count, "untouched_jpegs": untouched, "skipped": skipped}


def encoded_pictures(paths: Sequence[str], settings: PictureSettings) -> Iterator[tuple[bytes | PictureError, bool]]:
    """Yield (JPEG bytes, whether they are the file's own) of each path in order, or why there are none.

    Rows of one file are read in the file's order, as a Parquet file is only fast forward; what is early waits on the disk.
    """
    rows = [stored_row(path) for path in paths]
    if not any(rows):
        yield from (encoded_picture(path, settings) for path in paths)
        return
    order = sorted(range(len(paths)), key=lambda place: tuple(rows[place] or ())[:2])
    places: dict[int, tuple[PictureError | None, int, int, bool]] = {}
    with tempfile.SpooledTemporaryFile(HELD) as waiting:
        for place in order:
            picture, same = encoded_picture(paths[place], settings)
            error, data = (picture, b"") if isinstance(picture, PictureError) else (None, picture)
            places[place] = error, waiting.tell(), len(data), same
            waiting.write(data)
        for place in range(len(paths)):
            error, begin, size, same = places[place]
            waiting.seek(begin)
            yield error or waiting.read(size), same


def encoded_picture(path: str, settings: PictureSettings) -> tuple[bytes | PictureError, bool]:
    """(JPEG bytes of a picture, whether they are the file's own), or (why there are none, False)."""
    try:
        source = read_source(path, settings.inside)
        return to_jpeg(source, settings.quality, settings.image_size, settings.crop_margins)
    except PictureError as error:
        return error, False
