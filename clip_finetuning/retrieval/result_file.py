"""Results and candidate lists that somebody else may have written: checked before they are counted, shown or indexed by."""

import math
import re

import numpy as np

from clip_finetuning.retrieval.protocols import DIRECTIONS, PROTOCOLS

SHOWN = re.compile(r"recall@[1-9]\d*|median_rank|mrr|map")  # the numbers of a direction that tables and pages show


def check_results(results):
    """ValueError unless tables, comparisons and pages can use the results of every protocol."""
    if not isinstance(results, dict) or not isinstance(results.get("protocols"), dict):
        raise ValueError("it lacks 'protocols'")
    if not isinstance(results.get("data"), dict):
        raise ValueError("it lacks 'data'")
    for name, protocol in results["protocols"].items():
        if name not in PROTOCOLS:
            raise ValueError(f"{name!r} is none of the protocols {', '.join(PROTOCOLS)}")
        for way in DIRECTIONS:
            if not isinstance(protocol, dict) or not isinstance(protocol.get(way), dict):
                raise ValueError(f"{name} lacks {way!r}")
            _check_direction(protocol[way], f"{name}, {way}")


def _check_direction(numbers, where):
    _check_numbers(numbers, where)
    categories = numbers.get("categories", {})
    for category in categories.values() if isinstance(categories, dict) else [None]:
        _check_numbers(category, f"{where}, categories")
    table = numbers.get("by_product")
    if not isinstance(table, dict):
        raise ValueError(f"{where} lacks 'by_product'")
    for column in ("product", "category", "queries"):
        kind = int if column == "queries" else str
        values = table.get(column)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ValueError(f"{where}: {column!r} of by_product must be a list of {kind.__name__}")
    for column, values in table.items():
        if column not in ("product", "category") and not (isinstance(values, list) and all(map(_is_number, values))):
            raise ValueError(f"{where}: {column!r} of by_product must be a list of numbers")
        if column.startswith("recall@") and not SHOWN.fullmatch(column):
            raise ValueError(f"{where}: {column!r} of by_product is no recall")
        if len(values) != len(table["product"]):
            raise ValueError(f"{where}: {column!r} of by_product has {len(values)} rows, not {len(table['product'])}")


def _check_numbers(numbers, where):
    if not isinstance(numbers, dict):
        raise ValueError(f"{where} must be an object")
    for key, value in numbers.items():
        if SHOWN.fullmatch(key) and not _is_number(value):
            raise ValueError(f"{where}: {key!r} must be a number")


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def check_candidates(lists, images):
    """ValueError unless arrays are candidate lists, as `retrieval_protocols.draw_candidates` makes them, of so many images."""
    for way in DIRECTIONS:
        rows = lists.get(way)
        if rows is None or rows.ndim != 3 or rows.dtype.kind not in "iu" or not rows.size:
            raise ValueError(f"{way!r} must be whole numbers of images (draws, queries, 1 + negatives)")
        if rows.min() < -1 or rows.max() >= images or rows[:, :, 0].min() < 0:
            raise ValueError(f"{way!r} has numbers of images that are not there; there are {images}")
    if lists[DIRECTIONS[0]].shape[:2] != lists[DIRECTIONS[1]].shape[:2]:
        raise ValueError("the two directions have other numbers of draws or queries")
    topped_up = lists.get("topped_up", np.array(None))
    if topped_up.shape != () or topped_up.dtype.kind not in "iu":
        raise ValueError("'topped_up' must be a whole number")
