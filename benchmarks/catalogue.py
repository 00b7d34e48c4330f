"""Rate and peak memory of clip_prep.py on PAI pickles, with no and with two processes.

    python benchmarks/catalogue.py                     # 20,000 and 80,000 pickles
    python benchmarks/catalogue.py --pickles 260490    # as many as Fashion-Gen's training split

Each pickle holds a product description and three lists of 512 tokens, four views a product. Runs take turns, files come
from the page cache. Memory is the peak resident size of all processes together, above that of a catalogue a quarter as
large: flat means that this difference stays small.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 512
LINKS = 10_000  # file systems bound the links to one file
# Runs clip_prep and prints the peak memory of its processes, in KiB as Linux counts.
PROGRAM = """
import json, resource, sys
import clip_prep
if __name__ == "__main__":
    clip_prep.main(sys.argv[1:])
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([own.ru_maxrss, workers.ru_maxrss]))
"""


def main():
    """Draw the catalogues, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pickles", type=int, default=80_000, help="pickles of the larger catalogue [80000]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind [3]")
    parser.add_argument("--folder", help="where the catalogues are drawn [a temporary folder]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        draw_catalogue(small, args.pickles // 4)
        draw_catalogue(large, args.pickles)
        runs = {(path, workers): [] for path in (small, large) for workers in (0, 2)}
        for _ in range(args.rounds):
            for path, workers in runs:
                runs[path, workers].append(measure(path, workers))
    report(runs, small, large, args.pickles)


def draw_catalogue(folder, count):
    """`count` pickles in the raw PAI layout; the pictures are links to a few, as prep only asks whether they exist."""
    pickles, images = folder / "full_train_info_PAI", folder / "extracted_train_images"
    pickles.mkdir(parents=True)
    images.mkdir()
    for number in range(count):
        product, view = 100_000 + number // 4, number % 4 + 1
        name = f"{product}_{view}"
        words = " ".join(f"word{(product * step) % 7919}" for step in range(1, 30))
        record = {
            "product_id": str(product),
            "img_name": f"{name}.png",
            "super_cls_name": f"CATEGORY {product % 48}",
            "super_cls_id": product % 48,
            "sub_cls_name": f"SUBCATEGORY {product % 121}",
            "sub_cls_id": product % 121,
            "captions": f"Long sleeve knit sweater in colour {product}. {words}.",
            "input_ids": [101 + (product * step) % 30_000 for step in range(60)] + [0] * (TOKENS - 60),
            "token_type_ids": [0] * TOKENS,
            "attention_mask": [1] * 60 + [0] * (TOKENS - 60),
        }
        (pickles / f"{name}.pkl").write_bytes(pickle.dumps(record))
        if number % LINKS == 0:
            picture = images / f"{name}.png"
            Image.new("RGB", (8, 8)).save(picture)
        else:
            os.link(picture, images / f"{name}.png")


def measure(folder, workers):
    """One run in a process of its own -> (seconds, MiB at the peak)."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        f"--data-dir={folder}",
        f"--output={folder}.json",
        f"--num-workers={workers}",
    ]
    begin = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    own, worker = json.loads(result.stdout.splitlines()[-1])
    return seconds, (own + workers * worker) / 1024


def report(runs, small, large, count):
    """Medians and their ratios."""
    sizes = {small: count // 4, large: count}
    medians = {key: [statistics.median(values) for values in zip(*results)] for key, results in runs.items()}
    for (path, workers), (seconds, memory) in medians.items():
        rate = sizes[path] / seconds
        print(
            f"{sizes[path]:>9,} pickles, {workers} workers: {seconds:6.1f} s, {rate:6,.0f} pickles/s, {memory:4.0f} MiB"
        )
    for workers in (0, 2):
        more = medians[large, workers][1] - medians[small, workers][1]
        per_row = more * 2**20 / (sizes[large] - sizes[small])
        print(f"{workers} workers: {more:.0f} MiB more for 4 times the pickles ({per_row:.0f} bytes a pickle)")
    print(f"two workers against none, larger catalogue: {medians[large, 0][0] / medians[large, 2][0]:.2f}x")


if __name__ == "__main__":
    main()
