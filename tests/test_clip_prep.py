"""Raw catalogue -> JSON mapping, through the functions and the command line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip_prep
from tests.helpers import ROOT


def add_pickle(folder, product, view, split="train", picture=True, **changes):
    """One picture in the raw PAI layout; `None` in `changes` leaves a key out."""
    pickles, images = folder / f"full_{split}_info_PAI", folder / f"extracted_{split}_images"
    pickles.mkdir(parents=True, exist_ok=True)
    images.mkdir(exist_ok=True)
    name = f"{product}_{view}.png"
    record = {
        "product_id": str(product),
        "img_name": name,
        "super_cls_name": "SWEATERS",
        "super_cls_id": 3,
        "sub_cls_name": "CREWNECKS",
        "sub_cls_id": 5,
        "captions": f"Knit sweater number {product}.",
        "input_ids": torch.tensor([101, 102]),
        "token_type_ids": np.zeros(2),
        "attention_mask": [1, 1],
    } | changes
    record = {key: value for key, value in record.items() if value is not None}
    (pickles / f"{product}_{view}.pkl").write_bytes(pickle.dumps(record))
    if picture:
        Image.new("RGB", (4, 4), "red").save(images / name)


@pytest.fixture
def catalogue(tmp_path):
    """Three train products of two views, one valid product of three, in `raw/`."""
    folder = tmp_path / "raw"
    for product in (11, 9, 100):
        for view in (1, 2):
            add_pickle(folder, product, view)
    for view in (1, 2, 3):
        add_pickle(folder, 7, view, "valid")
    return folder


def run(folder, *arguments, **environment):
    """The command in `folder`."""
    environment = {**os.environ, **environment}
    command = [sys.executable, ROOT / "clip_prep.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def assert_one_line_error(result, *words):
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("clip_prep.py: error: ")
    for word in words:
        assert word in result.stderr


def test_the_documented_command_makes_the_train_json(catalogue):
    result = run(catalogue)
    assert result.returncode == 0, result.stderr
    entries = read(catalogue / "clip_dataset_train.json")
    assert [e["image_name"] for e in entries] == [
        "100_1.png",
        "100_2.png",
        "11_1.png",
        "11_2.png",
        "9_1.png",
        "9_2.png",
    ]
    assert entries[0] == {
        "image_path": "extracted_train_images/100_1.png",
        "image_name": "100_1.png",
        "caption": "Knit sweater number 100.",
        "category": "SWEATERS",
        "product_id": "100",
        "subcategory": "CREWNECKS",
    }
    assert [path.name for path in catalogue.glob("*.json*")] == ["clip_dataset_train.json"]


def test_the_summary_says_what_the_mapping_holds(catalogue):
    add_pickle(catalogue, 12, 1, captions="One two three four five")
    text = run(catalogue).stdout
    assert "7 images, 4 products, 1 categories" in text
    assert "views per product: 1 (1 products), 2 (3 products)" in text
    assert "caption length: 4 to 5 words, median 4" in text
    assert "skipped" not in text


def test_the_documented_function(catalogue, monkeypatch):
    monkeypatch.chdir(catalogue)
    summary = clip_prep.create_clip_dataset("valid", "clip_dataset_valid.json")
    assert (summary.images, dict(summary.views)) == (3, {"7": 3})
    assert read("clip_dataset_valid.json")[2]["image_path"] == "extracted_valid_images/7_3.png"


def test_the_function_reads_what_a_notebook_assigned(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_prep.settings, "DATA_DIR", str(catalogue))
    assert clip_prep.create_clip_dataset("valid", tmp_path / "valid.json").images == 3
    monkeypatch.setattr(clip_prep.settings, "DATA_DIR", None)
    with pytest.raises(ValueError, match="DATA_DIR=None is not allowed: it takes text"):
        clip_prep.create_clip_dataset("valid", tmp_path / "valid.json")


def test_the_function_takes_a_data_folder(catalogue, tmp_path):
    clip_prep.create_clip_dataset("train", tmp_path / "new" / "train.json", data_dir=catalogue)
    assert all(Path(e["image_path"]).is_file() for e in read(tmp_path / "new" / "train.json"))


def test_paths_are_those_of_the_callers_folder(catalogue, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for data_dir in ("../raw", "../raw/", str(catalogue)):
        assert run(elsewhere, "--data-dir", data_dir).returncode == 0
        (path, *_) = [e["image_path"] for e in read(elsewhere / "clip_dataset_train.json")]
        assert path == Path(data_dir, "extracted_train_images/100_1.png").as_posix()
        assert (elsewhere / path).is_file()


def test_all_writes_both_splits_and_the_output_may_name_them(catalogue, tmp_path):
    assert run(catalogue, "--split", "all").returncode == 0
    assert len(read(catalogue / "clip_dataset_train.json")) == 6
    assert len(read(catalogue / "clip_dataset_valid.json")) == 3
    result = run(tmp_path, "--split", "all", "--data-dir", "raw", "--output", "made/my_{split}.json")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"my_train.json", "my_valid.json"}


def test_the_data_folder_is_a_knob(catalogue, tmp_path):
    assert run(tmp_path, "--split", "valid", "--output", "v.json", CLIP_DATA_DIR="raw").returncode == 0
    assert len(read(tmp_path / "v.json")) == 3


def test_the_same_catalogue_gives_the_same_bytes(catalogue, tmp_path):
    """Whatever the order of the folder, the number of processes and the hash seed."""
    other = tmp_path / "other" / "raw"
    for path in sorted(catalogue.rglob("*.*"), reverse=True):
        (other / path.relative_to(catalogue)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / path.relative_to(catalogue))
    run(catalogue.parent, "--data-dir", "raw", PYTHONHASHSEED="1")
    run(other.parent, "--data-dir", "raw", PYTHONHASHSEED="2", LC_ALL="C", PYTHONUTF8="0")
    first, second = (folder / "clip_dataset_train.json" for folder in (catalogue.parent, other.parent))
    assert first.read_bytes() == second.read_bytes()


def test_several_processes_give_the_same_bytes(tmp_path, monkeypatch):
    for product in range(300):
        add_pickle(tmp_path, product, 1, picture=product % 7 > 0)
    monkeypatch.setattr("clip_finetuning.catalogue.pai.PARALLEL_FROM", 100)
    alone = clip_prep.create_clip_dataset("train", tmp_path / "alone.json", tmp_path)
    together = clip_prep.create_clip_dataset("train", tmp_path / "together.json", tmp_path, num_workers=2)
    assert alone.images == together.images == 257
    assert (tmp_path / "alone.json").read_bytes() == (tmp_path / "together.json").read_bytes()


def test_captions_become_one_line_and_keep_their_letters(catalogue):
    add_pickle(catalogue, 1, 1, captions="  Long\tsleeve\r\nknit\u2028sweater \x00 in « navy » 👩\u200d🎨 ")
    add_pickle(catalogue, 1, 2, captions="Broken \ud83d half")
    clip_prep.create_clip_dataset("train", catalogue / "t.json", catalogue)
    captions = [e["caption"] for e in read(catalogue / "t.json")]
    assert "Long sleeve knit sweater in « navy » 👩\u200d🎨" in captions
    assert "Broken half" in captions


def test_several_captions_are_kept_beside_the_first(catalogue):
    add_pickle(catalogue, 1, 1, captions=["", "First wording", "Second\nwording", "First  wording"])
    add_pickle(catalogue, 1, 2, captions=["Only one"])
    clip_prep.create_clip_dataset("train", catalogue / "t.json", catalogue)
    several, one = [e for e in read(catalogue / "t.json") if e["product_id"] == "1"]
    assert (several["caption"], several["captions"]) == ("First wording", ["First wording", "Second wording"])
    assert one["caption"] == "Only one"
    assert "captions" not in one


def test_every_field_is_text(catalogue):
    add_pickle(catalogue, 1, 1, product_id=1, super_cls_name=b"HATS", sub_cls_name=None)
    add_pickle(catalogue, 1, 2, product_id=1.0, super_cls_name=torch.tensor(1), sub_cls_name="")
    clip_prep.create_clip_dataset("train", catalogue / "t.json", catalogue)
    first, second = [e for e in read(catalogue / "t.json") if e["product_id"] == "1"]
    assert (first["category"], second["category"]) == ("HATS", "")
    assert "subcategory" not in first
    assert "subcategory" not in second


BAD_ROWS = {
    "missing image": {"picture": False},
    "blank caption": {"captions": " \n "},
    "missing key captions": {"captions": None},
    "missing key product_id": {"product_id": None},
    "blank product_id": {"product_id": torch.tensor(3)},
    "no image name": {"img_name": np.zeros(3)},
    "image outside its folder (--allow-outside takes it)": {"img_name": "../../secret.png"},
}


def test_bad_rows_are_counted_by_reason_with_a_few_examples(catalogue):
    Image.new("RGB", (4, 4)).save(catalogue.parent / "secret.png")
    for number, changes in enumerate(BAD_ROWS.values()):
        add_pickle(catalogue, 500 + number, 1, **changes)
    for number in range(5):
        (catalogue / "full_train_info_PAI" / f"8{number}_1.pkl").write_bytes(b"\x80\x04\x95 cut")
    (catalogue / "full_train_info_PAI" / "90_1.pkl").write_bytes(pickle.dumps(["a list"]))
    (catalogue / "full_train_info_PAI" / "91_1.pkl").mkdir()
    result = run(catalogue)
    assert result.returncode == 0, result.stderr
    assert len(read(catalogue / "clip_dataset_train.json")) == 6
    for number, reason in enumerate(BAD_ROWS):
        assert f"skipped 1: {reason} ({500 + number}_1.pkl)" in result.stdout
    assert "skipped 6: unreadable pickle (80_1.pkl, 81_1.pkl, 82_1.pkl, ...)" in result.stdout
    assert "skipped 1: pickle without a record (90_1.pkl)" in result.stdout


@pytest.mark.parametrize("way", ["absolute", "link"])
def test_pictures_elsewhere_are_taken_only_if_allowed(catalogue, tmp_path, way):
    target = tmp_path / "elsewhere.png"
    Image.new("RGB", (4, 4)).save(target)
    if way == "link":
        add_pickle(catalogue, 1, 1, picture=False)
        (catalogue / "extracted_train_images" / "1_1.png").symlink_to(target)
    else:
        add_pickle(catalogue, 1, 1, img_name=str(target))
    assert "skipped 1: image outside its folder" in run(catalogue).stdout
    assert "7 images" in run(catalogue, "--allow-outside").stdout


def test_the_image_folder_itself_may_be_a_link(catalogue, tmp_path):
    shutil.move(catalogue / "extracted_train_images", tmp_path / "on another disk")
    (catalogue / "extracted_train_images").symlink_to(tmp_path / "on another disk")
    assert "6 images" in run(catalogue).stdout


def test_a_pickle_that_would_run_code_does_not(catalogue):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(catalogue / "made"),)

    add_pickle(catalogue, 1, 1, input_ids=Code())
    assert "7 images" in run(catalogue).stdout
    assert not (catalogue / "made").exists()


def test_nothing_usable_is_one_line_and_keeps_the_old_file(catalogue):
    assert run(catalogue).returncode == 0
    before = (catalogue / "clip_dataset_train.json").read_bytes()
    for path in (catalogue / "extracted_train_images").iterdir():
        path.unlink()
    assert_one_line_error(run(catalogue), "no usable row", "6 missing image")
    assert (catalogue / "clip_dataset_train.json").read_bytes() == before
    assert not list(catalogue.glob(".*partial"))


@pytest.mark.parametrize("folder", ["full_train_info_PAI", "extracted_train_images"])
def test_a_missing_folder_is_one_line_that_names_it(catalogue, folder):
    shutil.rmtree(catalogue / folder)
    assert_one_line_error(run(catalogue), folder, "--data-dir")


def test_an_empty_folder_is_one_line(catalogue):
    for path in (catalogue / "full_valid_info_PAI").iterdir():
        path.unlink()
    result = run(catalogue, "--split", "all")
    assert_one_line_error(result, "full_valid_info_PAI", ".pkl")
    assert not list(catalogue.glob("*.json"))  # found before the hours of the first split


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "test"], ["--split", "test"]),
        (["--split", "all", "--output", "one.json"], ["--output one.json", "{split}"]),
        (["--output", "."], ["--output .", "folder"]),
    ],
)
def test_wrong_arguments_are_one_line(catalogue, arguments, words):
    assert_one_line_error(run(catalogue, *arguments), *words)


@pytest.fixture
def fashiongen(tmp_path):
    """`fashiongen_256_256_validation.h5` of three rows, the last without a description."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "fashiongen_256_256_validation.h5"
    with h5py.File(path, "w") as file:
        file["input_image"] = np.zeros((3, 4, 4, 3), np.uint8)
        file["input_productID"] = np.array([[7], [7], [8]], np.int32)
        file["input_name"] = np.array([[b"Caf\xe9 coat"], [b"Caf\xe9 coat"], [b"Hat"]])
        file["input_description"] = np.array([[b"Of wool."], [b"Of wool."], [b""]])
        file["input_category"] = np.full((3, 1), b"COATS")
    return path


def test_hdf5_to_json(fashiongen):
    result = run(fashiongen.parent, "--hdf5", fashiongen.name)
    assert result.returncode == 0, result.stderr
    assert "2 images, 1 products" in result.stdout
    assert f"skipped 1: blank caption ({fashiongen.name}#2)" in result.stdout
    assert read(fashiongen.parent / "clip_dataset_valid.json")[1] == {
        "image_path": "fashiongen_256_256_validation.h5#1",
        "image_name": "7_2.png",
        "caption": "Of wool.",
        "category": "COATS",
        "product_id": "7",
    }


def test_hdf5_with_its_own_split_and_caption(fashiongen):
    fashiongen.rename(fashiongen.parent / "mine.h5")
    assert_one_line_error(run(fashiongen.parent, "--hdf5", "mine.h5"), "--hdf5 mine.h5", "--split train")
    result = run(fashiongen.parent, "--hdf5", "mine.h5", "--split", "train", "--caption-fields", "name, description")
    assert result.returncode == 0, result.stderr
    entries = read(fashiongen.parent / "clip_dataset_train.json")
    assert [e["caption"] for e in entries] == ["Café coat. Of wool.", "Café coat. Of wool.", "Hat."]


def test_damaged_hdf5_is_one_line(fashiongen):
    fashiongen.write_bytes(fashiongen.read_bytes()[:100])
    assert_one_line_error(run(fashiongen.parent, "--hdf5", fashiongen.name), fashiongen.name, "not a readable HDF5")
    assert_one_line_error(run(fashiongen.parent, "--hdf5", "absent_train.h5"), "absent_train.h5 does not exist")
    assert_one_line_error(run(fashiongen.parent, "--caption-fields", "name"), "--caption-fields belongs to --hdf5")


@pytest.fixture
def shop(tmp_path):
    """products.csv of twenty products with two pictures each, in photos/."""
    rows = ["sku,photo,title,colour,material,kind"]
    (tmp_path / "photos").mkdir()
    for number in range(40):
        rows.append(f"S{number // 2},{number}.jpg,Coat {number // 2},{'red' * (number % 4 > 1)},wool,COATS")
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{number}.jpg")
    (tmp_path / "products.csv").write_text("\n".join(rows))
    return tmp_path


TABLE = ["--table", "products.csv", "--images", "photos", "--image-column", "photo", "--product-column", "sku"]
TEMPLATE = ["--caption-template", "{title}. {colour} {material}."]


def test_a_table_split_by_product(shop):
    result = run(shop, *TABLE, *TEMPLATE, "--category-column", "kind", "--valid-fraction", "0.3")
    assert result.returncode == 0, result.stderr
    train, valid = (read(shop / f"clip_dataset_{split}.json") for split in ("train", "valid"))
    assert len(train) + len(valid) == 40
    assert not {e["product_id"] for e in train} & {e["product_id"] for e in valid}
    entries = sorted(train + valid, key=lambda e: int(e["image_name"][:-4]))
    assert [entries[n]["caption"] for n in (0, 2)] == ["Coat 0. wool.", "Coat 1. red wool."]
    assert entries[3] == {
        "image_path": "photos/3.jpg",
        "image_name": "3.jpg",
        "caption": "Coat 1. red wool.",
        "category": "COATS",
        "product_id": "S1",
    }
    before = (shop / "clip_dataset_valid.json").read_bytes()
    assert (
        run(shop, *TABLE, *TEMPLATE, "--category-column=kind", "--valid-fraction=0.3", "--split=valid").returncode == 0
    )
    assert (shop / "clip_dataset_valid.json").read_bytes() == before


def test_a_table_that_is_one_split(shop):
    result = run(shop, *TABLE, "--caption-column", "title", "material", "--split", "valid")
    assert "40 images, 20 products" in result.stdout
    assert read(shop / "clip_dataset_valid.json")[0]["captions"] == ["Coat 0", "wool"]
    assert not (shop / "clip_dataset_train.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*TABLE, "--caption-column", "name"], ["no column name", "sku, photo, title"]),
        ([*TABLE], ["--caption-column", "sku, photo, title"]),
        ([*TABLE, "--caption-template", "{title"], ["caption template '{title'"]),
        ([*TABLE, *TEMPLATE, "--caption-column", "title"], ["--caption-column", "--caption-template"]),
        ([*TABLE, *TEMPLATE, "--split", "all"], ["--split all", "--valid-fraction"]),
        ([*TABLE, *TEMPLATE, "--valid-fraction", "1.5"], ["--valid-fraction 1.5", "between 0 and 1"]),
        ([*TABLE, *TEMPLATE, "--hdf5", "a.h5"], ["--hdf5", "--table"]),
        (["--image-column", "photo"], ["--image-column belongs to --table"]),
        (["--table", "absent.csv"], ["absent.csv does not exist"]),
    ],
)
def test_wrong_arguments_of_a_table_are_one_line(shop, arguments, words):
    assert_one_line_error(run(shop, *arguments), *words)
    assert not list(shop.glob("*.json"))
