"""What people read: the lines of a run, the contact sheet of an answer, and what `mine` has found, as page and CSV.

The pages are one file each, without script; all text in them is escaped.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_finetuning.runtime import spreadsheet
from clip_finetuning.runtime.pages import templates
from clip_finetuning.runtime.text import printable
from clip_finetuning.search.index import Hit, Index
from clip_finetuning.search.mine import Findings

TEMPLATES = templates(Path(__file__).parent)


def lines(about: dict[str, Any], folder: str) -> list[str]:
    """What became of every picture of a source, and what the index is now."""
    counts, changes, scan = about["counts"], about["changes"], about.get("scan")
    found = [
        f"{counts['pictures']:,} pictures of {counts['products']:,} products in {counts['categories']:,} categories: "
        f"{changes['added']:,} added, {changes['changed']:,} changed, {changes['removed']:,} removed; "
        f"{counts['embedded']:,} embedded now"
    ]
    found += [f"{count:,} pictures left out: {printable(why)}" for why, count in sorted(counts["skipped"].items())]
    found += [f"{count:,} guessed: {printable(why)}" for why, count in sorted(counts["guessed"].items())]
    if counts["again_in_fp32"]:
        found.append(f"{counts['again_in_fp32']:,} pictures overflowed and were embedded again in fp32")
    if counts["renamed"]:
        found.append(f"{counts['renamed']:,} pictures have the key of another one, and are called KEY#2 and so on")
    if scan:
        share = f"{scan['recall']:.3f} of the true first ten (measured on {scan['queries']} queries)"
        found.append(
            f"approximate search finds {share}, by {scan['reach']} candidates"
            if scan["reach"]
            else f"approximate search would find only {share}, so every query scores every picture"
        )
    return [*found, f"index written to {folder} (model {about['model']['hash'][:12]})"]


def sheet(index: Index, hits: Sequence[Hit], asked: str, category: str | None) -> str:
    """A page with the pictures of an answer."""
    cards = [(hit, _url(index.picture(hit.image_key))) for hit in hits]
    return TEMPLATES.get_template("sheet.html.j2").render(
        cards=cards, asked=asked, category=category, about=index.about, model_name=_model_name(index)
    )


def page(index: Index, findings: Findings) -> str:
    """The page of what `mine` has found; a picture that several findings show is in it once for each."""
    url_of = {key: _url(index.picture(key)) for key in findings.image_keys()}
    return TEMPLATES.get_template("mine.html.j2").render(
        findings=findings, url_of=url_of, about=index.about, model_name=_model_name(index)
    )


def _model_name(index: Index) -> str:
    """What a page calls the model: of an own architecture's file no folders."""
    name = index.about["model"]["name"]
    return os.path.basename(name) if name.endswith(".json") else name


def csv(findings: Findings) -> str:
    """The findings as a table, UTF-8 with a byte order mark; no cell is a formula to a spreadsheet."""
    return spreadsheet.written(*findings.table())


def _url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
