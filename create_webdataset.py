"""Write WebDataset tar shards from a JSON mapping.

    python create_webdataset.py --json clip_dataset_valid.json --output-dir webdataset_shards --shard-size 1000
    python create_webdataset.py --json clip_dataset_train.json --output-dir webdataset_shards --part 3/16
    python create_webdataset.py --verify --json clip_dataset_valid.json --output-dir webdataset_shards

Each sample is `{key}.jpg`, `{key}.txt` (the caption) and `{key}.json` (product_id, category, ...). The views of one
product stay in one shard and products are shuffled with a fixed seed, so that any range of shards is a fair sample and
two ranges share no product. The same input gives the same bytes, whatever the number of processes or parts. A run that
was stopped goes on where it was when the same command is given again.

Relative paths of the JSON are the caller's. With --data-dir, those that do not begin with that folder are below it, and
pictures outside it are skipped.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import threading
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import settings
from clip_finetuning.pictures.decode import PictureError, hdf5_row, read_source, to_jpeg
from clip_finetuning.shards.manifest import ShardSet
from clip_finetuning.shards.plan import Shard, check_entries, plan_shards, printable, read_mapping
from clip_prep import print_skipped

NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # no quotas on Windows


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


def main(argv=None):
    """Read the JSON, plan the shards, write those that are not finished, say which pattern to set."""
    args = parse_arguments(argv)
    shards = ShardSet(args.output_dir, args.dataset_name)
    if args.verify:
        return verify(shards, args.num_workers)
    entries = read_mapping(args.json)
    samples, skipped = check_entries(entries, args.image_key, args.caption_key, args.data_dir)
    plan = plan_shards(samples, args.shard_size, None if args.no_shuffle else args.seed, picture_settings(args))
    beyond = sum(len(shard.samples) for shard in plan[args.max_shards :]) if args.max_shards else 0
    plan = plan[: args.max_shards]
    written = write_shards(shards, plan, args)

    about = {"dataset": args.dataset_name, "entries": len(entries), "beyond_max_shards": beyond, "skipped": skipped}
    summary = shards.summary(plan, about | {"settings": manifest_settings(args)})
    print_skipped({reason: found["paths"] for reason, found in summary["skipped"].items()})
    if len(summary["shards"]) == len(plan):
        if not summary["samples"]:
            shards.forget(plan)
            raise ValueError(
                f"no sample of {args.json} could be used; check that {args.image_key} points to real files"
            )
        shards.publish(summary)
    print_result(args, shards, plan, summary, written)
    return 0


def parse_arguments(argv):
    """The script's own arguments and its knobs."""
    parser = settings.Parser(__doc__, ["SHARD_SIZE", "QUALITY", "DATA_DIR", "NUM_WORKERS", "SEED"])
    parser.add_argument("--json", help="mapping written by clip_prep.py")
    parser.add_argument("--output-dir", required=True, help="folder of the shards, or a URL that fsspec knows")
    parser.add_argument("--max-shards", type=whole_number, help="write only the first so many shards")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="write the I-th of N parts [1/1]")
    parser.add_argument("--verify", action="store_true", help="check the shards against their manifest, write nothing")
    parser.add_argument("--image-size", type=whole_number, help="bound of the shorter side, in pixels; never enlarges")
    parser.add_argument("--crop-margins", action="store_true", help="crop near-white borders first")
    parser.add_argument("--allow-outside", action="store_true", help="take pictures outside --data-dir too")
    parser.add_argument("--image-key", default="image_path", help="field of the picture's path [image_path]")
    parser.add_argument("--caption-key", default="caption", help="field of the caption [caption]")
    parser.add_argument("--dataset-name", help="first part of the shards' names [name of the JSON]")
    parser.add_argument("--no-shuffle", action="store_true", help="keep the order of the JSON")
    args = parser.parse_args(argv)
    if not args.json and not (args.verify and args.dataset_name):
        parser.error("--json is missing: the mapping written by clip_prep.py (--verify also takes --dataset-name)")
    args.dataset_name = args.dataset_name or Path(args.json).stem
    if "/" in args.dataset_name or os.sep in args.dataset_name:
        parser.error(f"--dataset-name {args.dataset_name} is not allowed: it is the first part of file names")
    args.data_dir = args.data_dir if "DATA_DIR" in args.given else None
    return args


def whole_number(text):
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it takes a whole number >= 1")
    return int(text)


def part(text):
    """`I/N` -> (I, N), of N parts the I-th, from 1."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it takes I/N, such as 3/16, with 1 <= I <= N")
    return int(number), int(count)


def picture_settings(args):
    """What decides the bytes of a picture, beside its source."""
    inside = None if args.allow_outside else args.data_dir
    return PictureSettings(args.quality, args.image_size, args.crop_margins, inside)


def manifest_settings(args):
    """The settings that decide what the shards hold; not who writes them, and where."""
    names = ("shard_size", "quality", "image_size", "crop_margins", "seed", "no_shuffle", "max_shards")
    return {name: getattr(args, name) for name in (*names, "image_key", "caption_key")}


def write_shards(shards, plan, args):
    """Write the shards of this part that are not finished, one process each -> how many were written."""
    number, count = args.part
    mine = plan[number - 1 :: count]
    shards.clean(mine)
    jobs = [Job(shards, shard, picture_settings(args)) for shard in mine]
    workers = min(args.num_workers, len(jobs))
    with explained_errors(args.output_dir), contextlib.ExitStack() as stack:
        run = map
        if workers > 1:
            pool = ProcessPoolExecutor(workers, initializer=end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        return sum(tqdm(run(write_shard, jobs), total=len(jobs), unit=" shards", disable=None))


@contextlib.contextmanager
def explained_errors(output_dir):
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


def end_with_parent():
    """In a worker: end when the main process does, however it ends, so that no orphan goes on writing."""

    def watch():
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_shard(job):
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


def sources_digest(samples):
    """A hash of the sizes and times of the pictures' files; None if there is none of them."""
    states = []
    for sample in samples:
        row = hdf5_row(sample.image_path)
        try:
            status = os.stat(row[0] if row else sample.image_path)
            states.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            states.append(None)
    return hashlib.sha256(repr(states).encode()).hexdigest() if any(states) else None


def write_samples(tar, shard, pictures):
    """Append a shard's samples to a tar -> what its record says of them."""
    count, untouched, skipped = 0, 0, defaultdict(list)
    for key, sample in enumerate(shard.samples, shard.first_key):
        try:
            source = read_source(sample.image_path, pictures.inside)
            picture, same = to_jpeg(source, pictures.quality, pictures.image_size, pictures.crop_margins)
        except PictureError as error:
            skipped[error.reason].append(printable(sample.image_path))
            continue
        files = {"jpg": picture, "txt": sample.caption.encode(), "json": sample.metadata.encode()}
        tar.add({f"{key:09d}.{suffix}": data for suffix, data in files.items()})
        count += 1
        untouched += same
    return {"samples": count, "untouched_jpegs": untouched, "skipped": skipped}


def verify(shards, num_workers):
    """Check the shards against their manifest, say what is damaged or missing -> exit code."""
    manifest, faults = shards.verify(num_workers)
    for name, fault in faults.items():
        print(f"{name}: {fault}")
    total = len(manifest["shards"])
    if faults:
        print(f"{len(faults)} of {total} shards are not as {shards.manifest} says; delete them and write them again")
        return 1
    print(f"{total} shards with {manifest['samples']:,} samples are as {shards.manifest} says")
    return 0


def print_result(args, shards, plan, summary, written):
    """What was written, and which setting to change."""
    name, finished, total = args.dataset_name, len(summary["shards"]), len(plan)
    if finished < total:
        what = f"Part {args.part[0]}/{args.part[1]} is done: {finished} of {total} shards"
        print(f"{what} with {summary['samples']:,} samples are in {args.output_dir}")
    else:
        resumed = f" ({total - written} of them were there)" if written < total else ""
        print(f"Created {total} shards with {summary['samples']:,} samples in {args.output_dir}{resumed}")
    if summary["untouched_jpegs"]:
        print(f"{summary['untouched_jpegs']:,} pictures are plain JPEG and kept as they are")
    for other in shards.surplus(plan)[:1]:
        print(f"{args.output_dir} also holds {other} and more of another run; the pattern leaves them out")
    pattern = f"{name}.{{000000..{total - 1:06d}}}.tar"
    knob = (
        "VALID_DATASET_PATTERN" if "valid" in name.lower() and "train" not in name.lower() else "TRAIN_DATASET_PATTERN"
    )
    print(f"Shard pattern: {pattern}")
    print(f'Set in settings.py: {knob} = "{os.path.join(args.output_dir, pattern)}"')


if __name__ == "__main__":
    settings.run(main)
