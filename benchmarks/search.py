"""Search among 260,000 vectors of 512 numbers: the approximate ranking beside the exact one.

    python benchmarks/search.py                       # a catalogue's vectors, and random ones (some minutes)
    python benchmarks/search.py --kinds catalogue --count 60000

`catalogue`: four views around each product, products around 60 categories, in 64 directions with noise in all 512;
queries are captions: near a product, and as far from all pictures as CLIP's two towers are apart. `random`: directions
without any neighbourhood. Time is that of `Index.search` for one query at a time, texts of the hits included; in brackets
the time that its thread computes, which tells what is waiting on a machine that others use; `first` is the very first query
after opening. The yardstick is one bare product of all vectors with a query, by numpy. Recall is that of pictures and of
products, each by its best picture. Memory is what opening and asking adds: the process's own, and mapped files in brackets.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from clip_finetuning.search import build
from clip_finetuning.search.database import Store
from clip_finetuning.search.index import Index
from clip_finetuning.search.reading import Row

DIMENSIONS, VIEWS, CATEGORIES, INNER, QUERIES = 512, 4, 60, 64, 300


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=260_000)
    parser.add_argument("--kinds", nargs="+", choices=("catalogue", "random"), default=["catalogue", "random"])
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {options.count:,} vectors of {DIMENSIONS}")
    for kind in options.kinds:
        vectors, queries, categories = {"catalogue": catalogue, "random": random_directions}[kind](options.count)
        with tempfile.TemporaryDirectory() as folder:
            measure(kind, Path(folder), vectors, queries, categories)


def catalogue(count):
    """(vectors, queries, categories) of a catalogue and of captions."""
    random = np.random.default_rng(0)
    products = -(-count // VIEWS)
    basis = random.normal(size=(INNER, DIMENSIONS)) / np.sqrt(INNER)
    categories = random.integers(0, CATEGORIES, products)
    centres = random.normal(size=(CATEGORIES, INNER))[categories] + 0.7 * random.normal(size=(products, INNER))
    apart = 2 * random.normal(size=DIMENSIONS)
    views = np.repeat(centres, VIEWS, axis=0)[:count]
    vectors = (views + 0.35 * random.normal(size=views.shape)) @ basis + 0.7 * apart
    vectors = vectors.astype(np.float32) + 0.25 * random.standard_normal((count, DIMENSIONS), dtype=np.float32)
    asked = centres[random.choice(products, QUERIES, replace=False)]
    queries = (asked + 0.6 * random.normal(size=asked.shape)) @ basis - 0.5 * apart
    queries += 0.3 * random.normal(size=queries.shape)
    return unit(vectors), unit(queries), np.repeat(categories, VIEWS)[:count]


def random_directions(count):
    """The same of vectors that have nothing to do with each other."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((count, DIMENSIONS), dtype=np.float32)
    return unit(vectors), unit(random.normal(size=(QUERIES, DIMENSIONS))), random.integers(0, CATEGORIES, count)


def unit(rows):
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(kind, folder, vectors, queries, categories):
    """Make the index, then ask it."""
    rows = [
        Row(f"{n:09d}", f"P{n // VIEWS}", f"category {category}", "", f"caption {n // VIEWS}", n)
        for n, category in enumerate(categories.tolist())
    ]
    store = Store(folder, "model")
    for start in range(0, len(rows), 4096):
        part = slice(start, min(start + 4096, len(rows)))
        store.add("picture", list(range(part.start, part.stop)), vectors[part], [b""] * (part.stop - part.start))
    # What the scan is measured on: other queries than those below, of the same kind.
    store.add("caption", [build.content_of(f"caption {n}") for n in range(150)], queries[:150])
    counts = {"embedded": len(rows), "again_in_fp32": 0, "skipped": {}, "guessed": {}}
    about = {"name": "none", "hash": "model", "precision": "fp32"}
    start = time.perf_counter()
    build.renew(folder, None, store, rows, counts, about, DIMENSIONS)
    seconds = time.perf_counter() - start
    yardstick = bare_product(vectors, queries[:20])
    del vectors, rows
    before, start = memory(), time.perf_counter()
    index = Index.open(folder)
    opened = time.perf_counter() - start
    print(f"{kind}: index made in {seconds:.0f} s, opened in {opened:.1f} s, scan {index.about['scan']}")
    print(f"  yardstick {yardstick}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report("all categories", index, queries[150:])
    held, mapped = (after - first for after, first in zip(memory(), before))
    print(f"  memory: {held:.0f} MiB of its own ({mapped:.0f} MiB of files mapped)")
    report("one category", index, queries[150:], "category 7")


def report(title, index, queries, category=None):
    """The time of a query, and the recall at 10 of the approximate ranking against the exact one."""
    times, computing, exact_times = [], [], []
    for query in queries[:, None]:
        wall, cpu = timed(lambda: index.search(query, 10, category))  # noqa: B023
        times.append(wall)
        computing.append(cpu)
    recalls = {}
    for what, views in (("pictures", True), ("products", False)):
        found = []
        for query in queries[:, None]:
            [few], exact = index.search(query, 10, category, views=views), []
            exact_times.append(timed(lambda: exact.extend(index.search(query, 10, category, True, views)[0]))[0])  # noqa: B023
            found.append(len({hit.image_key for hit in few} & {hit.image_key for hit in exact}) / 10)
        recalls[what] = np.mean(found)
    print(
        f"  {title}: recall at 10 {recalls['pictures']:.4f} of pictures, {recalls['products']:.4f} of products over "
        f"{len(queries)} queries; {spread(times)} (computing {spread(computing)}, first {times[0]:.1f}), "
        f"exact {statistics.median(exact_times):.0f} ms"
    )


def bare_product(vectors, queries):
    """The time of a product of all vectors with each query."""
    return spread([timed(lambda: vectors @ query)[0] for query in queries])  # noqa: B023


def timed(what):
    """(milliseconds that a call takes, milliseconds that its thread computes)."""
    start, cpu = time.perf_counter(), time.thread_time()
    what()
    return 1000 * (time.perf_counter() - start), 1000 * (time.thread_time() - cpu)


def spread(times):
    """The median and the 95th percentile."""
    return f"{statistics.median(times):.1f} ms, p95 {statistics.quantiles(times, n=20)[-1]:.1f}"


def memory():
    """(MiB of this process's own, MiB of files that it has mapped)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["RssFile"].split()[0]) / 1024


if __name__ == "__main__":
    main()
