"""The page's numbers in words and tables: the verdict, a block for each direction, truth, zero-shot, retention."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clip_finetuning.retrieval import comparison, names
from clip_finetuning.retrieval.report_cards import title

KEY = "recall@10"  # what the verdict is about
MAIN = ("median_rank", "mrr", "map")  # beside the recalls; what else a result holds is shown on demand
OTHERS = {"r_precision": "R-precision", "map_at_r": "mAP@R", "mean_rank": "mean rank"}
SPACE = "\u202f"  # between a number and its sign


# -------------------------------------------------------------------------------------------- how they are written


def percent(share: float) -> str:
    """A share as per cent, with a decimal; small ones with as many as they need: 33.6 %, 0.012 %."""
    value = 100 * share
    return (f"{value:.2g}" if 0 < abs(value) < 0.1 else f"{value:.1f}") + f"{SPACE}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points: +28.1, −0.4."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def number(key: str, value: float) -> str:
    """A value as its measure is written: ranks as whole numbers, MRR with three decimals, all else as per cent."""
    if key.endswith("rank"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if key == "mrr" else percent(value)


def label(key: str) -> str:
    """A measure's name: Recall@10 of `recall@10`."""
    if key in OTHERS:
        return OTHERS[key]
    for prefix, words in (("expected_recall@", "Recall@{}, ties in any order"), ("ndcg@", "nDCG@{}")):
        if key.startswith(prefix):
            return words.format(key.removeprefix(prefix))
    return names.label(key)


# ----------------------------------------------------------------------------------------------------- the verdict


def figures(headline: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The large figures: Recall@10 of both directions, what it was, what the difference says, and all that in words."""
    return [_figure(way, headline[way], before and before[way]) for way in names.DIRECTIONS]


def _figure(way, numbers, before):
    change = before and gain(before, numbers, KEY)
    is_known = before and KEY in before
    found = round(100 * numbers[KEY])
    asked, answer = (
        ("captions", "a picture of their product") if way == "text_to_image" else ("pictures", "their caption")
    )
    gallery = f"{numbers['gallery']:,}" if "gallery" in numbers else "all"
    words = f"Of 100 {asked}, {found} find {answer} among the first 10 of {gallery}"
    chance = numbers["chance"].get(KEY)
    others = [] if chance is None else [f"chance would find {_about(100 * chance)}"]
    if is_known:
        others.insert(0, f"before it was {round(100 * before[KEY])}")
    low, high = numbers["intervals"][KEY]
    return {
        "title": title(way),
        "value": percent(numbers[KEY]),
        "interval": f"{100 * low:.1f} to {100 * high:.1f}{SPACE}%",
        "before": percent(before[KEY]) if is_known else None,
        "change": change,
        "words": "; ".join([words, *others]) + ".",
        "beats_chance": chance is not None and low > chance,
    }


def _about(value):
    return f"{value:.0f}" if value >= 1 or value == 0 else f"{value:.1g}"


def verdict(shown: Iterable[Mapping[str, Any]], is_compared: bool, products: int) -> str:
    """The result in a sentence, of the `figures`."""
    shown = list(shown)
    ways = [figure["title"].lower() for figure in shown]
    if not is_compared:
        above = [way for way, figure in zip(ways, shown) if figure["beats_chance"]]
        if len(above) == len(ways):
            return "Better than chance in both directions"
        return f"Better than chance {above[0]} alone" if above else "No better than chance"
    said = [figure["change"]["verdict"] if figure["change"] else "unknown" for figure in shown]
    if len(set(said)) == 1:
        return {
            "better": "Better in both directions, and not by chance",
            "worse": "Worse in both directions, and not by chance",
            "unclear": f"No difference that these {products:,} products can show",
            "unknown": "The two results cannot be paired",
        }[said[0]]
    words = {
        "better": "better {}, and not by chance",
        "worse": "worse {}, and not by chance",
        "unclear": "{} no difference that these data can show",
        "unknown": "{} not comparable",
    }
    together = "; ".join(words[what].format(way) for what, way in zip(said, ways))
    return together[0].upper() + together[1:]


# ------------------------------------------------------------------------------------------------------ the tables


def block(way: str, numbers: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """One direction of a protocol: its title, the rows that everyone reads, and `more`."""
    rows = [_row(key, numbers, before) for key in (*names.recalls(dict(numbers)), *MAIN) if key in numbers]
    known = {*names.recalls(dict(numbers)), *MAIN}
    return {
        "title": title(way),
        "queries": numbers.get("queries"),
        "gallery": numbers.get("gallery"),
        "rows": rows,
        "more": [_row(key, numbers, before) for key in numbers if key not in known and _is_measure(key)],
        "hubness": numbers.get("hubness"),
    }


def _is_measure(key):
    return key in OTHERS or key.startswith(("expected_recall@", "ndcg@"))


def _row(key, numbers, before):
    low, high = numbers.get("intervals", {}).get(key, (None, None))
    chance = numbers.get("chance", {}).get(key)
    return {
        "label": label(key),
        "value": number(key, numbers[key]),
        "interval": None if low is None else _range(key, low, high),
        "chance": "" if chance is None else number(key, chance),
        "before": number(key, before[key]) if before and key in before else "",
        "change": gain(before, numbers, key) if before else None,
    }


def _range(key, low, high):
    """An interval; its unit stands with the value."""
    return "–".join(number(key, end).removesuffix(f"{SPACE}%") for end in (low, high))


def gain(before: Mapping[str, Any], numbers: Mapping[str, Any], key: str) -> dict[str, str] | None:
    """{difference, interval, verdict} of what both results know by product, else None."""
    if key not in before["by_product"] or key not in numbers["by_product"]:
        return None
    difference, (low, high) = comparison.paired_difference(dict(before), dict(numbers), key)
    return {
        "difference": points(difference),
        "interval": f"{points(low)} to {points(high)}",
        "verdict": comparison.verdict(low, high),
    }


def truths(truth: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{sentence, pairs, columns, rows}: the recalls under each reading of near-duplicates; None if nobody asked for it."""
    if not truth:
        return None
    columns = [name for name in ("strict", "tolerant", "without") if name in truth]
    directions = [
        {
            "title": title(way),
            "rows": [
                {"label": label(key), "cells": [_cell(key, truth[name].get(way, {})) for name in columns]}
                for key in (*names.recalls(truth[columns[0]][way]), *MAIN)
                if any(key in truth[name].get(way, {}) for name in columns)
            ],
        }
        for way in truth[columns[0]]
    ]
    pairs = ", ".join(f"{count:,} pairs by {what}" for what, count in truth.get("pairs", {}).items())
    return {"sentence": truth.get("sentence", ""), "pairs": pairs, "columns": columns, "directions": directions}


def _cell(key, numbers):
    if key not in numbers:
        return {"value": "", "interval": None}
    interval = numbers.get("intervals", {}).get(key)
    return {"value": number(key, numbers[key]), "interval": interval and _range(key, *interval)}


def zero_shot(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{classes, images, rows, prompts ...} of the classification by category names; None if it was not measured."""
    if not now:
        return None
    rows = []
    for key, words in (
        ("top1", "top-1"),
        ("top5", "top-5"),
        ("macro", "top-1, mean of categories"),
        ("weighted", "weighted"),
    ):
        if key not in now:
            continue
        chance, interval = now.get("chance", {}).get(key), now.get("intervals", {}).get(key)
        known = before.get(key) if before else None
        majority = now.get("majority", {}).get("top1") if key == "top1" else None
        rows.append(
            {
                "label": words,
                "value": percent(now[key]),
                "interval": interval and _range(key, *interval),
                "chance": "" if chance is None else percent(chance),
                "majority": "" if majority is None else percent(majority),
                "before": percent(known) if type(known) in (int, float) else "",
            }
        )
    return {
        "rows": rows,
        "classes": now["classes"],
        "images": now["images"],
        "majority": now.get("majority", {}).get("class"),
        "prompts": list(now.get("prompts", [])),
        "left_out": list(now.get("without_embedding", [])),
        "has_before": any(row["before"] for row in rows),
        "has_chance": any(row["chance"] for row in rows),
    }


def retention(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{pattern, rows} of what the model still knows of data that it was not trained on; None if it was not measured."""
    if not found:
        return None
    return {"pattern": found.get("pattern", ""), "rows": list(_kept(found.get("change", {})))}


def _kept(change) -> Iterator[dict[str, Any]]:
    for way, numbers in change.items():
        for key, entry in numbers.items():
            low, high = entry["interval"]
            yield {
                "direction": title(way),
                "label": label(key),
                "before": percent(entry["before"]),
                "value": percent(entry["after"]),
                "difference": points(entry["gain"]),
                "interval": f"{points(low)} to {points(high)}",
                "verdict": entry["verdict"],
            }
