"""The result file: written whole, and read, whoever wrote it, with all that is counted, shown or compared checked."""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from clip_finetuning.retrieval.names import DIRECTIONS, DIRECTIONS_OF, PROTOCOLS, TRUTHS, recalls
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
    _check_protocols(results["protocols"])
    if "zero_shot" in results:
        _check_zero_shot(results["zero_shot"])
    _check_judgements(results.get("judgements", {"fingerprint": "", "sentence": ""}))
    _check_examples(results.get("examples", {}))
    if results.get("retention") is not None:
        _check_retention(results["retention"])


def _check_protocols(protocols):
    for name, protocol in protocols.items():
        if name not in PROTOCOLS:
            raise ValueError(f"{name!r} is none of the protocols {', '.join(PROTOCOLS)}")
        for way in DIRECTIONS_OF[name]:
            if not isinstance(protocol, dict) or not isinstance(protocol.get(way), dict):
                raise ValueError(f"{name} lacks {way!r}")
            _check_direction(protocol[way], f"{name}, {way}")
        _check_languages(protocol.get("languages", {}), name)
        if type(protocol.get("version", 1)) is not int or not isinstance(protocol.get("cite", ""), str):
            raise ValueError(f"{name}: 'version' must be a whole number and 'cite' a text")
        _check_truth(protocol.get("truth", {"pairs": {}, "sentence": ""}), name)


def _check_languages(languages, name):
    if not isinstance(languages, dict):
        raise ValueError(f"{name}: 'languages' must be an object")
    for language, directions in languages.items():
        for way in DIRECTIONS_OF[name]:
            if not isinstance(directions, dict) or not isinstance(directions.get(way), dict):
                raise ValueError(f"{name}, languages, {language!r} lacks {way!r}")
            _check_direction(directions[way], f"{name}, languages, {language!r}, {way}")


def _check_retention(results):
    """That it is a result of its own, with what changed since the model before."""
    if not isinstance(results, dict) or "retention" in results or not isinstance(results.get("pattern"), str):
        raise ValueError("'retention' must be an object with a text 'pattern', and hold no other retention")
    try:
        check_results(results)
    except ValueError as error:
        raise ValueError(f"retention: {error}") from None
    if results.get("protocol") not in results["protocols"]:
        raise ValueError("retention: 'protocol' must name one of its protocols")
    base, others = results.get("base", {}), results.get("other_changes", {})
    if not isinstance(base, dict) or not isinstance(others, dict) or not others.keys() <= results["protocols"].keys():
        raise ValueError("retention: 'base' must be an object, 'other_changes' one by its protocols")
    if any(type(value) is not str for value in (results.get("sentence", ""), *base.values())):
        raise ValueError("retention: 'sentence' and what 'base' holds must be texts")
    for protocol, change in [(results["protocol"], results.get("change", {})), *others.items()]:
        _check_change(change, protocol)


def _check_change(change, protocol):
    """That it is by direction and recall of a protocol."""
    if not isinstance(change, dict) or not all(isinstance(way, dict) for way in change.values()):
        raise ValueError("retention: a change and each of its directions must be objects")
    for row in (row for way in change.values() for row in way.values()):
        if not isinstance(row, dict) or not all(_is_number(row.get(key)) for key in ("before", "after", "gain")):
            raise ValueError("retention: each recall of a change must hold numbers 'before', 'after' and 'gain'")
        if not _is_interval(row.get("interval")) or row.get("verdict") not in ("better", "worse", "unclear"):
            raise ValueError("retention: each recall of a change must hold an 'interval' and a 'verdict'")
    if any(
        way not in DIRECTIONS_OF[protocol] or any(not RECALL.fullmatch(key) for key in keys)
        for way, keys in change.items()
    ):
        raise ValueError("retention: a change must be by direction and recall")


def _check_zero_shot(numbers):
    if not isinstance(numbers, dict):
        raise ValueError("'zero_shot' must be an object")
    for key in ("classes", "images", "top1", "top5", "macro"):
        if not _is_number(numbers.get(key)):
            raise ValueError(f"zero_shot: {key!r} must be a number")
    if "by_product" not in numbers:  # from before it was kept, with chance, majority, intervals and confusion
        return
    _check_table(numbers["by_product"], "zero_shot")
    chance, majority = numbers.get("chance"), numbers.get("majority")
    if not isinstance(chance, dict) or not all(map(_is_number, chance.values())) or "top1" not in chance:
        raise ValueError("zero_shot: 'chance' must hold numbers, that of top1 among them")
    if not isinstance(majority, dict) or not _is_number(majority.get("top1")) or type(majority.get("class")) is not str:
        raise ValueError("zero_shot: 'majority' must hold a number 'top1' and a text 'class'")
    bounds = numbers.get("intervals")
    if not isinstance(bounds, dict) or not all(_is_interval(pair) for pair in bounds.values()):
        raise ValueError("zero_shot: 'intervals' must hold pairs of numbers")
    if {"top1", "top5"} - {*numbers["by_product"]}:
        raise ValueError("zero_shot: its by_product lacks 'top1' or 'top5'")
    _check_confusion(numbers.get("confusion"))
    prompts = numbers.get("prompts")
    if not isinstance(prompts, list) or not all(type(prompt) is str for prompt in prompts):
        raise ValueError("zero_shot: 'prompts' must be a list of texts")


def _check_confusion(confusion):
    top = confusion.get("top") if isinstance(confusion, dict) else None
    for row in top if isinstance(top, list) else [None]:
        kinds = {"class": str, "taken_for": str, "images": int, "share": float}
        if not isinstance(row, dict) or any(type(row.get(key)) is not kind for key, kind in kinds.items()):
            raise ValueError(f"zero_shot: 'top' of confusion must be a list of objects with {', '.join(kinds)}")


def _check_judgements(judgements):
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
    hubness = numbers.get("hubness", {})
    if not isinstance(hubness, dict) or not all(map(_is_number, hubness.values())):
        raise ValueError(f"{where}: 'hubness' must hold numbers")
    categories = numbers.get("categories", {})
    for category in categories.values() if isinstance(categories, dict) else [None]:
        _check_numbers(category, f"{where}, categories")
    table = numbers.get("by_product")
    _check_table(table, where)
    for column in recalls(table):
        if not RECALL.fullmatch(column):
            raise ValueError(f"{where}: {column!r} of by_product is no recall")
        if column not in numbers:
            raise ValueError(f"{where} lacks {column!r}, which its by_product has")


def _check_table(table, where):
    if not isinstance(table, dict):
        raise ValueError(f"{where} lacks 'by_product'")
    for column in ("product", "category", "queries"):
        kind = int if column == "queries" else str
        values = table.get(column)
        if not isinstance(values, list) or set(map(type, values)) - {kind}:
            raise ValueError(f"{where}: {column!r} of by_product must be a list of {kind.__name__}")
    if min(table["queries"], default=0) < 1:
        raise ValueError(f"{where}: 'queries' of by_product must be whole numbers >= 1, and some")
    for column, values in table.items():
        if column not in ("product", "category") and not _are_numbers(values):
            raise ValueError(f"{where}: {column!r} of by_product must be a list of numbers")
        if len(values) != len(table["product"]):
            raise ValueError(f"{where}: {column!r} of by_product has {len(values)} rows, not {len(table['product'])}")


def _check_numbers(numbers, where):
    if not isinstance(numbers, dict):
        raise ValueError(f"{where} must be an object")
    for key, value in numbers.items():
        if SHOWN.fullmatch(key) and not _is_number(value):
            raise ValueError(f"{where}: {key!r} must be a number")


def _is_number(value):
    """Whether it is a number that a float can hold; NaN is not, and whole numbers of 400 digits are not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _are_numbers(values):
    """Whether it is a list of such numbers; looked at one by one only where their sum is none."""
    if not isinstance(values, list) or set(map(type, values)) - {int, float}:
        return False
    try:
        return math.isfinite(sum(values)) or all(map(_is_number, values))
    except OverflowError:  # a whole number of 400 digits
        return False


def _is_interval(value):
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _check_examples(recorded):
    """ValueError unless it is what `examples.record` gives."""
    if not isinstance(recorded, dict):
        raise ValueError("'examples' must be an object")
    for way in DIRECTIONS:
        entries = recorded.get(way, [])
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            raise ValueError(
                f"'examples', {way}: each must have a query (text), a rank (from 1) and answers (name, score, hit)"
            )


def _is_entry(entry):
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("query"), str)
        or not isinstance(entry.get("answers"), list)
    ):
        return False
    rank = entry.get("rank")
    return type(rank) is int and rank >= 1 and all(map(_is_answer, entry["answers"]))


def _is_answer(answer):
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        return False
    score: Any = answer.get("score")
    return type(answer.get("hit")) is bool and _is_number(score) and abs(score) < 1e6  # what a page has room for
