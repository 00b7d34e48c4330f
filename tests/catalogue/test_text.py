"""Values as catalogues hold them, as text."""

import pytest

from clip_finetuning.catalogue.text import hash_of, text_of


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
    ],
)
def test_text_is_one_clean_line(value, text):
    assert text_of(value) == text


def test_a_hash_is_the_same_everywhere():
    assert hash_of("A hat") == 0xBB62AEBCC4B90948
    assert hash_of("\udcff") != hash_of("")
