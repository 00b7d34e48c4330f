"""Values as catalogues hold them, as text."""

import pytest

from clip_finetuning.runtime.text import MISSING, caption_numbers, hash_of, same_caption_key, text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  two \t words\r\n", "two words"),
        ("a\0b\x1bc\u2028d\ufeffe", "a b c d e"),
        ("👩‍👧 ‘é’ 羊毛", "👩‍👧 ‘é’ 羊毛"),
        ("lone \ud800 half", "lone half"),
        ("Écharpe".encode(), "Écharpe"),
        ("Écharpe ’".encode("cp1252"), "Écharpe ’"),
        (b"\x81", "�"),
        (12, "12"),
        (12.0, "12"),
        (0.5, "0.5"),
        (float("nan"), ""),
        (float("inf"), ""),
        (True, ""),
        (None, ""),
        (["a"], ""),
        (10**20, "100000000000000000000"),
        (-(2**70), "-1180591620717411303424"),
        (1e20, "100000000000000000000"),
        (10**1000, ""),
        (15970.0, "15970"),
        (-float("inf"), ""),
        ({"a": 1}, ""),
        (False, ""),
        ("x" * 100_000, "x" * 100_000),
        *((word, "") for word in sorted(MISSING)),
        (" nan ", ""),
        ("Nan", "Nan"),  # a brand
        ("none of these", "none of these"),
        ("Infinity", "Infinity"),  # a ring
        ("0", "0"),
        (-0.0, "0"),
        (1.5, "1.5"),
    ],
)
def test_text_is_one_clean_line(value, text):
    assert text_of(value) == text


def test_a_hash_is_the_same_everywhere():
    assert hash_of("A hat") == 0xBB62AEBCC4B90948
    assert hash_of("\udcff") != hash_of("")


def test_captions_are_the_same_but_for_case_blanks_and_composition():
    captions = ["A Red  dress", "caf\u00e9", "a red dress ", "cafe\u0301", "a red dress."]
    assert caption_numbers(captions) == ([0, 1, 0, 1, 2], [0, 1, 4])
    assert same_caption_key("a\u00a0b") == same_caption_key("A\tB") == "a b"
    assert caption_numbers([]) == ([], [])
