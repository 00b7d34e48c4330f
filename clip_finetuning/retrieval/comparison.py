"""Is the second result better than the first? Differences with paired intervals, overall and by category.

A category is called better or worse by the sign-flip test over its products, corrected by Holm for how many categories are
looked at: of two equally good models, 5 % at most have a category called so in a direction of a protocol.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import intervals, names, power
from clip_finetuning.retrieval.comparability import check
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.runtime.text import printable, wrapped

FEWEST_PRODUCTS = 20  # of a category that is judged: the changes of fewer can hardly be told from chance
FAMILY_ERROR = 0.05
KEY = "recall@10"  # of effect sizes and categories
NAMED = 8  # categories that got better, in a line; those that got worse are all named


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Two result dictionaries of the same data -> a text for the console. Raises ValueError for what cannot be compared."""
    shared, left_out = check(first, second)
    lines = [f"A: {printable(first['name'])}", f"B: {printable(second['name'])}"]
    for reason in left_out:
        lines += wrapped(f"left out: {reason}")
    for name in shared:
        for direction in names.DIRECTIONS_OF[name]:
            pair = [results["protocols"][name][direction] for results in (first, second)]
            lines += ["", heading(f"{name}, {names.title(direction)}"), *differences(*pair)]
            is_by_category = names.QUERIES_OF.get(name) == names.OF_CATEGORIES  # then there are no products to count
            if all(KEY in numbers["by_product"] for numbers in pair) and not is_by_category:
                lines += [*_effect(*pair), *_changed_categories(*pair)]
    lines += [*_zero_shot(first, second), *_retention(first, second)]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------- overall


def paired_difference(
    first: dict[str, Any], second: dict[str, Any], key: str, chosen: np.ndarray | None = None
) -> tuple[float, list[float]]:
    """(B - A, [low, high]) of one share over the same products; `chosen` is a mask of products."""
    gains, queries = paired_gains(first, second, key)
    rows = slice(None) if chosen is None else chosen
    return gains[rows].sum() / queries[rows].sum(), intervals.gain_interval(gains[rows], queries[rows])


def paired_gains(first: dict[str, Any], second: dict[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(sums of B - A, queries) of one share by product: (P,) each. Raises ValueError if these are of other queries."""
    a, b = first["by_product"], second["by_product"]
    if a["product"] != b["product"] or a["queries"] != b["queries"]:
        raise ValueError("the two results have other queries: they cannot be paired")
    return np.array(b[key]) - np.array(a[key]), np.array(a["queries"])


def verdict(low: float, high: float) -> str:
    """What a paired 95 % interval says, in a word."""
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def heading(what: str, a: str = "A", b: str = "B", change: str = "B - A") -> str:
    """The line above `differences`; what is wider than the labels stands above it."""
    if len(what) > 26:
        return f"{what}\n{heading('', a, b, change)}"
    return what.ljust(26) + f"{a:>8}{b:>8}{f'{change} [95 %]':>26}"


def differences(a: dict, b: dict) -> Iterator[str]:
    """A line for each recall that both numbers know by product."""
    for key in [key for key in names.recalls(a["by_product"]) if key in b["by_product"]]:
        yield difference(names.label(key), a[key], b[key], *paired_difference(a, b, key))


def difference(label: str, a: float, b: float, gain: float, interval: list[float]) -> str:
    """A line: both values, the gain with its interval, the verdict."""
    low, high = interval
    told = f"{gain:+.4f} [{low:+.3f}, {high:+.3f}]"
    return f"  {label}".ljust(26) + f"{a:8.4f}{b:8.4f}{told:>26} {verdict(low, high)}"


def measures(first: dict[str, Any], second: dict[str, Any], key: str) -> dict[str, Any]:
    """A paired difference as plain data: gain, interval, verdict, effect sizes, the smallest gain that could be shown."""
    gains, queries = paired_gains(first, second, key)
    low, high = intervals.gain_interval(gains, queries)
    effect = power.effect(gains, first[key], second[key])
    return {
        "before": first[key],
        "after": second[key],
        "gain": float(gains.sum() / queries.sum()),
        "interval": [low, high],
        "verdict": verdict(low, high),
        "gained_products": effect.gained,
        "lost_products": effect.lost,
        "odds": effect.odds,
        "cohens_h": effect.h,
        "smallest_gain": power.smallest_gain(gains, queries),
    }


def effects(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`measures` of the recalls of each protocol that can be compared, {protocol: {direction: {recall@k: ...}}}, and `name`."""
    found: dict[str, Any] = {"name": str(first["name"])}
    for name in check(first, second)[0]:
        found[name] = {}
        for way in names.DIRECTIONS_OF[name]:
            a, b = (results["protocols"][name][way] for results in (first, second))
            keys = [key for key in names.recalls(a["by_product"]) if key in b["by_product"]]
            same = all(a["by_product"][column] == b["by_product"][column] for column in ("product", "queries"))
            found[name][way] = {key: measures(a, b, key) for key in keys} if same else {}
    return found


def _effect(a, b):
    gains, queries = paired_gains(a, b, KEY)
    effect = power.effect(gains, a[KEY], b[KEY])
    yield from wrapped(
        f"  effect on {names.label(KEY)}: {effect.gained:,} products gain, {effect.lost:,} lose (odds {effect.odds:.3g}), "
        f"Cohen's h {effect.h:+.2f} ({effect.size}); 80 % of such comparisons would show {power.smallest_gain(gains, queries):.3f}"
    )


# --------------------------------------------------------------------------------------------- zero-shot


def zero_shot_changes(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{top1, top5, macro: before, after, gain, paired interval, verdict} of two zero-shot results of the same data.

    Raises ValueError where they have other categories, or one is from before hits were kept by product.
    """
    tables = [part["by_product"] for part in (first, second) if "by_product" in part]
    if len(tables) < 2:
        raise ValueError("one is from before hits were kept by product; measure it anew")
    if tables[0]["category"] != tables[1]["category"] or tables[0]["product"] != tables[1]["product"]:
        raise ValueError("the two have other categories, or products in them")
    changes = {}
    for key in ("top1", "top5", "macro"):
        gains, queries = paired_gains(first, second, "top1" if key == "macro" else key)
        if key == "macro":  # each class has the weight of one, whatever its size
            _, class_of = np.unique(texts(tables[0]["category"]), return_inverse=True)
            images = np.bincount(class_of, queries)[class_of]
            weight = queries.sum() / (class_of.max() + 1) / images
            gains, queries = gains * weight, queries * weight
        low, high = intervals.gain_interval(gains, queries)
        changes[key] = {
            "before": first[key],
            "after": second[key],
            "gain": float(gains.sum() / queries.sum()),
            "interval": [low, high],
            "verdict": verdict(low, high),
        }
    return changes


def _zero_shot(first, second):
    parts = [results.get("zero_shot") for results in (first, second)]
    if not any(parts):
        return
    lacking = [printable(results["name"]) for results, part in zip((first, second), parts) if not part]
    try:
        if lacking:
            raise ValueError(f"{lacking[0]} lacks it")
        changes = zero_shot_changes(*parts)
    except ValueError as error:
        yield from ["", *wrapped(f"left out: zero-shot: {error}")]
        return
    a, b = parts
    yield from ["", heading(f"zero-shot, {b['classes']} classes")]
    for key, label in (("top1", "top-1"), ("top5", "top-5"), ("macro", "top-1, macro")):
        change = changes[key]
        yield difference(label, change["before"], change["after"], change["gain"], change["interval"])
    yield from wrapped(
        f"  chance {b['chance']['top1']:.4f}, always {printable(b['majority']['class'])[:40]!r} {b['majority']['top1']:.4f} (top-1)"
    )
    if a["prompts"] != b["prompts"]:
        yield from wrapped(f"  asked by other prompts: {len(a['prompts'])} of A, {len(b['prompts'])} of B")


# --------------------------------------------------------------------------------------------- retention


def _retention(first, second):
    """What changed on other data, in the protocols that both measured there."""
    parts = [results.get("retention") for results in (first, second)]
    if not any(parts):
        return
    lacking = [printable(results["name"]) for results, part in zip((first, second), parts) if not part]
    if lacking:
        yield from ["", *wrapped(f"left out: retention: {lacking[0]} lacks it")]
        return
    named = [part | {"name": results["name"]} for results, part in zip((first, second), parts)]
    try:
        shared, left_out = check(*named)
    except ValueError as error:
        yield from ["", *wrapped(f"left out: retention: {error}")]
        return
    yield from ["", *wrapped(f"retention, on {printable(parts[1]['pattern'])[:200]}")]
    for reason in left_out:
        yield from wrapped(f"left out: {reason}")
    for name in shared:
        for direction in names.DIRECTIONS_OF[name]:
            pair = [part["protocols"][name][direction] for part in parts]
            yield from [heading(f"{name}, {names.title(direction)}"), *differences(*pair)]


# ---------------------------------------------------------------------------------------------- categories


class CategoryChange(NamedTuple):
    """What became of a category between two results, in one recall."""

    category: str
    products: int
    queries: int
    before: float
    after: float
    gain: float
    interval: list[float]  # paired, 95 %, of this category alone
    corrected: float | None  # p of no change, corrected for how many categories are judged; None if it is not judged
    verdict: str  # "better", "worse" or "unclear" by `corrected`; "few" products to judge by


def category_changes(before: dict[str, Any], after: dict[str, Any], key: str = KEY) -> list[CategoryChange]:
    """Each category of a direction of two results, those with the most products first.

    Raises ValueError if the two results have other queries.
    """
    gains, queries = paired_gains(before, after, key)
    categories, category_of = np.unique(texts(before["by_product"]["category"]), return_inverse=True)
    sizes = np.bincount(category_of, minlength=len(categories))
    rows_of = np.split(np.argsort(category_of, kind="stable"), np.cumsum(sizes)[:-1])
    judged = np.flatnonzero(sizes >= FEWEST_PRODUCTS)
    corrected = dict(zip(judged, intervals.corrected([intervals.change_p_value(gains[rows_of[n]]) for n in judged])))
    hits = np.array(before["by_product"][key])
    changes = []
    for number in np.argsort(-sizes, kind="stable"):
        rows = rows_of[number]
        asked, gain, p_value = queries[rows].sum(), gains[rows].sum(), corrected.get(number)
        changes.append(
            CategoryChange(
                category=str(categories[number]),
                products=int(sizes[number]),
                queries=int(asked),
                before=float(hits[rows].sum() / asked),
                after=float((hits[rows].sum() + gain) / asked),
                gain=float(gain / asked),
                interval=intervals.gain_interval(gains[rows], queries[rows]),
                corrected=None if p_value is None else float(p_value),
                verdict=_category_verdict(gain, p_value),
            )
        )
    return changes


def _category_verdict(gain, p_value):
    if p_value is None:
        return "few"
    return "unclear" if p_value > FAMILY_ERROR else "better" if gain > 0 else "worse"


def _changed_categories(a, b):
    """The categories that changed by more than chance, and how many were looked at."""
    changes = category_changes(a, b)
    of = {word: [change for change in changes if change.verdict == word] for word in ("better", "worse", "few")}
    for change in sorted(of["worse"], key=lambda change: change.gain):
        low, high = change.interval
        told = f"{change.gain:+.4f} [{low:+.3f}, {high:+.3f}] of {names.label(KEY)}, {change.products} products"
        yield f"  worse in {_named(change)[:24]}: {told}"
    if of["better"]:
        best = sorted(of["better"], key=lambda change: -change.gain)
        told = ", ".join(f"{_named(change)} {change.gain:+.3f}" for change in best[:NAMED])
        more = f" and {len(best) - NAMED} more" if len(best) > NAMED else ""
        yield from wrapped(f"  better in {told}{more}")
    fewer = f"; {len(of['few'])} have fewer than {FEWEST_PRODUCTS} products" if of["few"] else ""
    counts = f"{len(of['better'])} better, {len(of['worse'])} worse of {len(changes) - len(of['few'])} judged"
    yield from wrapped(f"  categories: {counts}, by Holm at 5 %{fewer}")


def _named(change):
    return printable(change.category or "(no category)")[:24]
