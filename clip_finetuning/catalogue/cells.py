"""What the cells of a row say, whatever type a table gives them. What is there is never taken for blank unsaid."""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from clip_finetuning.catalogue.caption_template import fill_template, template_fields
from clip_finetuning.catalogue.encodings import UNREADABLE
from clip_finetuning.catalogue.markup import without_markup
from clip_finetuning.catalogue.remarks import Remarks
from clip_finetuning.catalogue.rows import RowError
from clip_finetuning.runtime.text import attribute_text, decimal_text, text_of

EXACT = 2**53  # floating-point numbers beyond have lost digits
ROUNDED = "have a product id beyond 2^53 as a floating-point number: its last digits may be lost, and products merged"
SCIENTIFIC = "have a product id such as 1.23E+17: its last digits are lost, and products may be merged"
MARKUP = "had markup: tags were removed, entities resolved (--keep-markup keeps them)"
LOST_TEXT = f"hold {UNREADABLE}, which stands for characters that were lost"


def text_and_kind(value: object) -> tuple[str, str]:
    """(the value as one line of text, "") or ("", what it is instead); ("", "") where there is none.

    Whole numbers and decimals are their digits, a list of one is that one.
    """
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, bytes) and (any(byte < 9 for byte in value) or UNREADABLE in text_of(value)):
        return "", "bytes that are no text"
    text = text_of(value)
    if text or value is None or isinstance(value, str | bytes) or value != value or value in ([], {}, ()):
        return text, ""
    return "", _kind(value)


def _decimal(value):
    if not value.is_finite():
        return ("", "") if value.is_nan() else ("", "infinity")
    text = decimal_text(value)
    return text, "" if text else "a number of more than 100 digits"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "infinity" if isinstance(value, float) and math.isinf(value) else "a number of more than 100 digits"
    if isinstance(value, list | tuple):
        return "a list of several"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


class Cells:
    """Reads the cells of row after row, and remarks what it makes of them."""

    def __init__(self, remarks: Remarks, keep_markup: bool = False) -> None:
        self.remarks, self.keep_markup = remarks, keep_markup

    def product_id(self, where: str, value: object) -> str:
        """The text of a product id, blank if there is none. Raises RowError for what is no id."""
        text, kind = text_and_kind(value)
        if kind:
            raise RowError(f"product id is {kind}")
        if isinstance(value, float) and abs(value) > EXACT:
            self.remarks.count(ROUNDED, f"{where}: {text}")
        elif isinstance(value, str) and _is_scientific(text):
            self.remarks.count(SCIENTIFIC, f"{where}: {text}")
        return text

    def label(self, where: str, name: str, value: object) -> str:
        """The text of a category; of what is no text a remark, and blank."""
        text, kind = text_and_kind(value)
        if kind:
            self.remarks.count(f"have a {name} that is {kind}, which counts as none", where)
        return text if self.keep_markup else text_of(without_markup(text))

    def attribute(self, where: str, name: str, value: object) -> str:
        """The text of an attribute; of what is no text a remark, and blank."""

        def as_text(one: object) -> str:
            text, kind = text_and_kind(one)
            if kind:
                self.remarks.count(f"have a {name} that is {kind}, which counts as none", where)
            return text if self.keep_markup else text_of(without_markup(text))

        return attribute_text(value, as_text)

    def captions(self, where: str, values: Mapping, names: Iterable[str], template: str = "") -> list[tuple[str, str]]:
        """(column, wording) of a row, none blank; one made by a template has no column.

        Raises RowError if there is none, but something that is no text.
        """
        names = template_fields(template) if template else names
        cells = [(name, values.get(name)) for name in names]
        if not template:
            cells = [(name, one) for name, cell in cells for one in (cell if isinstance(cell, list) else [cell])]
        read = [(name, *text_and_kind(cell)) for name, cell in cells]
        kinds = [(name, kind) for name, _, kind in read if kind]
        cleaned = [(name, text if self.keep_markup else text_of(without_markup(text))) for name, text, _ in read]
        if any(new != old for (_, new), (_, old, _) in zip(cleaned, read)):
            self.remarks.count(
                MARKUP, f"{where}: {next(old for (_, new), (_, old, _) in zip(cleaned, read) if new != old)}"
            )
        found = [("", fill_template(template, dict(cleaned)))] if template else cleaned
        found = [(name, text) for name, text in found if text]
        texts = [text for _, text in found]
        if kinds and not texts:
            raise RowError(f"caption is {kinds[0][1]}")
        for name, kind in dict.fromkeys(kinds):
            self.remarks.count(f"have a {name} that is {kind}, which is left out of the caption", where)
        if any(UNREADABLE in text for text in texts):
            self.remarks.count(LOST_TEXT, f"{where}: {next(text for text in texts if UNREADABLE in text)}")
        return found


def _is_scientific(text):
    mantissa, sign, exponent = text.upper().replace(",", ".").partition("E+")
    return bool(sign) and exponent.isdecimal() and "." in mantissa and mantissa.replace(".", "", 1).isdecimal()
