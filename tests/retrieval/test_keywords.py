"""Captions cut to what a shopper would type: in any script, of any length, and the same everywhere."""

import pytest

from clip_finetuning.retrieval.keywords import MOST_WORDS, keywords, of_columns


@pytest.mark.parametrize(
    ("caption", "typed"),
    [
        ("Long sleeve cotton-blend t-shirt in black. Ribbed knit collar.", "Long sleeve cotton-blend t-shirt black"),
        ("Long, flowing dress in red", "Long flowing dress red"),  # one word is not enough to ask for
        ("Sneaker", "Sneaker"),
        ("Dress (see the size chart)", "Dress see size chart"),
        ("Kleid aus Seide mit Gürtel, ohne Futter", "Kleid Seide Gürtel"),
        ("Robe d'été en lin avec une ceinture", "Robe d'été lin ceinture"),
        ("Vestido de mujer para el verano", "Vestido mujer verano"),
        ("Платье из хлопка с длинными рукавами", "Платье хлопка длинными рукавами"),
        ("فستان نسائي من القطن، مع أكمام طويلة", "فستان نسائي القطن"),
        ("新款夏季女装连衣裙，修身显瘦", "新款夏季女装连衣裙"),
        ("ワンピース レディース 春夏", "ワンピース レディース 春夏"),
        ("반팔 티셔츠 여성용 면", "반팔 티셔츠 여성용 면"),
        ("सूती साड़ी", "सूती साड़ी"),  # a mark at the end of a word belongs to it
        ("501", "501"),
        ("4.5 cm, 1,000 pieces", "4.5 cm 1,000 pieces"),
        ("100% cotton tee.", "100% cotton tee"),
        ("Nike® Air-Max™ 90 - men's", "Nike Air-Max 90"),
        ("👗", "👗"),
        ("👨‍👩‍👧 👗", "👨‍👩‍👧 👗"),
        ("Dress 👗 ❤", "Dress"),  # signs say something only where there are no words
        ("dress Dress DRESS red", "dress red"),
        ("the of and with a", ""),
        ("- ... !?", ""),
        ("", ""),
    ],
)
def test_clauses_stop_words_and_marks_are_left_out(caption, typed):
    assert keywords(caption) == typed


@pytest.mark.parametrize(
    "caption",
    ["dress without sleeves", "robe sans manches", "Kleid ohne Futter", "vestido sin mangas", "no show socks"],
)
def test_what_says_that_something_is_missing_stays(caption):
    assert keywords(caption) == caption


def test_the_words_of_another_language_are_no_stop_words():
    assert keywords("plus size dress for women with die cut lace") == "plus size dress women die cut lace"
    assert keywords("Mode für die Frau mit Plus Size") == "Mode Frau Plus Size"


@pytest.mark.parametrize(
    ("caption", "typed"),
    [
        (" ".join(f"word{number}" for number in range(80)), " ".join(f"word{number}" for number in range(8))),
        ("裙" * 80, "裙" * 16),
        ("Nike " + "裙" * 80, "Nike"),  # no part of a word that has not the room
        ("w1 w2 w3 w4 w5 w6 裙子衣 w7", "w1 w2 w3 w4 w5 w6 裙子衣"),  # a word begun counts
        ("w1 w2 w3 w4 w5 w6 T裙子 w7", "w1 w2 w3 w4 w5 w6 T裙子"),
        ("w1 w2 w3 w4 w5 w6 裙子 w7 w8", "w1 w2 w3 w4 w5 w6 裙子 w7"),
        ("A" * 500, "A" * 500),
    ],
)
def test_at_most_eight_words_also_where_no_spaces_part_them(caption, typed):
    assert keywords(caption) == typed


def test_a_sign_is_not_parted_from_its_marks():
    letter = "\u0e01\u0e49"  # of Thai, with the mark of its tone
    found = keywords(letter * 80)
    assert found == letter * (len(found) // 2) and 8 <= len(found) <= 32


def test_values_of_columns_are_typed_in_lower_case_each_word_once():
    assert of_columns(["Slim Fit", "RED", "", "JEANS & DENIM JEANS"]) == "slim fit red jeans denim"
    assert len(of_columns([f"value{number}" for number in range(20)]).split()) == MOST_WORDS
    assert of_columns([]) == ""
