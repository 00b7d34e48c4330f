"""Results of several seeds of one recipe as one line a number, with both sources of its variance.

A training of another seed gives other weights, and other products would give other numbers of the same weights: the first
is seen between the files, the second within each, over products. A mean of few seeds has an interval by Student's t.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import citation, comparability, intervals, names
from clip_finetuning.runtime.text import printable, wrapped

GRID = 200_001  # points of the integral behind a quantile of t


class Joined(NamedTuple):
    """One number of several seeds."""

    mean: float
    between: float  # standard deviation between seeds
    within: float  # standard error over products of the mean of these seeds
    interval: list[float]  # 95 %, for other seeds and other products


def join(results: Sequence[dict[str, Any]]) -> str:
    """Result dictionaries of several seeds -> a text for the console. Raises ValueError for what are no seeds of one run."""
    check(results)
    degrees = len(results) - 1
    shown = ", ".join(printable(Path(one["name"]).name) for one in results)
    about = (
        f"{len(results)} seeds: {shown}\0mean with its 95 % interval over seeds and products; standard deviation between seeds; "
        f"standard error over products of the mean. The seeds' part goes by Student's t with {degrees} "
        f"{'degree' if degrees == 1 else 'degrees'} of freedom ({quantile(degrees):.2f})"
    )
    lines = [line for part in about.split("\0") for line in wrapped(part)]
    for protocol in results[0]["protocols"]:
        for way in names.DIRECTIONS_OF[protocol]:
            lines += [
                "",
                f"{protocol}, {names.title(way)}".ljust(28) + f"{'mean [95 %]':>28}{'seeds':>12}{'products':>12}",
            ]
            for key, joined in numbers([one["protocols"][protocol][way] for one in results]).items():
                low, high = joined.interval
                told = f"{joined.mean:.4f} [{low:.3f}, {high:.3f}]"
                lines.append(
                    f"  {names.label(key)}".ljust(28) + f"{told:>28}{joined.between:12.4f}{joined.within:12.4f}"
                )
        if cite := citation.of(results[0], protocol):
            lines.append(f"protocol: {cite}")
    return "\n".join(lines)


def check(results: Sequence[dict[str, Any]]) -> None:
    """ValueError unless they are two or more results of one model and one recipe, on the same data, by the same protocols."""
    first = results[0]
    if len(results) < 2:
        raise ValueError(f"--seeds needs the results of two seeds at least; {printable(first['name'])} is one")
    for number, one in enumerate(results):
        called = printable(one["name"])
        for other in results[:number]:
            if Path(other["name"]).resolve() == Path(one["name"]).resolve():
                raise ValueError(f"--seeds names {called} twice; name each seed's results once")
            if other["protocols"] == one["protocols"]:
                raise ValueError(
                    f"{printable(other['name'])} and {called} hold the same numbers to the last digit, as one seed's copies do; "
                    "leave one out"
                )
        if number == 0:
            continue
        comparability.check(first, one)
        if list(first["protocols"]) != list(one["protocols"]):
            ours, theirs = (", ".join(part["protocols"]) for part in (first, one))
            raise ValueError(
                f"{printable(first['name'])} measures {ours}, {called} {theirs}: --seeds joins the same protocols"
            )
        models = [(part.get("model") or {}).get("name") for part in (first, one)]
        if models[0] != models[1]:
            raise ValueError(
                f"{called} is of the model {printable(models[1])}, {printable(first['name'])} of {printable(models[0])}"
            )


def numbers(directions: Sequence[dict[str, Any]]) -> dict[str, Joined]:
    """{number: Joined} of one direction's numbers of each seed; without hits by product, those with intervals alone."""
    found = {}
    for key in [*names.recalls(directions[0]), *names.OTHER_NUMBERS]:
        if not all(key in one for one in directions):
            continue
        values = np.array([one[key] for one in directions])
        if all(key in one["by_product"] for one in directions):
            found[key] = _joined(values, _over_products([one["by_product"] for one in directions], key))
        elif all(key in one.get("intervals", {}) for one in directions):
            halves = [(high - low) / (2 * intervals.Z) for low, high in (one["intervals"][key] for one in directions)]
            found[key] = _joined(values, float(np.sqrt(np.mean(np.square(halves)))))
        if key in found and "rank" not in key:
            low, high = found[key].interval
            found[key] = found[key]._replace(interval=[max(0.0, low), min(1.0, high)])
    return found


def _over_products(tables, key):
    """The standard error over products of the mean of the seeds."""
    if any(table["product"] != tables[0]["product"] or table["queries"] != tables[0]["queries"] for table in tables):
        raise ValueError("the seeds have other queries, so they cannot be joined")
    counts = np.array(tables[0]["queries"])
    low, high = intervals.share_interval(np.mean([table[key] for table in tables], axis=0), counts)
    return (high - low) / (2 * intervals.Z)


def _joined(values, within):
    """Of independent parts the squares of their half-widths add up (MOVER, Zou and Donner 2008).

    What a seed does to single products is in both parts, so the interval is rather too wide than too narrow.
    """
    between, mean = float(values.std(ddof=1)), float(values.mean())
    by_seeds = quantile(len(values) - 1) * between / math.sqrt(len(values))
    half = math.hypot(by_seeds, intervals.Z * within)
    return Joined(mean, between, within, [mean - half, mean + half])


@functools.cache
def quantile(degrees: int) -> float:
    """The number within plus and minus which 95 % of Student's t of so many degrees of freedom lie.

    With t = tan(angle) sqrt(degrees), the density is cos(angle)^(degrees - 1), which is integrated.
    """
    angles = np.linspace(0, math.pi / 2, GRID)
    density = np.cos(angles) ** (degrees - 1)
    shares = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.tan(np.interp(0.95 * shares[-1], shares, angles)) * math.sqrt(degrees))
