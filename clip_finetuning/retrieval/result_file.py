"""The result file: written whole, and read, whoever wrote it, with all that is counted, shown or compared checked."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from clip_finetuning.retrieval.names import DIRECTIONS_OF, PROTOCOLS, TRUTHS, recalls
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.version import version

SHOWN = re.compile(
    r"(recall|expected_recall|ndcg|graded_ndcg)@[1-9]\d*|median_rank|mrr|map|map_at_r|r_precision"
)  # the numbers of a direction that tables and pages show

RECALL = re.compile(r"recall@[1-9]\d*")


def write(path: str | os.PathLike, results: dict[str, Any]) -> None:
    """Write results, with the version of the suite that measured them."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results | {"version": version()}, indent=1), encoding="utf-8")


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The results of a file, with its `name`. Raises FileNotFoundError, or ValueError for what cannot be used."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        check_results(results)
    except FileNotFoundError:
        raise FileNotFoundError(f"result file {path} does not exist; evaluate_clip.py writes it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no result file of evaluate_clip.py: {error}") from error
    return results | {"name": str(path)}


def check_results(results: Any) -> None:
    """ValueError unless tables, comparisons and pages can use the results of every protocol."""
    if not isinstance(results, dict) or not isinstance(results.get("protocols"), dict):
        raise ValueError("it lacks 'protocols'")
    if not isinstance(results.get("data"), dict):
        raise ValueError("it lacks 'data'")
    skipped = results["data"].get("skipped", {})
    if not isinstance(skipped, dict) or any(type(count) is not int for count in skipped.values()):
        raise ValueError("'skipped' of data must be whole numbers by reason")
    for name in ("rules", "num_samples"):
        if type(results.get(name, 1)) is not int:
            raise ValueError(f"{name!r} must be a whole number")
    for name, protocol in results["protocols"].items():
        if name not in PROTOCOLS:
            raise ValueError(f"{name!r} is none of the protocols {', '.join(PROTOCOLS)}")
        for way in DIRECTIONS_OF[name]:
            if not isinstance(protocol, dict) or not isinstance(protocol.get(way), dict):
                raise ValueError(f"{name} lacks {way!r}")
            _check_direction(protocol[way], f"{name}, {way}")
        _check_truth(protocol.get("truth", {"pairs": {}, "sentence": ""}), name)
    judgements = results.get("judgements", {"fingerprint": "", "sentence": ""})
    if not isinstance(judgements, dict) or any(
        type(judgements.get(key)) is not str for key in ("fingerprint", "sentence")
    ):
        raise ValueError("'judgements' must be an object with texts 'fingerprint' and 'sentence'")


def _check_truth(truth, name):
    where = f"{name}, truth"
    if not isinstance(truth, dict) or type(truth.get("sentence")) is not str:
        raise ValueError(f"{where} must be an object with a text 'sentence'")
    pairs = truth.get("pairs")
    if not isinstance(pairs, dict) or any(type(count) is not int for count in pairs.values()):
        raise ValueError(f"{where}: 'pairs' must be whole numbers by reason")
    for kind, of in truth.items():
        if kind in ("pairs", "sentence"):
            continue
        if kind not in TRUTHS or not isinstance(of, dict):
            raise ValueError(f"{where}: {kind!r} must be one of {', '.join(TRUTHS)}, an object")
        for way in DIRECTIONS_OF[name]:
            _check_numbers(of.get(way), f"{where}, {kind}, {way}")
            intervals = of[way].get("intervals")
            for key in recalls(of[way]):
                ends = intervals.get(key) if isinstance(intervals, dict) else None
                if not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_number, ends)):
                    raise ValueError(f"{where}, {kind}, {way}: the interval of {key!r} must be two numbers")


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
    if min(table["queries"], default=0) < 1:
        raise ValueError(f"{where}: 'queries' of by_product must be whole numbers >= 1, and some")
    for column, values in table.items():
        if column not in ("product", "category") and not (isinstance(values, list) and all(map(_is_number, values))):
            raise ValueError(f"{where}: {column!r} of by_product must be a list of numbers")
        if len(values) != len(table["product"]):
            raise ValueError(f"{where}: {column!r} of by_product has {len(values)} rows, not {len(table['product'])}")
    for column in recalls(table):
        if not RECALL.fullmatch(column):
            raise ValueError(f"{where}: {column!r} of by_product is no recall")
        if column not in numbers:
            raise ValueError(f"{where} lacks {column!r}, which its by_product has")


def _check_numbers(numbers, where):
    if not isinstance(numbers, dict):
        raise ValueError(f"{where} must be an object")
    for key, value in numbers.items():
        if SHOWN.fullmatch(key) and not _is_number(value):
            raise ValueError(f"{where}: {key!r} must be a number")


def _is_number(value):
    """Whether it is a number that a float can hold; NaN is not, and whole numbers of 400 digits are not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
