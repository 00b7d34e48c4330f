"""Is the second result better than the first? Differences with paired intervals, overall and by category."""

import numpy as np

import retrieval_metrics as metrics
from clip_finetuning.runtime.plain_text import printable
from retrieval_protocols import DIRECTIONS

FEWEST_PRODUCTS = 5  # of a category that may be called worse: the bootstrap of fewer says nothing


def compare(first, second, seed=0):
    """Two result dictionaries of the same data -> a text for the console. Raises ValueError for other data."""
    fingerprints = [results.get("data", {}).get("fingerprint") for results in (first, second)]
    if fingerprints[0] is None or fingerprints[0] != fingerprints[1]:
        raise ValueError(f"{first['name']} and {second['name']} are results of different data and cannot be compared")
    shared = [name for name in first.get("protocols", {}) if name in second.get("protocols", {})]
    if not shared:
        raise ValueError(f"{first['name']} and {second['name']} have no protocol in common")
    lines = [f"A: {first['name']}", f"B: {second['name']}"]
    for name in shared:
        for direction in DIRECTIONS:
            pair = [results["protocols"][name][direction] for results in (first, second)]
            title = f"{name}, {direction.replace('_to_', '->').replace('_', ' ')}"
            lines += ["", title.ljust(26) + f"{'A':>8}{'B':>8}{'B - A [95 %]':>26}"]
            lines += _differences(*pair, seed)
            lines += _worse_categories(*pair, seed)
    return "\n".join(lines)


def paired_difference(first, second, key, seed=0, chosen=None):
    """(B - A, [low, high]) of one recall over the same products; `chosen` is a mask of products."""
    a, b = first["by_product"], second["by_product"]
    if a["product"] != b["product"] or a["queries"] != b["queries"]:
        raise ValueError("the two results have other queries: they cannot be paired")
    chosen = slice(None) if chosen is None else chosen
    queries = np.array(a["queries"])[chosen]
    gain = (np.array(b[key]) - np.array(a[key]))[chosen]
    interval = metrics.bootstrap({key: gain}, queries, seed)[key]
    return gain.sum() / queries.sum(), interval


def _differences(a, b, seed):
    for key in [key for key in a["by_product"] if key.startswith("recall@") and key in b["by_product"]]:
        gain, (low, high) = paired_difference(a, b, key, seed)
        difference = f"{gain:+.4f} [{low:+.3f}, {high:+.3f}]"
        yield f"  Recall{key[6:]}".ljust(26) + f"{a[key]:8.4f}{b[key]:8.4f}{difference:>26} {verdict(low, high)}"


def verdict(low, high):
    """What a paired 95 % interval says, in a word or two."""
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def _worse_categories(a, b, seed):
    """Categories whose Recall@10 fell beyond its interval."""
    categories = np.array(a["by_product"]["category"])
    key = "recall@10" if "recall@10" in a["by_product"] and "recall@10" in b["by_product"] else None
    for category in np.unique(categories) if key else ():
        chosen = categories == category
        if chosen.sum() < FEWEST_PRODUCTS:
            continue
        gain, (low, high) = paired_difference(a, b, key, seed, chosen)
        if high < 0:
            name = printable(category or "(no category)")[:24]
            yield f"  worse in {name}: {gain:+.4f} [{low:+.3f}, {high:+.3f}] of Recall@10, {chosen.sum()} products"
