"""Values of somebody's catalogue as text: the one rule for tables, pickles, HDF5 files and JSON mappings."""

import functools
import hashlib
import re

# Line breaks, control characters and lone surrogates end up as spaces. Joiners stay: emoji are made with them.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")
MANY_DIGITS = 10**100  # a number beyond this is no id, and Python refuses to write out the longest
REMEMBERED = 1_000  # characters; longer texts hardly come twice, and would fill the memory


def text_of(value: object) -> str:
    """A value as one line of text; blank for what is none: nothing, true and false, lists, objects, NaN, infinity.

    Whole numbers are their digits, 15970.0 too, as ids that went through pandas look; bytes are UTF-8 or Windows-1252.
    """
    if isinstance(value, str):
        return _remembered_line(value) if len(value) <= REMEMBERED else _line(value)
    if isinstance(value, bytes):
        return _line(decoded(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MANY_DIGITS:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def decoded(data: bytes) -> str:
    """Bytes of no stated encoding: UTF-8, or what web pages that say Latin-1 mean."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def hash_of(text: str) -> int:
    """A stable 64-bit number for a text, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _line(text: str) -> str:
    return " ".join(UNPRINTABLE.sub(" ", text).split())


# Most texts come again: captions with each view of a product, categories everywhere.
_remembered_line = functools.lru_cache(maxsize=4096)(_line)
