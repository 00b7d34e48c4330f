"""Exact retrieval metrics beside the usual ways, on random embeddings: time, and memory above the embeddings.

    python benchmarks/evaluation.py                # 16,000 pairs, then 32,528 images x 7,500 captions
    python benchmarks/evaluation.py --large        # 260,000 images x 60,000 captions, ours alone (minutes)
    python benchmarks/evaluation.py --out-of-core 40000 36000   # float16 files, and what 2,000,000 x 60,000 take

At 16,000 pairs: ours against open_clip_train's get_clip_metrics (the full matrix, sorted) and against two full argsorts,
in turns. The same job for all is the `pair` protocol, whose samples share their captions as views of a product do: about
3,700 distinct ones. Ours in the `product` protocol stands beside it. At Fashion-Gen's size: ours against the two bare matrix products, by the same blocks, in turns. Ratios
are of medians. Ours is everything from embeddings to Recall@1/5/10, ranks, MRR and mAP, without the intervals.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from clip_finetuning.retrieval import metrics, ranking, tiles
from clip_finetuning.retrieval.pairs import pair_values
from clip_finetuning.retrieval.positives import from_pairs, one_to_one, transposed
from clip_finetuning.retrieval.stored_rows import StoredRows

DIMENSIONS, KS = 512, (1, 5, 10)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="260,000 images x 60,000 captions")
    parser.add_argument("--memory", nargs=2, type=int, metavar=("IMAGES", "CAPTIONS"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--out-of-core", nargs=2, type=int, metavar=("IMAGES", "CAPTIONS"), help="a slice of large files"
    )
    options = parser.parse_args()
    if options.memory:
        print(memory_above_embeddings(*options.memory))
        return
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {DIMENSIONS} dimensions"
    )
    if options.out_of_core:
        report_out_of_core(*options.out_of_core)
        return
    if options.large:
        report_large(260_000, 60_000)
        return
    report_pairs(16_000, 3_700, options.rounds)
    report_against_matrix_products(32_528, 7_500, options.rounds)


def embeddings(images, captions, seed=0):
    """Unit rows: (images, D) and (captions, D), an image near its caption, and each image's caption."""
    random = torch.Generator().manual_seed(seed)
    texts = torch.randn(captions, DIMENSIONS, generator=random)
    caption_of = torch.arange(images) * captions // images
    pictures = texts[caption_of] + 2.0 * torch.randn(images, DIMENSIONS, generator=random)
    unit = torch.nn.functional.normalize
    return unit(pictures, dim=1), unit(texts, dim=1), caption_of.numpy()


def ours(pictures, texts, positives):
    """Both directions."""
    back = transposed(positives, len(pictures))
    forward = metrics.summarize(ranking.rank_positives(texts, pictures, positives), KS)
    return forward, metrics.summarize(ranking.rank_positives(pictures, texts, back), KS)


def two_argsorts(pictures, texts):
    """Ranks by two argsorts of each direction's full matrix."""
    scores = texts @ pictures.T
    for matrix in (scores, scores.T):
        ranks = matrix.argsort(dim=1, descending=True).argsort(dim=1).diagonal()
        [float((ranks < k).float().mean()) for k in KS]


def bare_products(pictures, texts, block=1024):
    """Only the matrix products of both directions, by blocks."""
    for queries, gallery in ((texts, pictures), (pictures, texts)):
        for start in range(0, len(queries), block):
            queries[start : start + block] @ gallery.T


def in_turns(contenders, rounds):
    """{name: median seconds}, the contenders alternating."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report_pairs(pairs, products, rounds):
    """Against open_clip_train and two argsorts, all of them one to one."""
    from open_clip_train.train import get_clip_metrics

    pictures, captions, caption_of = embeddings(pairs, products)
    texts = captions[caption_of]  # about four samples share each
    positives = from_pairs(caption_of, np.arange(pairs), products)
    theirs, mine = (
        get_clip_metrics(pictures, texts, torch.tensor(1.0)),
        pair_values(pictures, captions, caption_of, KS),
    )
    for k in KS:
        # Two scores that differ in the last bit may change places. Equal texts they sort as they come, we take the
        # expectation: 4 standard deviations of a mean of hits.
        tolerance = {"text_to_image": 2 / pairs, "image_to_text": 2 / pairs**0.5}
        for way, close in tolerance.items():
            assert abs(theirs[f"{way}_R@{k}"] - mine[way][f"recall@{k}"].mean()) < close
    seconds = in_turns(
        {
            "ours, pair": lambda: pair_values(pictures, captions, caption_of, KS),
            "ours, product": lambda: ours(pictures, captions, positives),
            "open_clip get_clip_metrics": lambda: get_clip_metrics(pictures, texts, torch.tensor(1.0)),
            "two argsorts": lambda: two_argsorts(pictures, texts),
        },
        rounds,
    )
    print(f"\n{pairs:,} pairs of {products:,} products, both directions, {rounds} rounds")
    for name, value in seconds.items():
        ratios = "".join(f"{value / seconds[base]:10.1f}x of {base}" for base in ("ours, pair", "ours, product"))
        print(f"  {name:28}{value:8.2f} s{'' if name.startswith('ours') else ratios}")


def report_against_matrix_products(images, captions, rounds):
    """Against the physical limit, and the memory."""
    pictures, texts, caption_of = embeddings(images, captions)
    positives = from_pairs(caption_of, np.arange(images), captions)
    seconds = in_turns(
        {
            "ours": lambda: ours(pictures, texts, positives),
            "bare matrix products": lambda: bare_products(pictures, texts),
        },
        rounds,
    )
    print(f"\n{images:,} images x {captions:,} captions, both directions, {rounds} rounds")
    for name, value in seconds.items():
        print(f"  {name:28}{value:8.2f} s")
    print(f"  ratio                       {seconds['ours'] / seconds['bare matrix products']:8.2f}")
    command = [sys.executable, __file__, "--memory", str(images), str(captions)]
    extra = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(f"  memory above the embeddings {float(extra):8.0f} MB")


def memory_above_embeddings(images, captions):
    """MB by which the peak of this process grows while the metrics are computed."""
    pictures, texts, caption_of = embeddings(images, captions)
    ours(pictures[:64], texts[:64], one_to_one(64))  # the libraries' own buffers
    before = resident()
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    filler = np.ones(
        int(max(peak_before - before, 0) * 2**20), dtype=np.uint8
    )  # stand at the peak: more is the metrics'
    ours(pictures, texts, from_pairs(caption_of, np.arange(images), captions))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - max(peak_before, before)
    return grown + 0 * len(filler)


def resident():
    """Resident MB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def report_large(images, captions):
    """A whole Fashion-Gen training split as the gallery."""
    pictures, texts, caption_of = embeddings(images, captions)
    start = time.perf_counter()
    numbers = ours(pictures, texts, from_pairs(caption_of, np.arange(images), captions))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{images:,} images x {captions:,} captions, both directions: {seconds:.0f} s, peak memory {peak:.1f} GB")
    print(f"  Recall@10 {numbers[0]['recall@10']:.4f}, {numbers[1]['recall@10']:.4f}")


def report_out_of_core(images, captions):
    """A slice of 2,000,000 x 60,000 in files of float16, against the bare products of the same in memory."""
    pictures, texts, caption_of = embeddings(images, captions)
    positives = from_pairs(caption_of, np.arange(images), captions)
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("pictures", pictures), ("texts", texts)):
            np.save(f"{folder}/{name}.npy", rows.half().numpy())
        stored = {name: StoredRows(np.load(f"{folder}/{name}.npy", mmap_mode="c")) for name in ("pictures", "texts")}
        seconds = in_turns(
            {
                "ours": lambda: ours(**stored, positives=positives),
                "bare matrix products": lambda: bare_products(pictures, texts),
            },
            1,
        )
    print(f"\n{images:,} images x {captions:,} captions in float16 files, both directions")
    for name, value in seconds.items():
        whole = value * 2_000_000 * 60_000 / (images * captions)
        print(f"  {name:28}{value:8.2f} s; at this rate 2,000,000 x 60,000 take {whole / 3600:.1f} h")
    print(f"  ratio                       {seconds['ours'] / seconds['bare matrix products']:8.2f}")
    blocks = (tiles.BLOCK_BYTES * 3 + tiles.MOST_COLUMNS * DIMENSIONS * 4) / 2**20
    print(f"  memory: about {blocks:.0f} MB of blocks, and some 100 bytes a positive")


if __name__ == "__main__":
    main()
