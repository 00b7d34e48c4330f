"""Samples a second of create_webdataset.py beside a plain script of PIL and tarfile in one process.

    python benchmarks/shards.py                   # 4,000 pictures of 256 pixels, 5 rounds
    python benchmarks/shards.py --pictures 1000 --size 1000 1300

Three pairs take turns, each run in a process of its own and to an empty folder: PNG sources with two of our processes,
PNG sources with one, and JPEG sources (quality 95), which ours passes on as they are, with one. Timed is all from
reading the JSON to the last file, without starting Python and importing; ours includes flushing each shard to the disk,
hashing it, and the manifest. The pictures come from the page cache. Printed are medians and their ratios.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from loader import caption, photo
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DISTINCT, VIEWS, SHARD_SIZE = 400, 4, 500
PAIRS = {  # name: (kind of source, processes, at least)
    "PNG, 2 processes": ("png", 2, 1.8),
    "PNG, 1 process": ("png", 1, None),
    "JPEG passed through, 1 process": ("jpg", 1, 6.0),
}


def main():
    """Draw the pictures, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000, help="pictures of each kind [4000]")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), help="their width and height [256 256]")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each pair [5]")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "JSON", "PROCESSES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run_one(*args.one)
    with tempfile.TemporaryDirectory() as folder:
        mappings = draw_sources(Path(folder), args.pictures, tuple(args.size))
        seconds = {(name, who): [] for name in PAIRS for who in ("ours", "plain")}
        for number in range(args.rounds + 1):
            for name, who in seconds:
                kind, processes, _ = PAIRS[name]
                taken = measure(who, mappings[kind], processes)
                if number:  # the first round fills the page cache
                    seconds[name, who].append(taken)
    return report(seconds, args.pictures)


def draw_sources(folder, count, size):
    """Pictures as PNG and as JPEG files, and their mappings -> {kind: path of the JSON}."""
    random = np.random.default_rng(0)
    encoded = {"png": [], "jpg": []}
    for _ in range(min(DISTINCT, count)):
        picture = photo(random, size)
        for kind, options in (("png", {"format": "PNG"}), ("jpg", {"format": "JPEG", "quality": 95})):
            buffer = io.BytesIO()
            picture.save(buffer, **options)
            encoded[kind].append(buffer.getvalue())
    for kind, pictures in encoded.items():
        (folder / kind).mkdir()
        entries = []
        for number in range(count):
            path = folder / kind / f"{number}.{kind}"
            path.write_bytes(pictures[number % len(pictures)])
            if number % VIEWS == 0:
                text = caption(random)
            record = {"image_path": str(path), "image_name": path.name, "caption": text, "category": "TOPS"}
            entries.append(record | {"product_id": str(number // VIEWS)})
        (folder / f"{kind}.json").write_text(json.dumps(entries), encoding="utf-8")
        kilobytes = sum(map(len, pictures)) / len(pictures) / 1024
        print(f"{count:,} {kind} sources of {size[0]}x{size[1]} pixels, {kilobytes:.0f} KiB on average")
    return {kind: folder / f"{kind}.json" for kind in encoded}


def measure(who, mapping, processes):
    """Seconds of one run in a process of its own."""
    command = [sys.executable, __file__, "--one", who, str(mapping), str(processes)]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return float(printed.splitlines()[-1])


def run_one(who, mapping, processes):
    """One run to an empty folder; the last line printed is how many seconds it took."""
    sys.path.insert(0, str(ROOT))
    import create_webdataset

    arguments = [f"--json={mapping}", f"--num-workers={processes}", f"--shard-size={SHARD_SIZE}", "--no-shuffle"]
    output = Path(mapping).with_name("output")
    begin = time.perf_counter()
    if who == "ours":
        create_webdataset.main([*arguments, f"--output-dir={output}"])
    else:
        plain_script(mapping, output)
    seconds = time.perf_counter() - begin
    written = 0
    for path in output.glob("*.tar"):
        with tarfile.open(path) as tar:
            written += len(tar.getnames())
    expected = 3 * len(json.loads(Path(mapping).read_text(encoding="utf-8")))
    shutil.rmtree(output)
    if written != expected:
        raise RuntimeError(f"{who} wrote {written} files, not {expected}")
    print(seconds)


def plain_script(mapping, output):
    """What a first version of such a script does."""
    entries = json.loads(Path(mapping).read_text(encoding="utf-8"))
    output.mkdir()
    for first in range(0, len(entries), SHARD_SIZE):
        with tarfile.open(output / f"plain.{first // SHARD_SIZE:06d}.tar", "w") as tar:
            for key, entry in enumerate(entries[first : first + SHARD_SIZE], first):
                encoded = io.BytesIO()
                Image.open(entry["image_path"]).convert("RGB").save(encoded, "JPEG", quality=95)
                record = {name: entry[name] for name in ("product_id", "category", "image_name")}
                files = {
                    "jpg": encoded.getvalue(),
                    "txt": entry["caption"].encode(),
                    "json": json.dumps(record).encode(),
                }
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{key:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def report(seconds, count):
    """Medians and their ratios -> 1 if one is below what it must be."""
    missed = False
    for name, (_, _, least) in PAIRS.items():
        rate = {who: count / statistics.median(seconds[name, who]) for who in ("ours", "plain")}
        ratio = rate["ours"] / rate["plain"]
        target = "" if least is None else f" (at least {least}x)"
        print(f"{name:<32} ours {rate['ours']:6,.0f} samples/s, plain {rate['plain']:5,.0f}: {ratio:.2f}x{target}")
        missed |= least is not None and ratio < least
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
