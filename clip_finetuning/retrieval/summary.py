"""A direction's numbers in a result: means, their intervals, by category, and by product for later comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_finetuning.retrieval import intervals, metrics, names, ranking

CATEGORY_RESAMPLES = 200  # Fashion-Gen has 48 categories


def of_ranks(
    ranks: ranking.Ranks, products: np.ndarray, categories: np.ndarray, ks: Sequence[int], seed: int
) -> dict[str, Any]:
    """`of_values` of the queries that have a positive, and how many have none: ranks, products and categories are (Q,)."""
    found = ranks.best != ranking.NEVER
    if not found.any():
        raise ValueError("no query has a positive: the product ids of images and texts have nothing in common")
    numbers = of_values(metrics.query_values(ranks, ks), products[found], categories[found], seed)
    return numbers | {"without_positive": int((~found).sum())}


def of_values(values: dict[str, np.ndarray], products: np.ndarray, categories: np.ndarray, seed: int) -> dict[str, Any]:
    """What a result holds of these queries: {name: (Q,)} values, (Q,) products, (Q,) categories."""
    product_names, products = np.unique(products, return_inverse=True)  # numbers, which are faster to tell apart
    sums, counts, _ = intervals.product_sums(values, products)
    return {
        "queries": len(products),
        "without_positive": 0,
        **metrics.means(values),
        "intervals": _intervals(values, products, seed, intervals.RESAMPLES),
        "categories": _by_category(values, products, categories, seed),
        "by_product": {
            "product": [str(name) for name in product_names],
            "category": [str(c) for c in categories[np.unique(products, return_index=True)[1]]],
            "queries": counts.tolist(),
            **{name: [round(float(v), 6) for v in sums[name]] for name in names.recalls(sums)},
        },
    }


def _intervals(values, products, seed, resamples):
    """{name: 95 % interval}: of shares in closed form, of ranks, which have no upper end, by bootstrap over products."""
    sums, counts, _ = intervals.product_sums(values, products)
    found = {}
    for name, column in sums.items():
        if name == "mean_rank":
            found |= intervals.bootstrap({name: column}, counts, seed, resamples)
        else:
            least = 1.0 if name.startswith("recall") else 0.0
            found[name] = intervals.share_interval(column, counts, least)
    found["median_rank"] = intervals.bootstrap_median(values["mean_rank"], products, seed, resamples)
    return found


def _by_category(values, products, categories, seed):
    """{category: queries, metrics, intervals}, the largest first."""
    table = {}
    category_names, codes = np.unique(categories, return_inverse=True)
    for number in np.argsort(-np.bincount(codes), kind="stable"):
        mine = codes == number
        part = {name: column[mine] for name, column in values.items()}
        table[str(category_names[number])] = {
            "queries": int(mine.sum()),
            "products": len(np.unique(products[mine])),
            **metrics.means(part),
            "intervals": _intervals(part, products[mine], seed, CATEGORY_RESAMPLES),
        }
    return table
