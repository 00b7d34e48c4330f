"""Captions from several fields, some of them empty."""

import pytest

from clip_finetuning.catalogue.caption_template import fill_template, template_fields

TITLED = "{title}. {colour} {material}."


@pytest.mark.parametrize(
    ("values", "caption"),
    [
        (("Coat", "Black", "wool"), "Coat. Black wool."),
        (("", "Black", "wool"), "Black wool."),
        (("Coat", "", "wool"), "Coat. wool."),
        (("Coat", "Black", ""), "Coat. Black."),
        (("Coat", "", ""), "Coat."),
        (("", "", "wool"), "wool."),
        (("", "", ""), ""),
        (("Coat.", "Black!", "wool..."), "Coat. Black! wool..."),
        (("{colour}", "50%", r"\1"), r"{colour}. 50% \1."),
    ],
)
def test_empty_fields_take_their_separators_with_them(values, caption):
    assert fill_template(TITLED, dict(zip(("title", "colour", "material"), values))) == caption


@pytest.mark.parametrize(
    ("template", "values", "caption"),
    [
        ("{a} ({b}), made of {c}", "x,,z", "x, made of z"),
        ("{a} ({b} {c})", "x,,z", "x (z)"),
        ("{a} ({b} {c})", "x,y,", "x (y)"),
        ("{a} ({b} {c})", "x,,", "x"),
        ("{a}, {b}, {c}", "x,,z", "x, z"),
        ("{a}{b} {c}", "x,,z", "x z"),
        ("A photo of {a}.", ",,", ""),
        ("{{{a}}}", "x,,", "{x}"),
        ("{a}. {b}", "x,y,", "x. y"),
        ("{a}. {b}", "x (new),,", "x (new)."),
        ("{a}\n{b}", "x,y,", "x y"),
    ],
)
def test_other_separators(template, values, caption):
    assert fill_template(template, dict(zip("abc", values.split(",")))) == caption


def test_fields_are_named_in_order():
    assert template_fields("{Product Title}: {price (EUR)} {{x}}") == ["Product Title", "price (EUR)"]


@pytest.mark.parametrize("template", ["no field", "{}", "{title", "title}", "{price:.2f}", "{title!r}"])
def test_templates_that_cannot_be_filled_are_refused(template):
    with pytest.raises(ValueError, match="caption template '.*'"):
        template_fields(template)
