"""The official Fashion-Gen files: every field they have, missing ones, and damage."""

import sys

import numpy as np
import pytest

from clip_finetuning.catalogue import hdf5 as catalogue_hdf5
from clip_finetuning.catalogue.hdf5 import open_hdf5, split_of_file
from clip_finetuning.catalogue.rows import Row, Skipped
from clip_finetuning.pictures.decode import load_picture, read_source

h5py = pytest.importorskip("h5py")
TEXTS = {  # field -> length of its byte strings
    "input_name": 120,
    "input_description": 500,
    "input_category": 24,
    "input_subcategory": 30,
    "input_pose": 10,
    "input_gender": 8,
    "input_brand": 40,
    "input_season": 10,
    "input_composition": 200,
    "input_department": 20,
    "input_concat_description": 700,
}


def write_fashiongen(path, products, leave_out=(), size=256):
    """A file with exactly the official fields. `products`: (id, views, {field: text}) in order -> the pictures."""
    rows = [(product_id, view, texts) for product_id, views, texts in products for view in range(views)]
    count = len(rows)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        fields = {"input_image": images}
        for field, length in TEXTS.items():
            texts = [row[2].get(field, f"{field[6:]} of {row[0]}").encode("latin-1") for row in rows]
            fields[field] = np.array(texts, dtype=f"S{length}").reshape(count, 1)
        fields["input_productID"] = np.array([row[0] for row in rows], dtype=np.int32).reshape(count, 1)
        fields["input_msrpUSD"] = np.full((count, 1), 120, dtype=np.float32)
        fields["index"] = np.arange(count).reshape(count, 1)
        fields["index_2"] = np.arange(count)
        for name, values in fields.items():
            if name not in leave_out:
                file[name] = values
    return images


@pytest.fixture
def official(tmp_path):
    """Two products of two and one view, one without a description -> (path, pictures)."""
    path = tmp_path / "fashiongen_256_256_train.h5"
    products = [
        (4711, 2, {"input_description": "Veste en laine d’été".replace("’", "'"), "input_name": "Blazer"}),
        (12, 1, {"input_description": "Knit\nsweater.", "input_category": "SWEATERS", "input_subcategory": ""}),
        (13, 1, {"input_description": " "}),
    ]
    return path, write_fashiongen(path, products)


def test_rows_of_the_official_fields(official):
    path, images = official
    source = open_hdf5(path)
    rows = list(source.rows)
    assert (source.name, source.total) == (path.as_posix(), 4)
    caption = ("Veste en laine d'été",)
    assert rows[0] == Row(f"{path}#0", "4711_1.png", caption, "category of 4711", "subcategory of 4711", "4711")
    assert rows[1] == Row(f"{path}#1", "4711_2.png", caption, "category of 4711", "subcategory of 4711", "4711")
    assert rows[2] == Row(f"{path}#2", "12_1.png", ("Knit sweater.",), "SWEATERS", "", "12")
    assert rows[3] == Skipped(f"{path}#3", "blank caption")
    for row, image in zip(rows, images):
        if isinstance(row, Row):
            assert np.array_equal(np.asarray(load_picture(read_source(row.image_path))), image)


@pytest.mark.parametrize("fields", [["name", "description"], ["input_name", "input_description"]])
def test_captions_of_several_fields(official, fields):
    rows = list(open_hdf5(official[0], fields).rows)
    assert rows[0].captions == ("Blazer. Veste en laine d'été",)
    assert rows[2].captions == ("name of 12. Knit sweater.",)
    assert rows[3].captions == ("name of 13.",)


def test_text_is_latin_1_even_where_it_looks_like_utf_8(tmp_path):
    path = tmp_path / "train.h5"
    write_fashiongen(path, [(1, 1, {"input_description": "Ã© ÿ £"})], size=2)
    assert next(open_hdf5(path).rows).captions == ("Ã© ÿ £",)


def test_text_of_variable_length_is_taken_too(tmp_path):
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["input_image"] = np.zeros((2, 4, 4, 3), np.uint8)
        file["input_description"] = ["Été", "Hat"]
    assert [row.captions for row in open_hdf5(path).rows] == [("Été",), ("Hat",)]


def test_only_pictures_and_descriptions_are_needed(tmp_path):
    path = tmp_path / "valid.hdf5"
    same = {"input_description": "The same"}
    write_fashiongen(
        path,
        [(1, 2, same), (2, 1, same), (3, 1, {})],
        leave_out={"input_productID", "input_category", "input_subcategory", "input_name", "index"},
        size=2,
    )
    rows = list(open_hdf5(path).rows)
    assert len({row.product_id for row in rows[:3]}) == 1  # equal captions are one product
    assert rows[0].product_id != rows[3].product_id
    assert [row.image_name.rsplit("_")[-1] for row in rows] == ["1.png", "2.png", "3.png", "1.png"]
    assert {(row.category, row.subcategory) for row in rows} == {("", "")}


def test_many_blocks_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_hdf5, "BLOCK", 3)
    path = tmp_path / "train.h5"
    write_fashiongen(path, [(number, 1, {}) for number in range(8)], size=2)
    assert [row.product_id for row in open_hdf5(path).rows] == [str(number) for number in range(8)]


@pytest.mark.parametrize("missing", ["input_image", "input_description"])
def test_a_missing_field_is_named_with_those_there_are(official, tmp_path, missing):
    path = tmp_path / "cut.h5"
    write_fashiongen(path, [(1, 1, {})], leave_out={missing}, size=2)
    with pytest.raises(ValueError, match=f"no field {missing}; it has index, .*input_name"):
        open_hdf5(path)
    with pytest.raises(ValueError, match="no field colour; it has"):
        open_hdf5(official[0], ["name", "colour"])


def test_pictures_of_another_shape_and_uneven_fields_are_refused(tmp_path):
    for images, captions, words in [
        (np.zeros((2, 3, 4, 4), np.uint8), 2, "must be uint8 RGB"),
        (np.zeros((2, 4, 4, 3), np.float32), 2, "must be uint8 RGB"),
        (np.zeros((2, 4, 4, 3), np.uint8), 3, "input_description is .3, 1.; it must have 2 rows"),
    ]:
        with h5py.File(tmp_path / "train.h5", "w") as file:
            file["input_image"], file["input_description"] = images, np.full((captions, 1), b"x")
        with pytest.raises(ValueError, match=words):
            open_hdf5(tmp_path / "train.h5")


def test_damaged_files_are_one_error_that_names_them(official, tmp_path):
    path, _ = official
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:5000])
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "empty.h5").touch()
    for name in ("cut.h5", "text.h5", "empty.h5"):
        with pytest.raises(ValueError, match=f"{name} is not a readable HDF5 file"):
            open_hdf5(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.h5 does not exist"):
        open_hdf5(tmp_path / "absent.h5")
    path.rename(tmp_path / "train.data")
    with pytest.raises(ValueError, match="must be named"):
        open_hdf5(tmp_path / "train.data")


def test_every_changed_byte_is_read_or_one_error(tmp_path):
    path = tmp_path / "train.h5"
    write_fashiongen(path, [(1, 1, {})], leave_out=set(TEXTS) - {"input_description"}, size=2)
    data, random = path.read_bytes(), np.random.default_rng(0)
    damaged = 0
    for position in random.integers(0, len(data), 300):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x5A]) + data[position + 1 :])
        try:
            list(open_hdf5(path).rows)
        except ValueError as error:
            assert "train.h5" in str(error)
            damaged += 1
    assert damaged > 10


def test_without_h5py_the_error_says_what_to_install(official, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match="pip install h5py"):
        open_hdf5(official[0])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("fashiongen_256_256_train.h5", "train"),
        ("fashiongen_256_256_validation.h5", "valid"),
        ("/train/mine.h5", None),
    ],
)
def test_the_name_of_a_file_tells_its_split(name, split):
    assert split_of_file(name) == split
