"""How much of a catalogue is skipped, and what helps against it."""

from collections import Counter
from collections.abc import Iterable

from clip_finetuning.catalogue.summary import Summary
from clip_finetuning.catalogue.table_rows import CONTINUES

MANY = 0.2  # a share of the rows that is worth a last line
# Nothing is lost with these: the product's pictures stand in its other rows.
HARMLESS = frozenset([CONTINUES])
# By the beginning of the reason.
REMEDIES = {
    "missing image": "does --images name their folder, and --image-column or --image-template their names?",
    "ambiguous image": "write the names exactly as the files are called",
    "no image name": "is --image-column the right one?",
    "image is a URL": "they must be fetched first",
    "image outside": "--allow-outside takes them, or --images names the folder above them",
    "download": "the same command tries those again that may come",
    "blank caption": "name other columns with --caption-column or --caption-template",
    "blank product_id": "without --product-column equal captions are one product",
    "wrong number of cells": "save the table anew, with quotes around cells that hold its separator",
    "inside an unbalanced quote": "look for the quote at the first line that is named",
    "line that is no JSON": "save the file with one object a line",
    "unreadable pickle": "copy the pickles anew",
    "missing key": "are these Fashion-Gen's pickles?",
}


def many_skipped(summaries: Iterable[Summary]) -> str | None:
    """A line if more than a fifth of all rows is skipped, else None."""
    share, text = _lost(summaries)
    return f"WARNING: {text}" if share > MANY else None


def check_skipped(summaries: Iterable[Summary], most: float) -> None:
    """Raise ValueError if more than the share `most` of all rows is skipped."""
    share, text = _lost(summaries)
    if share > most:
        raise ValueError(f"{text}; that is more than --max-skipped {most:g}, so nothing was written")


def _lost(summaries: Iterable[Summary]) -> tuple[float, str]:
    """(share of the rows that are skipped, a line that says so with the main reason and its remedy)."""
    summaries = list(summaries)
    skipped = sum((summary.skipped for summary in summaries), Counter())
    total = sum(summary.images for summary in summaries) + skipped.total()
    for reason in HARMLESS:
        del skipped[reason]
    if not skipped:
        return 0.0, ""
    lost, (reason, count) = skipped.total(), skipped.most_common(1)[0]
    remedy = next((f": {text}" for start, text in REMEDIES.items() if reason.startswith(start)), "")
    main = f"all for: {reason}" if count == lost else f"{count:,} of them for: {reason}"
    return lost / total, f"{lost:,} of {total:,} rows ({lost / total:.0%}) are skipped, {main}{remedy}"
