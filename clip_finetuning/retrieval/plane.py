"""The mixes of a sweep as a picture: gain against retention, or gain along the line where nothing else was measured."""

import os
from collections.abc import Mapping
from typing import Any

from clip_finetuning.retrieval.interpolation import AXES
from clip_finetuning.runtime.atomic_write import atomic_write

INK, SOFT, LINE, GOOD = "#1c2024", "#60646c", "#3451b2", "#18794e"


def draw(found: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write what `interpolation.sweep` found as a PNG: each mix with its intervals, its share beside it."""
    from matplotlib.figure import Figure  # without pyplot there is no window system to ask for

    mixes, figure = found["mixes"], Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    is_plane = AXES[1] in mixes[0]
    x = [mix[AXES[1]]["mean"] if is_plane else mix["share"] for mix in mixes]
    y = [mix[AXES[0]]["mean"] for mix in mixes]
    bars = {"yerr": _bars(mixes, AXES[0]), "xerr": _bars(mixes, AXES[1]) if is_plane else None}
    axes.errorbar(x, y, **bars, color=LINE, ecolor="#b9c3ea", marker="o", markersize=4, linewidth=1.5, capsize=2)
    for mix, place in zip(mixes, zip(x, y)):
        ends = {0.0: " start", 1.0: " fine-tuned"}
        axes.annotate(
            f"{mix['share']:g}{ends.get(mix['share'], '')}", place, (5, 5), textcoords="offset points", color=INK
        )
        if mix["share"] == found["named"]:
            axes.plot(*place, "*", color=GOOD, markersize=15, zorder=4, label="better than both ends")
            axes.legend(frameon=False)
    axes.axhline(y[0], color=SOFT, linewidth=0.8, linestyle="--")
    axes.axhline(y[-1], color=SOFT, linewidth=0.8, linestyle="--")
    if is_plane:
        axes.axvline(x[0], color=SOFT, linewidth=0.8, linestyle=":")
        axes.axvline(x[-1], color=SOFT, linewidth=0.8, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT)
    axes.grid(alpha=0.25)
    across = "retention: mean Recall@10 of what it knew before" if is_plane else "share of the fine-tuned weights"
    axes.set_xlabel(across, color=SOFT)
    axes.set_ylabel("gain: mean Recall@10", color=SOFT)
    axes.set_title("weights between the start and the fine-tuned, 95 % intervals", loc="left", color=INK)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _bars(mixes, axis):
    """(2, M) from each value to the ends of its interval; none where there is no interval."""
    ends = [mix[axis].get("interval", [mix[axis]["mean"]] * 2) for mix in mixes]
    return [
        [max(0.0, mix[axis]["mean"] - low) for mix, (low, _) in zip(mixes, ends)],
        [max(0.0, high - mix[axis]["mean"]) for mix, (_, high) in zip(mixes, ends)],
    ]
