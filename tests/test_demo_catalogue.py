"""The drawn catalogue: Fashion-Gen's raw layout, varied, reproducible, and no product in both splits."""

import pickle
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
import draw_catalogue

PAI_FIELDS = {
    "product_id", "img_name", "super_cls_name", "super_cls_id", "sub_cls_name", "sub_cls_id", "captions", "input_ids",
    "token_type_ids", "attention_mask",
}  # fmt: skip


def draw(folder, train=12, valid=6):
    draw_catalogue.main([str(folder), f"--train-products={train}", f"--valid-products={valid}"])
    return folder


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("catalogue"))


def records(folder, split):
    return [pickle.loads(path.read_bytes()) for path in sorted((folder / f"full_{split}_info_PAI").glob("*.pkl"))]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_each_pickle_has_the_fields_and_its_picture(catalogue, split):
    for record in records(catalogue, split):
        assert set(record) == PAI_FIELDS
        with Image.open(catalogue / f"extracted_{split}_images" / record["img_name"]) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 64


def test_products_have_two_to_four_views_and_one_caption_for_all(catalogue):
    views = Counter(record["product_id"] for record in records(catalogue, "train"))
    assert len(views) == 12
    assert set(views.values()) <= {2, 3, 4}
    captions = {(record["product_id"], str(record["captions"])) for record in records(catalogue, "train")}
    assert len(captions) == 12


def test_no_validation_product_equals_a_training_product(catalogue):
    train, valid = ({record["product_id"] for record in records(catalogue, split)} for split in ("train", "valid"))
    assert not train & valid
    assert len(set(draw_catalogue.distinct_products(1440, 0))) == 1440
    train, valid = ({str(record["captions"]) for record in records(catalogue, split)} for split in ("train", "valid"))
    assert not train & valid


def test_the_same_seed_draws_the_same_bytes(catalogue, tmp_path):
    again = draw(tmp_path)
    files = sorted(path.relative_to(catalogue) for path in catalogue.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((catalogue / name).read_bytes() == (again / name).read_bytes() for name in files)
