"""Captions that the audit calls questionable."""

import pytest

from clip_finetuning.catalogue.caption_checks import caption_findings, language_of, only_a_name


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("Dress with a print and a zip", "English"),
        ("Robe en coton avec une ceinture pour femme", "French"),
        ("Herrenhemd mit Kragen und Knopf", "German"),
        ("Camisa para hombre con cuello", "Spanish"),
        ("Gonna di cotone per donna con il logo", "Italian"),
        ("Camisa de algodão com gola para homem", "Portuguese"),
        ("Jurk met een riem van leer", "Dutch"),
        ("Koszula z kołnierzem dla mężczyzn, wykonana z bawełny", "Polish"),
        ("男士衬衫 Nike Air", "Chinese"),
        ("綿のシャツ", "Japanese"),
        ("남성 셔츠", "Korean"),
        ("Платье летнее", "Cyrillic"),
        ("قميص رجالي", "Arabic"),
        ("Soft wool hat, size μ", ""),
        ("Nike Air Max 90", ""),
        ("café crème", ""),
    ],
)
def test_the_language_of_a_caption_where_script_or_words_tell_it(caption, language):
    assert language_of(caption) == language


@pytest.mark.parametrize("caption", ["15970.jpg", "IMG_2.PNG", "SKU-00123", "7702.11", "P7", "front_view"])
def test_a_caption_that_is_a_name(caption):
    assert only_a_name(caption, "photos/front_view.jpg", "P7")


@pytest.mark.parametrize(
    "caption", ["Hat", "T-shirt", "iPhone 13", "Size 100 cotton", "front view", "a hat.jpg of mine"]
)
def test_a_caption_that_is_none(caption):
    assert not only_a_name(caption, "photos/front_view.jpg", "P7")


def test_each_caption_is_found_once():
    english = [(f"Hat number {n} with a brim and a logo", f"{n}.jpg", f"P{n}") for n in range(3)]
    odd = [("<b>Hat</b> &amp; cap", "7.jpg", "P7"), ("a < b & c <3", "8.jpg", "P8"), ("00012345", "9.jpg", "P9")]
    odd += [("Robe avec une ceinture et un logo", "5.jpg", "P5")]
    found = caption_findings([*english, *odd, *odd])
    assert [item["caption"] for item in found["markup"]] == ["<b>Hat</b> &amp; cap"]
    assert [item["caption"] for item in found["only_a_name"]] == ["00012345"]
    assert found["other_language"] == [
        {"caption": "Robe avec une ceinture et un logo", "language": "French", "most": "English"}
    ]


def test_where_no_language_can_be_told_none_is_another():
    assert caption_findings([("Hat", "1.jpg", "P1")]) == {"markup": [], "only_a_name": [], "other_language": []}
