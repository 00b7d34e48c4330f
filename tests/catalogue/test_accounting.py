"""Whatever a table's cells say of pictures, each row is in the JSON or counted by its reason, through the command."""

import json
import re

import pytest
from PIL import Image

import clip_prep
from clip_finetuning.catalogue.table_rows import CONTINUES


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The current folder, with 0.jpg to 9.jpg in photos/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{number}.jpg")
    return tmp_path


def write_records(shop, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (shop / "t.jsonl").write_text(text, encoding="utf-8")


def prepare(capsys, *arguments):
    """(entries by split, what is printed, number of rows skipped by reason)."""
    clip_prep.main(["--table", "t.jsonl", *arguments])
    out = capsys.readouterr().out
    skipped = {reason: int(count.replace(",", "")) for count, reason in re.findall(r"skipped ([\d,]+): (.+) \(", out)}
    return out, skipped


def entries(shop, name="clip_dataset_train.json"):
    return json.loads((shop / name).read_text(encoding="utf-8"))


COMMAND = ("--images", "photos", "--image-column", "photo", "--caption-column", "text", "--product-column", "sku")
CELLS = {
    "plain": ("0.jpg", 1, {}),
    "without ending": ("1", 1, {}),
    "folder and backslash": ("photos\\2.JPG", 1, {}),
    "list": (["3.jpg", "4.jpg"], 2, {}),
    "text of several": ("5.jpg, 6.jpg", 2, {}),
    "JSON in text": ('["7.jpg", "8.jpg"]', 2, {}),
    "one of several": ("9.jpg|no.jpg", 1, {"missing image": 1}),
    "none of several": ("no.jpg|nor.jpg", 0, {"missing image": 1}),
    "missing": ("no.jpg", 0, {"missing image": 1}),
    "blank": ("", 0, {"no image name": 1}),
    "no text": (None, 0, {"no image name": 1}),
    "object": ({"a": 1}, 0, {"no image name": 1}),
    "URL": ("https://a.example/1.jpg", 0, {"image is a URL (--download DIR fetches it)": 1}),
    "outside": ("../t.jsonl", 0, {"image outside its folder (--allow-outside takes it)": 1}),
    "nested": ([[[[[[["0.jpg"]]]]]]], 0, {"no image name": 1}),
}


@pytest.mark.parametrize("kind", CELLS)
def test_each_kind_of_cell(shop, capsys, kind):
    cell, views, reasons = CELLS[kind]
    write_records(shop, [{"sku": "A", "photo": "0.jpg", "text": "x"}, {"sku": "B", "photo": cell, "text": "y"}])
    out, skipped = prepare(capsys, *COMMAND)
    assert skipped == reasons
    assert len([entry for entry in entries(shop) if entry["product_id"] == "B"]) == views
    more = int((re.findall(r"several pictures, ([\d,]+) more", out) or ["0"])[0])
    assert len(entries(shop)) + sum(skipped.values()) == 2 + more


def test_all_kinds_together_in_three_splits(shop, capsys):
    cells = [cell for cell, _, _ in CELLS.values()] * 20
    write_records(shop, [{"sku": f"P{n}", "photo": cell, "text": f"t{n}"} for n, cell in enumerate(cells)])
    out, _ = prepare(capsys, *COMMAND, "--valid-fraction", "0.2", "--test-fraction", "0.2")
    found = {split: entries(shop, f"clip_dataset_{split}.json") for split in ("train", "valid", "test")}
    counts = [int(count) for count in re.findall(r"skipped (\d+): ", out)]
    more = sum(int(count) for count in re.findall(r"several pictures, (\d+) more", out))
    assert sum(map(len, found.values())) == sum(views for _, views, _ in CELLS.values()) * 20
    assert sum(map(len, found.values())) + sum(counts) == len(cells) + more
    products = [{entry["product_id"] for entry in part} for part in found.values()]
    assert not products[0] & products[1] and not products[0] & products[2] and not products[1] & products[2]
    assert "no file photos/no.jpg; the nearest name there is " in out or "no name there is like it" in out
    assert out.splitlines()[-1] == (  # of the 300 rows, those of two pictures count twice
        "WARNING: 180 of 380 rows (47%) are skipped, 80 of them for: no image name: is --image-column the right one?"
    )


def test_names_made_of_columns(shop, capsys):
    (shop / "photos" / "010").mkdir()
    Image.new("RGB", (4, 4)).save(shop / "photos" / "010" / "0108775015.jpg")
    write_records(shop, [{"id": 108775015, "text": "x"}, {"id": 7, "text": "y"}, {"id": None, "text": "z"}])
    template = ("--image-template", "{id:0>10|:3}/{id:0>10}.jpg", "--images", "photos", "--caption-column", "text")
    out, skipped = prepare(capsys, *template)
    assert [entry["image_path"] for entry in entries(shop)] == ["photos/010/0108775015.jpg"]
    assert skipped == {"missing image": 1, "no image name": 1}
    assert "no file photos/000/0000000007.jpg" in out


SHOPIFY = [  # as exported: title and type once, further pictures and variants below
    {"Handle": "hat", "Title": "Hat", "Kind": "Hats", "Colour": "red", "Image": "0.jpg", "More": "1.jpg"},
    {"Handle": "hat", "Title": "", "Kind": "", "Colour": "", "Image": "2.jpg", "More": ""},
    {"Handle": "hat", "Title": None, "Kind": None, "Colour": "blue", "Image": "", "More": ""},
    {"Handle": "", "Title": "", "Kind": "", "Colour": "", "Image": "3.jpg", "More": ""},
    {"Handle": "bag", "Title": "Bag", "Kind": "Bags", "Colour": "", "Image": "4.jpg", "More": ""},
    {"Handle": "hat", "Title": " ", "Kind": "", "Colour": "green", "Image": "5.jpg", "More": ""},
    {"Handle": "cap", "Title": "", "Kind": "Caps", "Colour": "", "Image": "6.jpg", "More": ""},
]
CONTINUED = ("--images", "photos", "--image-column", "Image", "More", "--category-column", "Kind")


def test_rows_that_continue_a_product_inherit_what_is_blank(shop, capsys):
    write_records(shop, SHOPIFY)
    out, skipped = prepare(capsys, *CONTINUED, "--product-column", "Handle", "--caption-template", "{Title}. {Colour}")
    assert [(e["image_name"], e["product_id"], e["caption"], e["category"]) for e in entries(shop)] == [
        ("0.jpg", "hat", "Hat. red", "Hats"),
        ("1.jpg", "hat", "Hat. red", "Hats"),
        ("2.jpg", "hat", "Hat. red", "Hats"),
        ("3.jpg", "hat", "Hat. red", "Hats"),
        ("4.jpg", "bag", "Bag.", "Bags"),
        ("5.jpg", "hat", "Hat. green", "Hats"),
    ]
    assert skipped == {CONTINUES: 1, "blank caption": 1}
    assert "4 rows inherit what is blank from the first row of their product" in out
    assert "1 of them are a picture alone and taken for a view of the row above" in out
    assert "WARNING" not in out  # one of eight: a row without a picture of its own is no loss


@pytest.mark.parametrize("captions", [["a", "b"], ["b"], ["list"]])
def test_a_row_with_a_caption_of_its_own_inherits_nothing(shop, capsys, captions):
    first = {"sku": "A", "p": "0.jpg", "a": "One", "b": "Two", "list": ["x"], "kind": "Hats"}
    write_records(shop, [first, {"sku": "A", "p": "1.jpg", "a": "", "b": "Three", "list": ["y"], "kind": ""}])
    columns = ("--images=photos", "--image-column=p", "--product-column=sku", "--category-column=kind")
    out, _ = prepare(capsys, *columns, "--caption-column", *captions)
    assert entries(shop)[1]["caption"] == ("y" if captions == ["list"] else "Three")
    assert (entries(shop)[1]["category"], "inherit" in out) == ("", False)


@pytest.mark.parametrize("other", ["2.0", "3.50", "[7]"])
def test_an_id_of_any_kind_is_no_blank_one(shop, capsys, other):
    (shop / "t.jsonl").write_text(
        f'{{"id": 1, "title": "Red shoe", "p": "0.jpg"}}\n{{"id": {other}, "title": null, "p": "1.jpg"}}\n'
    )
    columns = ("--images=photos", "--image-column=p", "--product-column=id", "--caption-column=title")
    out, skipped = prepare(capsys, *columns)
    assert skipped == {"blank caption": 1} and [e["product_id"] for e in entries(shop)] == ["1"]
    assert "taken for a view of the row above" not in out


def test_a_decimal_number_names_a_picture(shop, capsys):
    (shop / "t.jsonl").write_text('{"id": 1.0, "title": "Red shoe"}\n{"id": 2.0, "title": "Hat"}\n')
    columns = ("--images=photos", "--image-template={id}.jpg", "--product-column=id", "--caption-column=title")
    prepare(capsys, *columns)
    assert [(e["image_name"], e["product_id"]) for e in entries(shop)] == [("1.jpg", "1"), ("2.jpg", "2")]


def test_without_a_product_nothing_is_inherited(shop, capsys):
    write_records(shop, SHOPIFY)
    _, skipped = prepare(capsys, *CONTINUED, "--caption-column", "Title")
    assert skipped == {"blank caption": 4, "no image name": 1}


def test_a_picture_alone_does_not_continue_a_row_that_could_not_be_read(shop, capsys):
    write_records(shop, SHOPIFY[:1])
    with open(shop / "t.jsonl", "a", encoding="utf-8") as file:
        file.write("[1]\n" + json.dumps(SHOPIFY[3]) + "\n")
    _, skipped = prepare(capsys, *CONTINUED, "--product-column", "Handle", "--caption-column", "Title")
    assert skipped == {"blank caption": 1, "line that is no JSON object": 1}


def test_the_first_column_that_is_not_blank_tells_the_product(shop, capsys):
    write_records(shop, [{"group": g, "id": f"I{n}", "p": f"{n}.jpg", "t": "x"} for n, g in enumerate(["G", "", "G"])])
    prepare(capsys, "--images=photos", "--image-column=p", "--caption-column=t", "--product-column", "group", "id")
    assert [entry["product_id"] for entry in entries(shop)] == ["G", "I1", "G"]


def records_with_missing(missing):
    return [{"sku": f"P{n}", "photo": "no.jpg" if n < missing else "0.jpg", "text": f"t{n}"} for n in range(20)]


def test_a_fifth_of_the_rows_may_be_skipped_without_a_last_line(shop, capsys):
    write_records(shop, records_with_missing(4))
    assert "WARNING" not in prepare(capsys, *COMMAND)[0]
    write_records(shop, records_with_missing(5))
    assert prepare(capsys, *COMMAND)[0].splitlines()[-1] == (
        "WARNING: 5 of 20 rows (25%) are skipped, all for: missing image: does --images name their folder, "
        "and --image-column or --image-template their names?"
    )


def test_more_than_the_limit_writes_nothing(shop, capsys):
    write_records(shop, records_with_missing(2))
    prepare(capsys, *COMMAND, "--max-skipped", "0.1")
    before = (shop / "clip_dataset_train.json").read_bytes()
    write_records(shop, records_with_missing(3))
    with pytest.raises(
        ValueError, match=r"^3 of 20 rows \(15%\) are skipped, .*more than --max-skipped 0.1, so nothing was"
    ):
        prepare(capsys, *COMMAND, "--max-skipped", "0.1")
    with pytest.raises(ValueError, match="nothing was written"):
        prepare(capsys, *COMMAND, "--max-skipped", "0", "--valid-fraction", "0.5")
    assert (shop / "clip_dataset_train.json").read_bytes() == before
    assert sorted(path.name for path in shop.iterdir()) == ["clip_dataset_train.json", "photos", "t.jsonl"]


def test_a_test_split_takes_no_product_out_of_validation(shop, capsys):
    write_records(shop, [{"sku": f"P{n}", "photo": "0.jpg", "text": "x"} for n in range(90)])
    ids = {}
    for name, fractions in {"two": (0.2, 0), "three": (0.1, 0.1), "more": (0.2, 0.1), "test": (0, 0.2)}.items():
        flags = [f"--{s}-fraction={f}" for s, f in zip(("valid", "test"), fractions) if f]
        prepare(capsys, *COMMAND, *flags, "--output", f"{name}_{{split}}.json")
        for path in shop.glob(f"{name}_*.json"):
            ids[path.stem] = {entry["product_id"] for entry in entries(shop, path.name)}
    assert ids["two_train"] == ids["three_train"] == ids["test_train"]  # what is held out stays the same 20 %
    assert ids["two_valid"] == ids["three_valid"] | ids["three_test"] == ids["test_test"]
    assert ids["more_valid"] == ids["two_valid"] and ids["more_test"] < ids["two_train"]
    assert "test_valid" not in ids


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--test-fraction", "1"], "--test-fraction 1.0 is not allowed: it takes a number between 0 and 1"),
        (["--valid-fraction", "0.5", "--test-fraction", "0.5"], "leave nothing to train on"),
        (["--valid-fraction", "0.5", "--split", "test"], "--split test needs --test-fraction"),
        (["--max-skipped", "1"], "--max-skipped 1.0 is not allowed: it takes a number from 0 to below 1"),
        (["--image-template", "{id}.jpg"], "not allowed with argument --image-column"),
        (["--preset", "amazon"], "shopify"),
        (["--drop-leaks"], "--drop-leaks belongs to --audit"),
    ],
)
def test_wrong_arguments_are_one_line(shop, capsys, arguments, words):
    with pytest.raises(SystemExit):
        clip_prep.main(["--table", "t.jsonl", *COMMAND, *arguments])
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
