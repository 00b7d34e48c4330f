"""Is the second result better than the first? Differences with paired intervals, overall and by category.

A category is called worse by the sign-flip test over its products, corrected by Holm for how many categories are looked
at: of two equally good models, 5 % at most have a category called worse in a direction of a protocol.
"""

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_finetuning.retrieval import intervals, names
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.names import OF_CATEGORIES, QUERIES_OF
from clip_finetuning.runtime.text import printable

LABELS = 26  # columns of the console
FEWEST_PRODUCTS = 20  # of a category that is judged: the losses of fewer can hardly be told from chance
RULES = 2  # how results count hits; 1, or none named: the same caption of another product is a miss, but for `product`


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Two result dictionaries of the same data -> a text for the console. Raises ValueError for what cannot be compared."""
    shared, left_out = check(first, second)
    lines = [f"A: {first['name']}", f"B: {second['name']}"]
    if left_out:
        lines += textwrap.wrap(f"left out: {left_out}", 80, subsequent_indent="  ")
    for lacking, other in ((first, second), (second, first)):
        if only := [name for name in other["protocols"] if name not in lacking["protocols"]]:
            why = f"left out: {lacking['name']} has no {', '.join(only)}"
            lines += textwrap.wrap(why, 80, subsequent_indent="  ")
    for name in shared:
        for direction in names.DIRECTIONS_OF[name]:
            pair = [results["protocols"][name][direction] for results in (first, second)]
            title = f"{name}, {names.title(direction)}"
            own_line, title = ([title], "") if len(title) > LABELS else ([], title)
            lines += ["", *own_line, title.ljust(LABELS) + f"{'A':>8}{'B':>8}{'B - A [95 %]':>26}"]
            lines += _differences(*pair)
            if QUERIES_OF.get(name) != OF_CATEGORIES:
                lines += _worse_categories(*pair)
    return "\n".join(lines)


def check(first: dict[str, Any], second: dict[str, Any]) -> tuple[list[str], str]:
    """(protocols in which two results can be compared, why others are left out). Raises ValueError if none can be.

    Of a result that is still to be measured, its name, the fingerprint of its data and its protocols are enough.
    """
    if not _same_data(first, second):
        raise ValueError(f"{first['name']} and {second['name']} are results of different data and cannot be compared")
    shared = [name for name in first.get("protocols", {}) if name in second.get("protocols", {})]
    if not shared:
        raise ValueError(f"{first['name']} and {second['name']} have no protocol in common")
    different = [name for name in shared if not _same_rules(first, second, name)]
    if not different:
        return shared, ""
    older = min(first, second, key=rules_of)["name"]
    why = f"{older} counts the same caption of another product as a miss in {', '.join(different)}; measure it anew"
    if different == shared:
        raise ValueError(why)
    return [name for name in shared if name not in different], why


def comparable(first: dict[str, Any], second: dict[str, Any], protocol: str) -> bool:
    """Whether two results are of the same data and count hits alike in a protocol, which both have."""
    shared = all(protocol in results["protocols"] for results in (first, second))
    return shared and _same_data(first, second) and _same_rules(first, second, protocol)


def _same_data(first, second):
    fingerprints = [results.get("data", {}).get("fingerprint") for results in (first, second)]
    return fingerprints[0] is not None and fingerprints[0] == fingerprints[1]


def rules_of(results: dict[str, Any]) -> int:
    """Which rules a result was measured by."""
    return results.get("rules", 1)


def _same_rules(first, second, protocol):
    """Whether both count hits alike in a protocol; with no caption in two spellings, `product` does in all rules."""
    if rules_of(first) == rules_of(second):
        return True
    return protocol == "product" and first.get("num_captions") == second.get("num_captions")


def paired_difference(
    first: dict[str, Any], second: dict[str, Any], key: str, chosen: np.ndarray | None = None
) -> tuple[float, list[float]]:
    """(B - A, [low, high]) of one recall over the same products; `chosen` is a mask of products."""
    a, b = first["by_product"], second["by_product"]
    if a["product"] != b["product"] or a["queries"] != b["queries"]:
        raise ValueError("the two results have other queries: they cannot be paired")
    rows = slice(None) if chosen is None else chosen
    queries = np.array(a["queries"])[rows]
    gain = (np.array(b[key]) - np.array(a[key]))[rows]
    return gain.sum() / queries.sum(), intervals.gain_interval(gain, queries)


def _differences(a: dict, b: dict) -> Iterator[str]:
    for key in [key for key in names.recalls(a["by_product"]) if key in b["by_product"]]:
        gain, (low, high) = paired_difference(a, b, key)
        difference = f"{gain:+.4f} [{low:+.3f}, {high:+.3f}]"
        yield f"  {names.label(key)}".ljust(LABELS) + f"{a[key]:8.4f}{b[key]:8.4f}{difference:>26} {verdict(low, high)}"


def verdict(low: float, high: float) -> str:
    """What a paired 95 % interval says, in a word."""
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def _worse_categories(a: dict, b: dict) -> Iterator[str]:
    """Categories whose Recall@10 fell, and how many were looked at."""
    key = "recall@10"
    if key not in a["by_product"] or key not in b["by_product"]:
        return
    categories, category_of = np.unique(texts(a["by_product"]["category"]), return_inverse=True)
    gains = np.array(b["by_product"][key]) - np.array(a["by_product"][key])
    sizes = np.bincount(category_of)
    judged = np.flatnonzero(sizes >= FEWEST_PRODUCTS)
    worse = intervals.rejected([intervals.loss_p_value(gains[category_of == number]) for number in judged])
    for number in judged[worse]:
        gain, (low, high) = paired_difference(a, b, key, category_of == number)
        name = printable(categories[number] or "(no category)")[:24]
        yield f"  worse in {name}: {gain:+.4f} [{low:+.3f}, {high:+.3f}] of Recall@10, {sizes[number]} products"
    few = len(categories) - len(judged)
    fewer = f"; {few} have fewer than {FEWEST_PRODUCTS} products" if few else ""
    yield f"  categories: {worse.sum()} of {len(judged)} judged are worse, by Holm at 5 %{fewer}"
