"""Gain against retention along the line from the start of a fine-tuning to what it came to: which mix is worth having?

Each mix is measured by the mean Recall@10 of both directions of `product`, on the same samples as the others, so that
differences are paired.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.interpolation import Line
from clip_finetuning.retrieval import comparison, drop, intervals
from clip_finetuning.retrieval.embed import Loader, NothingFinite, embed_each
from clip_finetuning.retrieval.names import DIRECTIONS
from clip_finetuning.retrieval.results import measure_embeddings
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.text import printable, wrapped

SHARES = tuple(number / 10 for number in range(11))  # of the fine-tuned weights
AXES = ("gain", "retention")
ENDS = {"start": "0", "tuned": "1"}  # what the ends are called, and their shares in a message
FAMILY_ERROR = 0.05
KEY = "recall@10"


def sweep(
    clip_model: ClipModel,
    line: Line,
    loaders: Mapping[str, Loader],
    precision: str,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure the mixes of a line on each of the loaders, {axis: loader}, and judge them; all ranks call this and have it.

    -> `mixes` [{share, gain, retention}, ...] with `mean`, `interval` and both directions for each axis, and with `against`
    for each end the paired differences; `named` is the share of the mix that is better than both ends on every axis,
    `better_than_tuned` are those that are better than the fine-tuned one, `balanced` has the best mean, `sentence` says which. The model is left with the weights of share 1.
    """
    measured = {}
    for axis, loader in loaders.items():
        variants = [partial(line.put, clip_model.model, share) for share in shares]
        found = embed_each(clip_model, loader, precision, variants, progress)
        measured[axis] = [_measured(one, clip_model.device, seed) for one in found]
    line.put(clip_model.model, 1.0)
    columns = [dict(zip(measured, numbers)) for numbers in zip(*measured.values())]
    return distributed.agree(judge(shares, columns) if distributed.rank() == 0 else None)


def _measured(found, device, seed):
    """(the numbers of a mix, its `by_product`) on rank 0; of one that embeds nothing they are 0 and None."""
    if isinstance(found, NothingFinite):
        return {"mean": 0.0, **dict.fromkeys(DIRECTIONS, 0.0), "samples": 0, "left_out": str(found)}, None
    embeddings, counts = found
    results = measure_embeddings(embeddings, ["product"], (10,), seed, device=device, shared=True)
    if not results:  # rank 0 has them
        return {}, None
    by_product, recalls = drop.by_product(results) or {}, results[KEY]
    numbers = {"mean": sum(recalls.values()) / 2, **recalls, "samples": results["num_samples"]}
    hits, queries = (np.array(by_product[column]) for column in ("hits", "queries"))
    numbers["interval"] = intervals.share_interval(hits, queries)
    return numbers | ({"skipped": counts["skipped"]} if counts["skipped"] else {}), by_product


# ------------------------------------------------------------------------------------------------ the judgement


def judge(shares: Sequence[float], columns: Sequence[Mapping[str, tuple[dict, dict | None]]]) -> dict[str, Any]:
    """What `sweep` returns of {axis: (numbers, by_product)} of each share, the start first, the fine-tuned last.

    A mix is named if it is better than both ends on every axis. Each of these is a paired sign-flip test; all must say so,
    so a mix counts with the largest of their p, corrected by Holm for how many mixes are tried.
    """
    ends = dict(zip(ENDS, (columns[0], columns[-1])))
    mixes, p_values = [], []
    for share, column in zip(shares, columns):
        against, p_value = {}, {}
        for end, other in ends.items():
            tests = {axis: _difference(other[axis][1], column[axis][1]) for axis in column}
            against[end] = {axis: test[0] for axis, test in tests.items()}
            p_value[end] = max(test[1] for test in tests.values())
        mixes.append({"share": share, **{axis: column[axis][0] for axis in column}, "against": against})
        p_values.append(p_value)
    inner = mixes[1:-1]
    for mix, p_value in zip(inner, intervals.corrected([max(p.values()) for p in p_values[1:-1]])):
        mix["p"] = float(p_value)
    over_tuned = [
        m["share"]
        for m, p in zip(inner, intervals.corrected([p["tuned"] for p in p_values[1:-1]]))
        if p <= FAMILY_ERROR
    ]
    named = [mix for mix in inner if mix["p"] <= FAMILY_ERROR]
    best = max(named, key=_mean) if named else None
    balanced = max(reversed(mixes), key=_mean)  # of equals the one nearest to the fine-tuned
    found = {
        "named": best and best["share"],
        "better_than_tuned": over_tuned,
        "balanced": balanced["share"],
        "mixes": mixes,
    }
    return found | {"sentence": _sentence(best, balanced, over_tuned, len(inner), list(columns[0]))}


def _difference(first, second):
    """({gain, interval, verdict} of B - A, p of a B that is not better); no verdict where they are of other samples."""
    pair = None if first is None or second is None else drop.gains(first, second)
    if pair is None:
        return {"gain": None, "interval": None, "verdict": "unclear"}, 1.0
    gains, queries = pair
    low, high = intervals.gain_interval(gains, queries)
    told = {
        "gain": float(gains.sum() / queries.sum()),
        "interval": [low, high],
        "verdict": comparison.verdict(low, high),
    }
    return told, intervals.change_p_value(gains) if gains.sum() > 0 else 1.0


def _mean(mix):
    of_axes = [mix[axis]["mean"] for axis in AXES if axis in mix]
    return sum(of_axes) / len(of_axes)


def _sentence(best, balanced, over_tuned, tried, axes):
    """Which mix is better than both ends, or that there is none and what the best mean costs."""
    of_axes = " and ".join(axes)
    if best is not None:
        return (
            f"{best['share']:g} is better than both ends on {of_axes}: {_told(best)} (by Holm at 5 % of {tried} mixes; "
            "chosen on these shards, so measure it on others)"
        )
    none = f"no mix of {tried} is better than both ends on {of_axes} by more than chance"
    if over_tuned:
        none += f" (than the fine-tuned alone are {', '.join(f'{share:g}' for share in over_tuned)})"
    if balanced["share"] in (0, 1):
        end = "start" if balanced["share"] == 0 else "fine-tuned"
        return f"{none}; the best {'mean of both' if len(axes) > 1 else axes[0]} has the {end} itself"
    what = "mean of both" if len(axes) > 1 else axes[0]
    return f"{none}; the best {what} has {balanced['share']:g}: {_told(balanced)}"


def _told(mix):
    """A mix's differences to both ends."""
    parts = []
    for axis in (axis for axis in AXES if axis in mix):
        for end, share in ENDS.items():
            change = mix["against"][end][axis]
            if change["gain"] is None:
                parts.append(f"{axis} not comparable with {share}")
                continue
            low, high = change["interval"]
            parts.append(f"{axis} {change['gain']:+.4f} [{low:+.3f}, {high:+.3f}] to {share}")
    return ", ".join(parts)


# ----------------------------------------------------------------------------------------------------- a table


def render(found: Mapping[str, Any]) -> str:
    """The sweep for the console, within 80 columns."""
    axes = [axis for axis in AXES if axis in found["mixes"][0]]
    lines = wrapped(
        f"weights from {printable(found['start'])} (0) to {printable(found['tuned'])} (1); mean Recall@10 of both directions "
        "of product"
    )
    lines.append("  share" + "".join(f"{axis} [95 %]".rjust(26) for axis in axes))
    for mix in found["mixes"]:
        mark = "  <" if mix["share"] == found["named"] else ""
        lines.append(f"  {mix['share']:5.2f}" + "".join(_cell(mix[axis]).rjust(26) for axis in axes) + mark)
    for axis in axes:
        lines += _left_out(axis, found["mixes"])
    return "\n".join([*lines, *wrapped(found["sentence"])])


def _left_out(axis, mixes):
    """What some mixes, or all, could not use."""
    shares: dict[str, list[str]] = {}
    for mix in mixes:
        skipped = ", ".join(f"{count} {reason}" for reason, count in mix[axis].get("skipped", {}).items())
        if text := mix[axis].get("left_out", skipped):
            shares.setdefault(text, []).append(f"{mix['share']:g}")
    for text, mine in shares.items():
        where = "" if len(mine) == len(mixes) else f" with {', '.join(mine)}"
        yield from wrapped(f"  left out of {axis}{where}: {text}")


def _cell(numbers):
    if "interval" not in numbers:
        return f"{numbers['mean']:.4f}"
    low, high = numbers["interval"]
    return f"{numbers['mean']:.4f} [{low:.3f}, {high:.3f}]"
