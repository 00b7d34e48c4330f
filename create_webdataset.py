"""Write WebDataset tar shards from a JSON mapping.

    python create_webdataset.py --json clip_dataset_valid.json --output-dir webdataset_shards --shard-size 1000
    python create_webdataset.py --json clip_dataset_train.json --output-dir webdataset_shards --part 3/16
    python create_webdataset.py --json clip_dataset_train.json --output-dir /shared/shards --ray HOST:6379
    python create_webdataset.py --verify --json clip_dataset_valid.json --output-dir webdataset_shards

Each sample is `{key}.jpg`, `{key}.txt` (the caption) and `{key}.json` (product_id, category, ...). The views of one
product stay in one shard and products are shuffled with a fixed seed, so that any range of shards is a fair sample and
two ranges share no product. The same input gives the same bytes, whatever the number of processes, parts or machines. A run that
was stopped goes on where it was when the same command is given again.

Relative paths of the JSON are the caller's. With --data-dir, those that do not begin with that folder are below it, and
pictures outside it are skipped.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import settings
from clip_finetuning import catalogue, loading, shards
from clip_finetuning.runtime import command_line, console
from clip_finetuning.runtime.text import printable

if TYPE_CHECKING:
    from clip_finetuning.catalogue.mapping import Mapping
    from clip_finetuning.shards.manifest import ShardSet
    from clip_finetuning.shards.plan import Shard
    from clip_finetuning.shards.write import PictureSettings


def main(argv: list[str] | None = None) -> int:
    """Read the JSON, plan the shards, write those that are not finished, say which pattern to set."""
    args = parse_arguments(argv)
    shard_set = shards.manifest.ShardSet(args.output_dir, args.dataset_name)
    if args.verify:
        return verify(shard_set, args.num_workers)
    mapping = catalogue.mapping.read_mapping(args.json, args.image_key, args.caption_key)
    mapping.check_weights(args.json)
    samples = [shards.plan.make_sample(entry, args.data_dir) for entry in mapping.entries]
    seed, pictures = None if args.no_shuffle else args.seed, picture_settings(args)
    whole_plan = shards.plan.plan_shards(samples, args.shard_size, seed, pictures)
    plan = whole_plan[: args.max_shards]
    on_cluster = partial(shards.on_ray.write_on_ray, args.ray) if args.ray else None
    written = shards.write.write_shards(shard_set, plan, pictures, args.part, args.num_workers, on_cluster)
    summary = shard_set.summary(plan, about(args, mapping, whole_plan))
    skipped = {reason: found["paths"] for reason, found in summary["skipped"].items()}
    for line in mapping.remarks() + catalogue.summary.skipped_lines(skipped):
        print(line)
    publish(args, shard_set, plan, summary)
    loading.tar_index.keep(shard_set.local_paths(plan[args.part[0] - 1 :: args.part[1]]))
    print_result(args, shard_set, plan, summary, written)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The script's own arguments and its knobs."""
    parser = command_line.Parser(settings, __doc__, ["SHARD_SIZE", "QUALITY", "DATA_DIR", "NUM_WORKERS", "SEED"])
    parser.add_argument("--json", help="mapping written by clip_prep.py")
    parser.add_argument("--output-dir", required=True, help="folder of the shards, or a URL that fsspec knows")
    parser.add_argument("--max-shards", type=whole_number, help="write only the first so many shards")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="write the I-th of N parts [1/1]")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="write on a Ray cluster (HOST:6379, auto, local) instead of --num-workers processes",
    )
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


def whole_number(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it takes a whole number >= 1")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """`I/N` -> (I, N), of N parts the I-th, from 1."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it takes I/N, such as 3/16, with 1 <= I <= N")
    return int(number), int(count)


def picture_settings(args: argparse.Namespace) -> PictureSettings:
    """What decides the bytes of a picture, beside its source."""
    inside = None if args.allow_outside else args.data_dir
    return shards.write.PictureSettings(args.quality, args.image_size, args.crop_margins, inside)


def about(args: argparse.Namespace, mapping: Mapping, plan: list[Shard]) -> dict:
    """What the manifest says beside the shards: how many entries went where, and the settings that decide what they hold."""
    skipped = defaultdict(list)
    for entry in mapping.skipped:
        skipped[entry.reason].append(entry.name)
    names = ("shard_size", "quality", "image_size", "crop_margins", "seed", "no_shuffle", "max_shards")
    return {
        "dataset": args.dataset_name,
        "entries": len(mapping.entries) + len(mapping.skipped),
        "beyond_max_shards": sum(len(shard.samples) for shard in plan[args.max_shards :]) if args.max_shards else 0,
        "skipped": skipped,
        "settings": {name: getattr(args, name) for name in (*names, "image_key", "caption_key")},
    }


def publish(args: argparse.Namespace, shard_set: ShardSet, plan: list[Shard], summary: dict) -> None:
    """Write the manifest once every shard of the plan is finished. Raises ValueError if they hold no sample."""
    if len(summary["shards"]) < len(plan):
        return
    if not summary["samples"]:
        shard_set.forget(plan)
        raise ValueError(f"no sample of {args.json} could be used; check that {args.image_key} points to real files")
    shard_set.publish(summary)


def verify(shard_set: ShardSet, num_workers: int) -> int:
    """Check the shards against their manifest, say what is damaged or missing -> exit code."""
    manifest, faults = shard_set.verify(num_workers)
    for name, fault in faults.items():
        print(f"{printable(name)}: {fault}")
    total = len(manifest["shards"])
    if faults:
        print(f"{len(faults)} of {total} shards are not as {shard_set.manifest} says; delete them and write them again")
        return 1
    print(f"{total} shards with {manifest['samples']:,} samples are as {shard_set.manifest} says")
    return 0


def print_result(args: argparse.Namespace, shard_set: ShardSet, plan: list[Shard], summary: dict, written: int) -> None:
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
    for other in shard_set.surplus(plan)[:1]:
        print(f"{args.output_dir} also holds {other} and more of another run; the pattern leaves them out")
    pattern = f"{name}.{{000000..{total - 1:06d}}}.tar"
    knob = (
        "VALID_DATASET_PATTERN" if "valid" in name.lower() and "train" not in name.lower() else "TRAIN_DATASET_PATTERN"
    )
    print(f"Shard pattern: {pattern}")
    print(f'Set in settings.py: {knob}: str = "{os.path.join(args.output_dir, pattern)}"')


if __name__ == "__main__":
    console.run(main, settings)
