"""A field as text, whatever its type, and which captions are the same."""

import math

import pytest

from plain_text import MISSING, caption_numbers, same_caption_key, text_of


@pytest.mark.parametrize(
    "missing",
    [
        math.nan,
        math.inf,
        -math.inf,
        None,
        True,
        False,
        ["P1"],
        {"id": "P1"},
        b"P1",
        "",
        " \t\n",
        " nan ",
        *sorted(MISSING),
    ],
)
def test_what_is_missing_is_blank(missing):
    assert text_of(missing) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (15970, "15970"),
        (15970.0, "15970"),
        (-0.0, "0"),
        (1e22, "10000000000000000000000"),
        (1.5, "1.5"),
        (2**70, str(2**70)),
        (" P1 ", "P1"),
        ("two  words", "two  words"),
        ("Nan", "Nan"),  # a brand
        ("none of these", "none of these"),
        ("0", "0"),
    ],
)
def test_what_is_there_is_written_out(value, text):
    assert text_of(value) == text


def test_captions_are_the_same_but_for_case_blanks_and_composition():
    captions = ["A Red  dress", "caf\u00e9", "a red dress ", "cafe\u0301", "a red dress."]
    assert caption_numbers(captions) == ([0, 1, 0, 1, 2], [0, 1, 4])
    assert same_caption_key("a\u00a0b") == same_caption_key("A\tB") == "a b"
    assert caption_numbers([]) == ([], [])
