"""Values of somebody's file as text: the one rule for tables, pickles, HDF5 files, JSON mappings, shards and embeddings."""

import functools
import hashlib
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable
from decimal import Decimal

# Line breaks, control characters and lone surrogates end up as spaces. Joiners stay: emoji are made with them.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")
# What Python, pandas and JavaScript write as text where a value is missing.
MISSING = frozenset(("nan", "NaN", "NaT", "None", "<NA>", "null"))
MANY_DIGITS = 10**100  # a number beyond this is no id, and Python refuses to write out the longest
REMEMBERED = 1_000  # characters; longer texts hardly come twice, and would fill the memory


def text_of(value: object) -> str:
    """A value as one line of text; blank for what is none: nothing, true and false, lists, objects, NaN, infinity.

    The words that stand for a missing value are blank too. Whole numbers are their digits, 15970.0 too: pandas makes that
    of the id 15970 as soon as one id of the column is missing. Bytes are UTF-8 or Windows-1252.
    """
    if isinstance(value, str):
        return _remembered_line(value) if len(value) <= REMEMBERED else _line(value)
    if isinstance(value, bytes):
        return _line(decoded(value))
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MANY_DIGITS:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def decimal_text(value: Decimal) -> str:
    """The digits of a decimal number, as JSON and Parquet have them; blank for what is none, or too long."""
    if not value.is_finite() or abs(value) >= MANY_DIGITS:
        return ""
    return str(int(value)) if value == value.to_integral_value() else format(value, "f")


def attribute_text(value: object, as_text: Callable[[object], str] = text_of) -> str:
    """A value as the text of an attribute: true and false are said, of a list its values in the order of the alphabet."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = {str(one).lower() if isinstance(one, bool) else as_text(one) for one in values}
    return ", ".join(sorted(texts - {""}))


def wrapped(text: str, width: int = 80) -> list[str]:
    """The lines of a text on a console; those after the first are indented by two more."""
    return textwrap.wrap(text, width, subsequent_indent="    " if text.startswith(" ") else "  ")


def decoded(data: bytes) -> str:
    """Bytes of no stated encoding: UTF-8, or what web pages that say Latin-1 mean."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def hash_of(text: str) -> int:
    """A stable 64-bit number for a text, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def one_line(text: str) -> str:
    """A text on one line; the words that stand for a missing value are words."""
    return " ".join(UNPRINTABLE.sub(" ", text).split())


def _line(text: str) -> str:
    line = one_line(text)
    return "" if line in MISSING else line


# Most texts come again: captions with each view of a product, categories everywhere.
_remembered_line = functools.lru_cache(maxsize=4096)(_line)


def same_caption_key(caption: str) -> str:
    """Equal for captions that are the same text: but for case, blanks and how Unicode composes a letter.

    CLIP's own tokenizer makes no difference between those, so no model could tell such captions apart.
    """
    composed = caption if caption.isascii() else unicodedata.normalize("NFC", caption)
    return " ".join(composed.lower().split())


def caption_numbers(captions: Iterable[str]) -> tuple[list[int], list[int]]:
    """(M,) captions -> (the number of each one's text (M,), places of each text's first caption (U,)), as lists.

    Texts are numbered as they come; `same_caption_key` says which are the same.
    """
    known: dict[str, int] = {}
    numbers, first = [], []
    for place, caption in enumerate(captions):
        number = known.setdefault(same_caption_key(caption), len(known))
        if number == len(first):
            first.append(place)
        numbers.append(number)
    return numbers, first


def printable(value: object) -> str:
    """`value` as one line in which every character shows: a terminal obeys what a control character says.

    Whatever does not print - escape sequences, line breaks, text directions, halves of characters - is spelled out.
    """
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
