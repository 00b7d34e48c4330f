"""A training run as a picture, made of the lines of metrics.jsonl: loss, Recall@10, learning rate, throughput."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_finetuning.runtime.atomic_write import atomic_write

DIRECTIONS = {"text_to_image": ("text→image", "#3451b2"), "image_to_text": ("image→text", "#c2410c")}
MEAN, KEY = "mean_recall@10", "recall@10"
OF_RETENTION, BOTH = (
    "retention/",
    "mean_of_both",
)  # names of what is measured on the retention shards, and of the mean of both
INK, SOFT, RAW, GOOD, KNOWN = "#1c2024", "#60646c", "#b9c3ea", "#18794e", "#8e4ec6"
FEW = 30  # points that are also drawn as dots
SMOOTHED = 40  # parts of a run: the smoothed loss is the mean over one of them


def draw(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the picture as a PNG. Records are those of metrics.jsonl; what they lack is said in its place."""
    from matplotlib.figure import Figure  # without pyplot there is no window system to ask for

    records = [record for record in records if isinstance(record, Mapping) and _is_finite(record.get("step"))]
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1.15))
    panels = (_loss, _recall, _learning_rate, _throughput)
    for place, (panel, position) in enumerate(zip(panels, [grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1]])):
        axes = figure.add_subplot(position)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=SOFT)
        axes.grid(alpha=0.25)
        if not panel(axes, records):
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=SOFT, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            continue
        _steps(axes, records, named=place > 1)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


# -------------------------------------------------------------------------------------------------- the panels


def _loss(axes, records):
    """Every logged loss, pale, and their mean over a fortieth of the run; where a loss was not finite, a gap."""
    steps, losses = _series(records, "loss")
    finite = np.isfinite(losses)
    gaps = len(losses) - int(finite.sum())
    title = f"loss ({gaps:,} of {len(losses):,} logged are not finite)" if gaps else "loss"
    axes.set_title(title, loc="left", color=INK)
    if not finite.any():
        return False
    window = len(losses) // SMOOTHED
    marker = "o" if len(losses) <= FEW else "." if gaps else None  # between two gaps there may be no line
    axes.plot(steps, losses, color=RAW if window > 1 else "#3451b2", linewidth=1, marker=marker, markersize=4)
    if finite.sum() == 1:
        only = float(losses[finite][0])
        axes.annotate(f"{only:.4f}  ", (steps[finite][0], only), ha="right", va="center", color=INK)
        axes.set_ylim(0, 2 * only or 1)
    if window > 1:
        axes.plot(steps, _smoothed(losses, window), color="#3451b2", linewidth=2, label=f"mean of {window} logged")
        axes.legend(frameon=False)
    return True


def _recall(axes, records):
    """Both directions with their intervals, the best evaluation, the start, and chance; retention beside them."""
    evaluations = [record for record in records if _is_finite(record.get(MEAN))]
    certain = ", 95 % intervals" if any(name.endswith("/low") for record in evaluations for name in record) else ""
    also = " and retention" if any(OF_RETENTION + MEAN in record for record in evaluations) else ""
    axes.set_title(f"Recall@10 on the validation{also} shards{certain}", loc="left", color=INK)
    if not evaluations:
        return False
    chances = []
    for way, (label, colour) in DIRECTIONS.items():
        steps, recalls = _series(evaluations, f"{KEY}/{way}")
        low, high = (_series(evaluations, f"{KEY}/{way}/{end}")[1] for end in ("low", "high"))
        chances += [v for v in _series(evaluations, f"{KEY}/{way}/chance")[1] if math.isfinite(v)]
        if not len(recalls):
            continue
        axes.plot(steps, recalls, color=colour, marker="o" if len(steps) <= FEW else None, markersize=4, label=label)
        if len(low) == len(high) == len(steps):
            bars = np.nan_to_num([recalls - low, high - recalls]).clip(0)
            if len(steps) == 1:  # a band of one point has no width
                axes.errorbar(steps, recalls, bars, color=colour, capsize=4, linewidth=1)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    _lines(axes, evaluations, chances)
    _retention(axes, evaluations)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] > 1:
        axes.set_ylim(top=1.02)
    axes.legend(frameon=False, fontsize=8)
    return True


def _lines(axes, evaluations, chances):
    """The best evaluation of the training, that of before it, and chance: means of both directions."""
    trained = [record for record in evaluations if record["step"] > 0]
    if trained:
        kind = BOTH if _is_finite(trained[-1].get(BOTH)) else MEAN  # what the run chooses by at its end
        alike = list(itertools.takewhile(lambda record: _is_finite(record.get(BOTH)) == (kind == BOTH), trained[::-1]))
        best = max(alike[::-1], key=lambda record: record[kind])  # the first of equals, as best_checkpoint.pt
        step, score, of = best["step"], best[MEAN], " of both" if kind == BOTH else ""
        label = f"best{of}: mean {best[kind]:.3f} at step {step:,}"
        axes.plot([step], [score], "*", color=GOOD, markersize=13, zorder=4, label=label)
    start = next((record[MEAN] for record in evaluations if record["step"] == 0), None)
    _levels(axes, start, chances, INK, SOFT)


def _levels(axes, start, chances, dark, light, of=""):
    """Where the training began, and chance, the mean of some."""
    if start is not None:
        axes.axhline(start, color=dark, linewidth=1, linestyle="--", label=f"{of}before training: {start:.3f}")
    if chances:
        chance = float(np.mean(chances))
        axes.axhline(chance, color=light, linewidth=1.2, linestyle=":", label=f"{of}chance: {chance:.3f}")


def _retention(axes, evaluations):
    """What the model still knows of the retention shards, the mean of both directions; its start and chance."""
    measured = [record for record in evaluations if _is_finite(record.get(OF_RETENTION + MEAN))]
    if not measured:
        return
    steps, recalls = _series(measured, OF_RETENTION + MEAN)
    marker = "s" if len(steps) <= FEW else None
    axes.plot(steps, recalls, color=KNOWN, marker=marker, markersize=4, label="retention: mean of both")
    chances = [_series(measured, f"{OF_RETENTION}{KEY}/{way}/chance")[1] for way in DIRECTIONS]
    chances = [chance for part in chances for chance in part if math.isfinite(chance)]
    start = next((record[OF_RETENTION + MEAN] for record in measured if record["step"] == 0), None)
    _levels(axes, start, chances, KNOWN, KNOWN, "retention, ")


def _learning_rate(axes, records):
    steps, rates = _series(records, "learning_rate")
    axes.set_title("learning rate", loc="left", color=INK, fontsize=10)
    axes.plot(steps, rates, color=SOFT, linewidth=1.2, marker="o" if len(steps) <= FEW else None, markersize=3)
    axes.set_ylim(bottom=0)
    return len(steps) > 0


def _throughput(axes, records):
    steps, speeds = _series(records, "samples_per_second")
    known = speeds[np.isfinite(speeds)]
    axes.set_title("samples per second", loc="left", color=INK, fontsize=10)
    if not len(known):
        return False
    median = float(np.median(known))
    axes.plot(steps, speeds, color=RAW, linewidth=1, marker="o" if len(steps) <= FEW else None, markersize=3)
    axes.axhline(median, color="#3451b2", linewidth=1.5)
    axes.set_title(f"samples per second, median {median:,.0f}", loc="left", color=INK, fontsize=10)
    axes.set_ylim(0, max(2 * median, float(np.percentile(known, 90)) * 1.1))
    return True


def _steps(axes, records, named):
    """Whole steps from the first to the last of the run, whatever a panel has, and where the run was resumed."""
    from matplotlib.ticker import MaxNLocator

    last = max(record["step"] for record in records)
    axes.set_xlim(-0.02 * max(last, 1), 1.03 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step" if named else "", color=SOFT)
    resumed = sorted({record["resumed_from"] for record in records if _is_finite(record.get("resumed_from"))})
    for number, step in enumerate(resumed):
        axes.axvline(step, color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
        if number == 0 and not named:
            axes.annotate(
                "resumed", (step, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize=7, color=SOFT
            )


# -------------------------------------------------------------------------------------------------- the numbers


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the records that have a key; null, which stands for what is not finite, is NaN."""
    found = [(r["step"], r[key] if _is_finite(r[key]) else math.nan) for r in records if key in r]
    table = np.array(found, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smoothed(values, window):
    """The mean of the finite ones of so many values around each; NaN where none is."""
    kernel = np.ones(window)
    finite = np.isfinite(values)
    sums, counts = (
        np.convolve(column, kernel, "same") for column in (np.where(finite, values, 0.0), finite.astype(float))
    )
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=counts > 0.5)


def _is_finite(value):
    return type(value) in (int, float) and math.isfinite(value)
