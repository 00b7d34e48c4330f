"""Rows of values as catalogues hold them, and pictures where catalogues say they are."""

import pytest

from clip_finetuning.catalogue.rows import Row, RowError, caption_id, is_caption_id, make_row, picture_in_folder


def row(captions="A hat", product_id="1", category=None):
    return make_row("a/1.png", "1.png", captions, category, None, product_id)


def test_a_row_keeps_the_distinct_wordings():
    assert row(["A hat", "", None, "A hat ", "Hat"]) == Row("a/1.png", "1.png", ("A hat", "Hat"), "", "", "1")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"captions": " \n"}, "blank caption"),
        ({"captions": []}, "blank caption"),
        ({"captions": None}, "blank caption"),
        ({"product_id": ""}, "blank product_id"),
        ({"product_id": [1]}, "blank product_id"),
    ],
)
def test_a_row_without_caption_or_product_is_refused(values, reason):
    with pytest.raises(RowError, match=reason):
        row(**values)


def test_ids_of_captions_are_stable_and_distinct():
    assert caption_id("A hat") == "caption-bb62aebcc4b90948"
    assert caption_id("A hat.") != caption_id("A hat")
    assert caption_id("") == ""
    assert is_caption_id(caption_id("A hat"))
    assert not any(map(is_caption_id, ("", "A hat", "caption-7", "P1")))


@pytest.fixture
def images(tmp_path):
    """`images/in/1.png`, `secret.png` beside the folder, and links in both directions."""
    (tmp_path / "images" / "in").mkdir(parents=True)
    (tmp_path / "images" / "in" / "1.png").touch()
    (tmp_path / "images2").mkdir()
    for path in ("secret.png", "images2/1.png"):
        (tmp_path / path).touch()
    (tmp_path / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "images" / "within.png").symlink_to("in/1.png")
    (tmp_path / "images" / "circle.png").symlink_to("circle.png")
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["in/1.png", "./in/1.png", "in/../in/1.png", "within.png"])
def test_pictures_in_the_folder(images, name):
    path, file_name = picture_in_folder(images, name)
    assert path.startswith(f"{images.as_posix()}/")
    assert file_name == name.rsplit("/")[-1]


@pytest.mark.parametrize("name", ["../secret.png", "out.png", "up/secret.png", "{}/secret.png", "../images2/1.png"])
def test_pictures_outside_it_are_refused_unless_allowed(images, name):
    name = name.format(images.parent)
    with pytest.raises(RowError, match="outside its folder"):
        picture_in_folder(images, name)
    assert picture_in_folder(images, name, allow_outside=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "no image name"), ("in", "missing image"), ("2.png", "missing image"), ("x" * 5000, "missing image"),
     ("circle.png", "missing image"), ("in/1.png/2.png", "missing image")],
)  # fmt: skip
def test_what_is_no_picture(images, name, reason):
    with pytest.raises(RowError, match=reason):
        picture_in_folder(images, name)
