"""The JSON mapping, `clip_dataset_{split}.json`: how rows are written into it, and which of its entries can be used.

Whoever reads one - the shards, the audit - sees the same entries, captions and products.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from clip_finetuning.catalogue.attributes import with_text
from clip_finetuning.catalogue.rows import Attributes, Row, Source, caption_id, is_caption_id
from clip_finetuning.catalogue.skips import check_skipped
from clip_finetuning.catalogue.summary import Summary
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.caption_weights import RULE, fault_of
from clip_finetuning.runtime.text import attribute_text, printable, text_of

File = TypeVar("File", str, Path)
NO_TEXT = {"languages": "are not those of the captions, one each,"}  # else: holds no text
FIELDS = ("product_id", "category", "subcategory", "image_name")  # what an entry says beside its picture and captions


class Entry(NamedTuple):
    """One usable entry, every text on one line. Without an id of its own, `product_id` is made of the caption."""

    image_path: str
    caption: str
    alternatives: tuple[str, ...]  # other wordings of the caption, as far as they are not blank
    product_id: str
    category: str
    subcategory: str
    image_name: str
    attributes: Attributes = ()
    languages: tuple[str, ...] = ()  # of the alternatives, or of the caption where there are none, one each, or nothing
    weights: tuple[float, ...] = ()  # of the alternatives, one each, or nothing: how often training draws them

    @property
    def captions(self) -> tuple[str, ...]:
        """Every distinct wording, the caption first."""
        return tuple(dict.fromkeys((self.caption, *self.alternatives)))


class SkippedEntry(NamedTuple):
    """An entry that cannot be used: its number, from 0, the picture's path if it has one, and one of a few reasons."""

    number: int
    name: str
    reason: str


class Mapping(NamedTuple):
    """What a file holds. `no_text` counts, by field, the values that are there and hold no text, such as NaN.

    `wrong_weights` are entries whose caption_weights count as none, with the reasons.
    """

    entries: list[Entry]
    skipped: list[SkippedEntry]
    no_text: Counter[str]
    wrong_weights: list[SkippedEntry]

    def remarks(self) -> list[str]:
        """What was made of entries that are used though they say less than they should, a line each."""
        lines = [
            f"{field} {NO_TEXT.get(field, 'holds no text')} in {count:,} entries, which counts as none"
            for field, count in sorted(self.no_text.items())
        ]
        without_id = sum(is_caption_id(entry.product_id) for entry in self.entries)
        if without_id:
            lines.append(f"{without_id:,} entries have no product_id: equal captions are one product")
        if self.wrong_weights:
            lines.append(f"{self._wrong_weights()}; they count as none")
        return lines

    def check_weights(self, path: str | os.PathLike) -> None:
        """ValueError for caption_weights that cannot be used: one that is mistaken would train something else unsaid."""
        if self.wrong_weights:
            raise ValueError(f"{path}: {self._wrong_weights()}; {RULE}")

    def _wrong_weights(self) -> str:
        first, count = self.wrong_weights[0], len(self.wrong_weights)
        where = f"first of entry {first.number} ({first.name})"
        return f"caption_weights of {count:,} {'entry' if count == 1 else 'entries'} cannot be used, {where}: {first.reason}"


def write_mappings(sources: dict[File, Source], max_skipped: float | None = None) -> dict[File, Summary]:
    """Write the rows of catalogues, {file: Source}, as JSON, and count them. All files are written, or none.

    Raises ValueError if a catalogue has no row that can be used, or if more than the share `max_skipped` of all rows is
    skipped.
    """
    summaries = {}
    with ExitStack() as stack:
        for output, source in sources.items():
            summaries[output] = write_rows(source, stack.enter_context(atomic_write(output)))
        if max_skipped is not None:
            check_skipped(summaries.values(), max_skipped)
    return summaries


def write_rows(source: Source, output: str | os.PathLike) -> Summary:
    """Write the rows of a catalogue as JSON, one line each, and count them.

    Rows are written as they come: memory does not grow with the catalogue. Raises ValueError if no row can be used.
    """
    summary = Summary()
    rows = tqdm(source.rows, total=source.total, unit=" rows", desc=Path(source.name).name, disable=None)
    with open(output, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            summary.add(row)
            if isinstance(row, Row):
                before = "[\n" if summary.images == 1 else ",\n"
                file.write(before + json.dumps(_object_of(row), ensure_ascii=False))
        file.write("\n]\n")
    summary.remarks = source.remarks()
    if not summary.images:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items())
        remarks = "".join(f"; {remark}" for remark in summary.remarks)
        raise ValueError(f"{source.name}: no usable row ({reasons or 'it is empty'}{remarks}); nothing was written")
    return summary


def read_mapping(path: str | os.PathLike, image_key: str = "image_path", caption_key: str = "caption") -> Mapping:
    """The entries of a mapping, usable and not. Raises FileNotFoundError, or ValueError for anything but a list."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; make it with clip_prep.py") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make it anew with clip_prep.py") from error
    if not isinstance(values, list):
        raise ValueError(f"{path} holds a {type(values).__name__}; it must be a list of objects, one a picture")
    return check_entries(values, image_key, caption_key)


def check_entries(values: Sequence[object], image_key: str = "image_path", caption_key: str = "caption") -> Mapping:
    """The Mapping of the values of a list: an entry is an object with a picture's path and a caption, both strings."""
    mapping = Mapping([], [], Counter(), [])
    for number, value in enumerate(values):
        fields = value if isinstance(value, dict) else {}
        path, caption = (_string(fields, key) for key in (image_key, caption_key))
        if path and text_of(caption):
            mapping.entries.append(_entry(path, text_of(caption), fields))
            mapping.no_text.update(_fields_without_text(fields))
            if fault := _weights(fields)[1]:
                mapping.wrong_weights.append(SkippedEntry(number, printable(path), fault))
            continue
        reason = f"no {caption_key if path else image_key}" if isinstance(value, dict) else "not an object"
        mapping.skipped.append(SkippedEntry(number, printable(path) or f"entry {number}", reason))
    return mapping


def _entry(image_path: str, caption: str, value: dict) -> Entry:
    alternatives = value.get("captions")
    alternatives = list(map(text_of, alternatives)) if isinstance(alternatives, list) else []
    languages = _languages(value) or [""] * max(1, len(alternatives))
    languages = [language for text, language in zip(alternatives or [caption], languages) if text]
    texts = {field: text_of(value.get(field)) for field in FIELDS}
    texts["product_id"] = texts["product_id"] or caption_id(caption)
    named = tuple(languages) if any(languages) else ()
    alternatives = tuple(filter(None, alternatives))
    return Entry(
        image_path,
        caption,
        alternatives,
        **texts,
        attributes=_attributes(value),
        languages=named,
        weights=_weights(value)[0],
    )


def _attributes(value: dict) -> Attributes:
    attributes = value.get("attributes")
    if not isinstance(attributes, dict):
        return ()
    return with_text((name, attribute_text(one)) for name, one in attributes.items())


def _languages(value: dict) -> list[str] | None:
    """Those of `captions`, or of the one caption, one each; None where there are none, or not as many."""
    languages, captions = value.get("languages"), value.get("captions")
    count = len(captions) if isinstance(captions, list) and captions else 1
    if not isinstance(languages, list) or len(languages) != count or any(map(_means_no_text, languages)):
        return None
    return list(map(text_of, languages))


def _weights(value: dict) -> tuple[tuple[float, ...], str]:
    """(the weights of those of `captions` that hold text, what is wrong with `caption_weights`), blank where there are none."""
    weights, captions = value.get("caption_weights"), value.get("captions")
    if weights in (None, []):
        return (), ""
    if not isinstance(captions, list) or not captions:
        return (), fault_of(weights, 1)
    if fault := fault_of(weights, len(captions)):
        return (), fault
    with_text = [weight for text, weight in zip(captions, weights) if text_of(text)]
    return (tuple(with_text), "") if any(with_text) else ((), "all of it is 0 but for captions without text")


def _string(value: dict, key: str) -> str:
    """What an object says under a key; blank unless it is a string of more than spaces."""
    text = value.get(key)
    return text if isinstance(text, str) and text.strip() else ""


def _fields_without_text(value: dict) -> list[str]:
    """The fields that mean something, yet hold no text, or `captions` that are no list of texts."""
    fields = [field for field in FIELDS if _means_no_text(value.get(field))]
    attributes = value.get("attributes")
    if attributes is not None and len(_attributes(value)) < (len(attributes) if isinstance(attributes, dict) else 1):
        fields.append("attributes")
    if value.get("languages") and _languages(value) is None:
        fields.append("languages")
    alternatives = value.get("captions")
    if isinstance(alternatives, list):
        return [*fields, "captions"] if any(map(_means_no_text, alternatives)) else fields
    return fields if alternatives in (None, "") else [*fields, "captions"]


def _means_no_text(value: object) -> bool:
    return value is not None and value != "" and not text_of(value)


def _object_of(row: Row) -> dict:
    fields: dict[str, Any] = {
        "image_path": row.image_path,
        "image_name": row.image_name,
        "caption": row.captions[0],
        "category": row.category,
        "product_id": row.product_id,
    }
    if row.subcategory:
        fields["subcategory"] = row.subcategory
    if len(row.captions) > 1:
        fields["captions"] = list(row.captions)
    if row.attributes:
        fields["attributes"] = dict(row.attributes)
    if row.languages:
        fields["languages"] = list(row.languages)
    return fields
