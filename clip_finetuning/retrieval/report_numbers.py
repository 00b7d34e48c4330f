"""The page's numbers in words and tables: the verdict, a block for each direction, truth, zero-shot, retention."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clip_finetuning.retrieval import comparison, names
from clip_finetuning.retrieval.report_cards import title

KEY = "recall@10"  # what the verdict is about
MAIN = tuple(names.OTHER_NUMBERS)  # beside the recalls; what else a result holds is shown on demand
CONFUSIONS = 12  # of classes that are taken for others
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
    return "mean rank" if key == "mean_rank" else names.label(key)


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
    return key in ("mean_rank", *names.WITHIN_R) or key.startswith(("expected_recall@", "ndcg@", "graded_ndcg@"))


def _row(key, numbers, before, words=""):
    low, high = numbers.get("intervals", {}).get(key, (None, None))
    chance = numbers.get("chance", {}).get(key)
    return {
        "label": words or label(key),
        "value": number(key, numbers[key]),
        "interval": None if low is None else _range(key, low, high),
        "chance": "" if chance is None else number(key, chance),
        "before": number(key, before[key]) if before and type(before.get(key)) in (int, float) else "",
        "change": gain(before, numbers, key) if before else None,
    }


def _range(key, low, high):
    """An interval; its unit stands with the value."""
    return "–".join(number(key, end).removesuffix(f"{SPACE}%") for end in (low, high))


def gain(before: Mapping[str, Any], numbers: Mapping[str, Any], key: str) -> dict[str, str] | None:
    """{difference, interval, verdict} of what both results know by product, else None."""
    if key not in before["by_product"] or key not in numbers["by_product"]:
        return None
    difference, interval = comparison.paired_difference(dict(before), dict(numbers), key)
    return _signed({"gain": difference, "interval": interval, "verdict": comparison.verdict(*interval)})


def truths(truth: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{sentence, columns, directions}: the recalls under each reading of near-duplicates; None if nobody asked for it."""
    if not truth:
        return None
    columns = [name for name in names.TRUTHS if name in truth]
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
    return {"sentence": truth.get("sentence", ""), "columns": columns, "directions": directions}


def _cell(key, numbers):
    if key not in numbers:
        return {"value": "", "interval": None}
    interval = numbers.get("intervals", {}).get(key)
    return {"value": number(key, numbers[key]), "interval": interval and _range(key, *interval)}


def languages(found: Mapping[str, Any] | None, ways: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a table by language: its queries and Recall@10 in each direction."""
    ways = list(ways)
    return [
        {"name": language, "cells": [_cell(KEY, numbers[way]) | {"queries": numbers[way]["queries"]} for way in ways]}
        for language, numbers in (found or {}).items()
    ]


def zero_shot(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The classification by category names: its rows with chance, the largest class, and before; None if not measured."""
    if not now:
        return None
    compared, why_not = _zero_shot_changes(now, before)
    keys = {"top1": "top-1", "top5": "top-5", "macro": "top-1, mean of the categories"}
    rows = [_row(key, now, None, words) | {"majority": ""} for key, words in keys.items()]
    rows[0]["majority"] = percent(now["majority"]["top1"]) if "majority" in now else ""
    for key, row in zip(keys, rows):
        if change := compared.get(key):
            row |= {"before": percent(change["before"]), "change": _signed(change)}
    f1 = now.get("f1", {})
    return {
        **{name: now[name] for name in ("classes", "images")},
        "rows": rows,
        "f1": "; ".join(f"{name} {value:.3f}" for name, value in f1.items()),
        "majority": now.get("majority", {}).get("class"),
        "is_compared": bool(compared),
        "why_not": why_not,
        "confusions": now.get("confusion", {}).get("top", [])[:CONFUSIONS],
        "prompts": list(now.get("prompts", [])),
        "unnamed": now.get("without_category", 0),
        "left_out": list(now.get("without_embedding", [])),
    }


def _zero_shot_changes(now, before):
    """(the changes by number, why there are none)."""
    if not before:
        return {}, ""
    try:
        return comparison.zero_shot_changes(dict(before), dict(now)), ""
    except ValueError as error:
        return {}, f"Not compared: {error}."


def changes(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of what changed on other data: {direction: {recall@k: before, after, gain, interval, verdict}}."""
    for way, numbers in found.items():
        for key, entry in numbers.items():
            values = {"before": percent(entry["before"]), "value": percent(entry["after"])}
            yield {"direction": title(way), "label": label(key), **values, "change": _signed(entry)}


def _signed(change):
    low, high = change["interval"]
    interval = f"{points(low)} to {points(high)}"
    return {"difference": points(change["gain"]), "interval": interval, "verdict": change["verdict"]}
