"""The page's categories: Recall@10 of each as a dot with its interval, before as a hollow one, both directions in one order."""

from collections.abc import Mapping
from typing import Any

from clip_finetuning.retrieval import comparison, names
from clip_finetuning.retrieval.classification import FEWEST_PRODUCTS
from clip_finetuning.retrieval.examples import Confusion
from clip_finetuning.retrieval.report_cards import title
from clip_finetuning.retrieval.report_numbers import KEY, percent, points

OPEN = 20  # categories that are shown at once
CONFUSIONS, MORE_CONFUSIONS = 12, 60  # pairs at once, and in all
AXES = (0.1, 0.2, 0.5, 1.0)  # where the axis may end: the first that holds all intervals


def charts(headline: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """{ticks, directions: [{title, rows}]}; the rows of all directions are the same categories, the largest first."""
    found = {way: headline[way].get("categories", {}) for way in names.DIRECTIONS}
    sizes: dict[str, int] = {}
    for categories in found.values():
        for name, numbers in categories.items():
            sizes[name] = max(sizes.get(name, 0), numbers["products"])
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    ends = [numbers["intervals"][KEY][1] for categories in found.values() for numbers in categories.values()]
    known = {way: before[way].get("categories", {}) if before else {} for way in names.DIRECTIONS}
    ends += [n[KEY] for way in known for name, n in known[way].items() if name in sizes and KEY in n]
    changed = {way: _verdicts(headline[way], before and before[way]) for way in names.DIRECTIONS}
    axis = next((end for end in AXES if max(ends, default=1.0) <= end), 1.0)
    return {
        "ticks": [
            (f"{100 * part:g}%", f"{100 * axis * part:g}{'' if part < 1 else '%'}") for part in (0, 0.25, 0.5, 0.75, 1)
        ],
        "categories": len(order),
        "few": sum(size < FEWEST_PRODUCTS for size in sizes.values()),
        "directions": [
            {
                "title": title(way),
                "rows": [_row(name, sizes[name], found[way], known[way], axis, changed[way]) for name in order],
            }
            for way in names.DIRECTIONS
        ],
    }


def _verdicts(numbers, before):
    """{category: better, worse, unclear or few}, corrected for how many are judged; none where nothing is known before."""
    if not before or KEY not in before["by_product"]:
        return {}
    return {change.category: change.verdict for change in comparison.category_changes(before, numbers)}


def _row(name, products, found, known, axis, changed):
    numbers, before = found.get(name), known.get(name, {}).get(KEY)
    row = {
        "name": name or "(none)",
        "products": products,
        "is_few": products < FEWEST_PRODUCTS,
        "value": None,
        "change": "",
    }
    if numbers is None:
        return row
    low, high = numbers["intervals"][KEY]
    return row | {
        "value": percent(numbers[KEY]),
        "at": _place(numbers[KEY], axis),
        "low": _place(low, axis),
        "width": _place(high - low, axis),
        "interval": f"{percent(low)} to {percent(high)}",
        "before": None if before is None else percent(before),
        "before_at": None if before is None else _place(before, axis),
        "change": "" if before is None else points(numbers[KEY] - before),
        "verdict": changed.get(name, ""),
    }


def _place(share, axis):
    return f"{100 * share / axis:.1f}%"


def confusions(found: list[Confusion]) -> dict[str, Any]:
    """{shown, more, few}: pairs by share; those of categories with few products, where any picture is a large share, apart."""
    told = [confusion for confusion in found if confusion.products >= FEWEST_PRODUCTS]
    few = [confusion for confusion in found if confusion.products < FEWEST_PRODUCTS]
    if not told:
        told, few = few, []
    more = told[CONFUSIONS:]
    return {
        "shown": told[:CONFUSIONS],
        "more": more[:MORE_CONFUSIONS],
        "left_out": max(0, len(more) - MORE_CONFUSIONS),
        "few": len(few),
        "few_pictures": sum(confusion.pictures for confusion in few),
    }
