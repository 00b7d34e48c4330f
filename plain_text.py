"""What a field of somebody's file says as text, and when two captions are the same."""

import math
import unicodedata

# What Python, pandas and JavaScript write as text where a value is missing or no number.
MISSING = frozenset(("nan", "NaN", "NaT", "None", "<NA>", "null", "inf", "-inf", "Infinity", "-Infinity"))


def text_of(value):
    """A field as text without outer blanks; "" for a missing one.

    Numbers are written in digits, and a whole one without its point: pandas turns the id 15970 into 15970.0 as soon as
    one id of the column is missing. Missing are NaN and infinity, as numbers or as such words, `None`, truth values,
    lists and objects.
    """
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    text = value.strip() if isinstance(value, str) else ""
    return "" if text in MISSING else text


def same_caption_key(caption):
    """Equal for captions that are the same text: but for case, blanks and how Unicode composes a letter.

    CLIP's own tokenizer makes no difference between those, so no model could tell such captions apart.
    """
    composed = caption if caption.isascii() else unicodedata.normalize("NFC", caption)
    return " ".join(composed.lower().split())


def caption_numbers(captions):
    """(M,) captions -> (the number of each one's text (M,), places of each text's first caption (U,)), as lists.

    Texts are numbered as they come; `same_caption_key` says which are the same.
    """
    known, first = {}, []
    numbers = []
    for place, caption in enumerate(captions):
        number = known.setdefault(same_caption_key(caption), len(known))
        if number == len(first):
            first.append(place)
        numbers.append(number)
    return numbers, first
