"""Write WebDataset tar shards from a JSON mapping.

    python create_webdataset.py --json clip_dataset_valid.json --output-dir webdataset_shards --shard-size 1000

Each sample is `{key}.jpg`, `{key}.txt` (the caption) and `{key}.json` (product_id, category, ...). The views of one
product stay in one shard and products are shuffled with a fixed seed, so that any range of shards is a fair sample and
two ranges share no product. The same input gives the same bytes, whatever the number of processes.
"""

import io
import json
import random
import tarfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import settings
from atomic_write import atomic_write
from clip_prep import print_skipped
from pictures import PictureError, load_picture, read_source

METADATA = ("product_id", "category", "subcategory", "image_name", "captions")


class Job(NamedTuple):
    """One shard to write."""

    path: Path
    first_key: int
    entries: list
    image_key: str
    caption_key: str
    quality: int


def main(argv=None):
    """Read the JSON, plan the shards, write them, say which pattern to set."""
    args = parse_arguments(argv)
    entries = read_mapping(args.json)
    skipped = defaultdict(list)
    usable = check_entries(entries, args.image_key, args.caption_key, skipped)
    products = group_products(usable, args.caption_key)
    if not args.no_shuffle:
        random.Random(args.seed).shuffle(products)
    plan = plan_shards(products, args.shard_size)[: args.max_shards]
    name = args.dataset_name or Path(args.json).stem
    sizes = write_shards(plan, name, args, skipped)
    print_skipped(skipped)
    if not sum(sizes.values()):
        raise ValueError(f"no sample of {args.json} could be used; check that {args.image_key} points to real files")
    update_sizes(Path(args.output_dir), name, sizes)
    print_result(args, name, sizes)


def parse_arguments(argv):
    """The script's own arguments and its knobs."""
    parser = settings.Parser(__doc__, ["SHARD_SIZE", "QUALITY", "NUM_WORKERS", "SEED"])
    parser.add_argument("--json", required=True, help="mapping written by clip_prep.py")
    parser.add_argument("--output-dir", required=True, help="folder of the shards")
    parser.add_argument("--max-shards", type=int, help="write only the first so many shards")
    parser.add_argument("--image-key", default="image_path", help="field of the picture's path [image_path]")
    parser.add_argument("--caption-key", default="caption", help="field of the caption [caption]")
    parser.add_argument("--dataset-name", help="first part of the shards' names [name of the JSON]")
    parser.add_argument("--no-shuffle", action="store_true", help="keep the order of the JSON")
    args = parser.parse_args(argv)
    if args.max_shards is not None and args.max_shards < 1:
        parser.error(f"--max-shards {args.max_shards} is not allowed: it takes a whole number >= 1")
    return args


def read_mapping(path):
    """The entries of a JSON mapping. Raises FileNotFoundError, or ValueError for anything but a list."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; make it with clip_prep.py") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make it anew with clip_prep.py") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}; it must be a list of objects, one a picture")
    return entries


def check_entries(entries, image_key, caption_key, skipped):
    """The usable entries; others are added to `skipped` by reason."""
    usable = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            skipped["not an object"].append(f"entry {number}")
        elif not isinstance(entry.get(image_key), str) or not entry[image_key]:
            skipped[f"no {image_key}"].append(f"entry {number}")
        elif not isinstance(entry.get(caption_key), str) or not entry[caption_key].split():
            skipped[f"no {caption_key}"].append(entry[image_key])
        else:
            usable.append(entry)
    return usable


def group_products(entries, caption_key):
    """Lists of entries, one a product, in order of first appearance; without an id, equal captions are one product."""
    products = defaultdict(list)
    for entry in entries:
        products[str(entry.get("product_id") or entry[caption_key])].append(entry)
    return list(products.values())


def plan_shards(products, shard_size):
    """Lists of entries, one a shard: products are added until `shard_size` is reached, none is split."""
    shards = [[]]
    for product in products:
        if len(shards[-1]) >= shard_size:
            shards.append([])
        shards[-1] += product
    return shards


def write_shards(plan, name, args, skipped):
    """Write every shard, `NUM_WORKERS` at a time -> {file name: samples}."""
    jobs, first_key = [], 0
    for number, entries in enumerate(plan):
        path = Path(args.output_dir) / f"{name}.{number:06d}.tar"
        jobs.append(Job(path, first_key, entries, args.image_key, args.caption_key, args.quality))
        first_key += len(entries)
    sizes = {}
    with ProcessPoolExecutor(max(1, args.num_workers)) as pool:
        results = map(write_shard, jobs) if args.num_workers < 2 else pool.map(write_shard, jobs)
        for job, (count, lost) in zip(jobs, tqdm(results, total=len(jobs), unit=" shards", disable=None)):
            sizes[job.path.name] = count
            for reason, names in lost.items():
                skipped[reason] += names
    return sizes


def write_shard(job):
    """Write one shard whole or not at all -> (samples, {reason: paths of skipped pictures})."""
    lost, count = defaultdict(list), 0
    with atomic_write(job.path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, entry in enumerate(job.entries, job.first_key):
            try:
                picture = encode(read_source(entry[job.image_key]), job.quality)
            except PictureError as error:
                lost[error.reason].append(entry[job.image_key])
                continue
            metadata = {field: entry[field] for field in METADATA if entry.get(field)}
            add(tar, f"{key:09d}.jpg", picture)
            add(tar, f"{key:09d}.txt", " ".join(entry[job.caption_key].split()).encode())
            add(tar, f"{key:09d}.json", json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode())
            count += 1
    return count, dict(lost)


def encode(data, quality):
    """Encoded bytes of any picture -> JPEG bytes."""
    encoded = io.BytesIO()
    load_picture(data).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def add(tar, name, data):
    """Add a member with fixed time, owner and mode, so that the same samples give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def update_sizes(folder, name, sizes):
    """Enter the shards' sample counts into `sizes.json`, which open_clip and webdataset read."""
    path = folder / "sizes.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    others = {file: count for file, count in known.items() if not file.startswith(f"{name}.")}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({**others, **sizes}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def print_result(args, name, sizes):
    """What was written, and which setting to change."""
    pattern = f"{name}.{{000000..{len(sizes) - 1:06d}}}.tar"
    knob = next(
        (f"{split}_DATASET_PATTERN" for split in ("TRAIN", "VALID") if split.lower() in name.lower()),
        "TRAIN_DATASET_PATTERN",
    )
    print(f"Created {len(sizes)} shards with {sum(sizes.values()):,} samples in {args.output_dir}")
    print(f"Shard pattern: {pattern}")
    print(f'Set in settings.py: {knob} = "{(Path(args.output_dir) / pattern).as_posix()}"')


if __name__ == "__main__":
    settings.run(main)
