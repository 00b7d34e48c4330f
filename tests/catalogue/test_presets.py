"""Exports with the columns that they really have, through the command, and how a preset is overruled and proposed."""

import csv
import json
import shutil

import pytest
from PIL import Image

import clip_prep
from clip_finetuning.catalogue.presets import PRESETS, fitting

# The header of each export as its program writes it, and a row of it.
SHOPIFY = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,"
    "Variant Price,Image Src,Image Position,Image Alt Text,Gift Card,Variant Image,Status"
)
SHOPIFY_NEW = (
    "Title,URL handle,Description,Vendor,Product category,Type,Tags,Published on online store,Status,SKU,Barcode,"
    "Option1 name,Option1 value,Price,Product image URL,Image position,Image alt text,Variant image URL,Gift card"
)
WOOCOMMERCE = (
    "ID,Type,SKU,Name,Published,Is featured?,Visibility in catalog,Short description,Description,In stock?,Stock,"
    "Sale price,Regular price,Categories,Tags,Shipping class,Images,Download limit,Parent,Grouped products,Position"
)
GOOGLE = "id,title,description,link,image_link,additional_image_link,availability,price,brand,gtin,condition,"
GOOGLE += "google_product_category,product_type,item_group_id,color,size,gender,age_group"
KAGGLE = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
H_AND_M = (
    "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,graphical_appearance_no,"
    "graphical_appearance_name,colour_group_code,colour_group_name,perceived_colour_value_id,perceived_colour_value_name,"
    "perceived_colour_master_id,perceived_colour_master_name,department_no,department_name,index_code,index_name,"
    "index_group_no,index_group_name,section_no,section_name,garment_group_no,garment_group_name,detail_desc"
)
EXPORTS = {
    "shopify": (
        SHOPIFY,
        {"Handle": "hat", "Title": "Hat", "Body (HTML)": "Of wool.", "Product Category": "Apparel", "Type": "Hats"}
        | {"Image Src": "1.jpg", "Variant Image": "2.jpg"},
        (["1.jpg"], "Hat. Of wool.", "hat", "Apparel", "Hats"),
    ),
    "shopify, newer": (
        SHOPIFY_NEW,
        {"URL handle": "hat", "Title": "Hat", "Description": "Of wool.", "Product category": "Apparel", "Type": "Hats"}
        | {"Product image URL": "1.jpg"},
        (["1.jpg"], "Hat. Of wool.", "hat", "Apparel", "Hats"),
    ),
    "woocommerce": (
        WOOCOMMERCE,
        {"ID": "44", "Name": "Hat", "Short description": "Warm.", "Description": "Of wool.", "Categories": "Hats"}
        | {"Images": "1.jpg, 2.jpg"},
        (["1.jpg", "2.jpg"], "Hat. Warm. Of wool.", "44", "Hats", None),
    ),
    "google-merchant": (
        GOOGLE,
        {
            "id": "7",
            "title": "Hat",
            "description": "Of wool",
            "image_link": "1.jpg",
            "additional_image_link": "2.jpg,3.jpg",
        }
        | {"google_product_category": "173", "product_type": "Hats"},
        (["1.jpg", "2.jpg", "3.jpg"], "Hat. Of wool", "7", "173", "Hats"),
    ),
    "google-merchant, with spaces": (
        GOOGLE.replace("_", " "),
        {"id": "7", "title": "Hat", "description": "Of wool", "image link": "1.jpg", "item group id": "G"},
        (["1.jpg"], "Hat. Of wool", "G", "", None),
    ),
    "kaggle-fashion": (
        KAGGLE,
        {"id": "1", "masterCategory": "Accessories", "articleType": "Caps", "productDisplayName": "Nike Cap"},
        (["1.jpg"], "Nike Cap", "1", "Accessories", "Caps"),
    ),
    "h-and-m": (
        H_AND_M,
        {"article_id": "108775015", "product_code": "108775", "prod_name": "Strap top", "colour_group_name": "Black"}
        | {"product_type_name": "Vest top", "product_group_name": "Upper body", "detail_desc": "Jersey top."},
        (["010/0108775015.jpg"], "Strap top. Black Vest top. Jersey top.", "108775", "Upper body", "Vest top"),
    ),
    "huggingface": (
        "file_name,text",
        {"file_name": "1.jpg", "text": "A hat"},
        (["1.jpg"], "A hat", None, "", None),
    ),
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The current folder, with pictures in images/."""
    monkeypatch.chdir(tmp_path)
    for name in ("1.jpg", "2.jpg", "3.jpg", "010/0108775015.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return tmp_path


def write(path, header, *rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header.split(","), restval="")
        writer.writeheader()
        writer.writerows(rows)


def prepared(*arguments):
    clip_prep.main(["--table", "t.csv", *arguments])
    with open("clip_dataset_train.json", encoding="utf-8") as file:
        return json.load(file)


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_needs_its_preset_alone(shop, export):
    header, row, (images, caption, product, category, subcategory) = EXPORTS[export]
    write("t.csv", header, row)
    preset = export.split(",")[0]
    entries = prepared("--preset", preset, *([] if preset in ("kaggle-fashion", "h-and-m") else ["--images", "images"]))
    assert [entry["image_path"] for entry in entries] == [f"images/{name}" for name in images]
    for entry in entries:
        assert (entry["caption"], entry["category"], entry.get("subcategory")) == (caption, category, subcategory)
        assert product is None or entry["product_id"] == product
    assert fitting(header.split(",")) == (preset if preset != "huggingface" else None)  # says nothing of products


def test_every_preset_is_tried():
    assert {name.split(",")[0] for name in EXPORTS} == set(PRESETS)


def test_a_column_named_by_flag_overrules_the_preset(shop):
    header, row, _ = EXPORTS["shopify"]
    write("t.csv", header, row | {"Vendor": "Me", "Image Alt Text": "A hat on a table"})
    images = ("--preset", "shopify", "--images", "images")
    (entry,) = prepared(*images, "--image-column", "Variant Image", "--caption-column", "Image Alt Text")
    assert (entry["image_name"], entry["caption"], entry["product_id"]) == ("2.jpg", "A hat on a table", "hat")
    entries = prepared(*images, "--product-column", "Vendor", "--category-column", "Status")
    assert [(entry["product_id"], entry["category"]) for entry in entries] == [("Me", "")]
    (entry,) = prepared(*images, "--image-template", "{Image Src}")
    assert entry["image_name"] == "1.jpg"


def test_a_kaggle_table_elsewhere(shop):
    """Pictures beside the table, or in a folder that is named."""
    header, row, _ = EXPORTS["kaggle-fashion"]
    write("t.csv", header, row)
    shutil.move("images", "small")
    assert prepared("--preset", "kaggle-fashion", "--images", "small")[0]["image_path"] == "small/1.jpg"
    assert prepared("--preset", "kaggle-fashion")[0]["image_path"] == "./small/1.jpg".removeprefix("./")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "woocommerce"], "needs the columns Images, Name.*its columns fit --preset shopify"),
        (["--preset", "shopify", "--caption-column", "Name"], "needs the columns Name, which the table has not"),
        (
            ["--image-column", "photo", "--caption-column", "Title"],
            "no column photo; it has Handle.*--preset shopify fits",
        ),
        ([], "needs --image-column; its columns are Handle.*--preset shopify fits"),
    ],
)
def test_the_preset_that_fits_is_proposed(shop, arguments, words):
    header, row, _ = EXPORTS["shopify"]
    write("t.csv", header, row)
    with pytest.raises(ValueError, match=words):
        prepared(*arguments)


def test_columns_that_a_preset_can_do_without_are_said(shop, capsys):
    write("t.csv", "Handle,Title,Body (HTML),Image Src", {"Handle": "hat", "Title": "Hat", "Image Src": "1.jpg"})
    (entry,) = prepared("--preset", "shopify", "--images", "images")
    assert (entry["caption"], entry["category"]) == ("Hat.", "")
    assert "--preset shopify is used without Product Category, Type, which the table has not" in (
        capsys.readouterr().out
    )
