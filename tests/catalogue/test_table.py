"""A shop's own table, in every form it may come."""

import json
import sys

import pytest
from PIL import Image

from clip_finetuning.catalogue.rows import Row, Skipped
from clip_finetuning.catalogue.table import Columns, open_table, split_of_product

COLUMNS = Columns("photo", ("text",), product="sku", category="kind", subcategory="sub kind")
RECORDS = [
    {"sku": "A1", "photo": "1.jpg", "text": 'A "red" hat,\nwith a brim', "kind": "Hats", "sub kind": "Caps"},
    {"sku": "A1", "photo": "more/2.jpg", "text": 'A "red" hat,\nwith a brim', "kind": "Hats", "sub kind": "Caps"},
    {"sku": "B2", "photo": "1.jpg", "text": "Écharpe 🧣 — 50 %", "kind": "", "sub kind": ""},
]
EXPECTED = [
    ("1.jpg", 'A "red" hat, with a brim', "Hats", "Caps", "A1"),
    ("2.jpg", 'A "red" hat, with a brim', "Hats", "Caps", "A1"),
    ("1.jpg", "Écharpe 🧣 — 50 %", "", "", "B2"),
]


@pytest.fixture
def photos(tmp_path):
    """A folder `photos` with 1.jpg and more/2.jpg."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("1.jpg", "more/2.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"'


def delimited(records, delimiter=","):
    rows = [list(records[0]), *(list(record.values()) for record in records)]
    return "".join(delimiter.join(map(quoted, row)) + "\r\n" for row in rows)


def write_table(path, records):
    """The records in the format of the path's ending."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_bytes(delimited(records, "\t" if path.suffix == ".tsv" else ",").encode())
    return path


def rows_of(path, columns, images, **options):
    return list(open_table(path, columns, images, **options).rows)


def short(row):
    return (row.image_name, row.captions[0], row.category, row.subcategory, row.product_id)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, photos, suffix):
    source = open_table(write_table(tmp_path / f"products{suffix}", RECORDS), COLUMNS, photos)
    rows = list(source.rows)
    assert [short(row) for row in rows] == EXPECTED
    assert rows[1].image_path == (photos / "more" / "2.jpg").as_posix()
    assert source.total in (None, 3)


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-8", ";"), ("utf-16", "\t"), ("cp1252", ";")]
)
def test_encodings_and_delimiters_of_spreadsheets(tmp_path, photos, encoding, delimiter):
    records = [record | {"text": record["text"].replace("🧣", "’")} for record in RECORDS]
    path = tmp_path / "products.csv"
    path.write_bytes(delimited(records, delimiter).encode(encoding))
    assert rows_of(path, COLUMNS, photos)[2].captions == ("Écharpe ’ — 50 %",)


def test_pictures_lie_beside_the_table_unless_said_otherwise(photos):
    path = write_table(photos / "products.csv", RECORDS)
    assert [row.image_name for row in rows_of(path, COLUMNS, None)] == ["1.jpg", "2.jpg", "1.jpg"]


def test_a_template_makes_the_caption(tmp_path, photos):
    path = write_table(tmp_path / "t.csv", RECORDS)
    columns = Columns("photo", template="{kind} ({sub kind}): {sku}.", product="sku")
    assert [row.captions for row in rows_of(path, columns, photos)] == [("Hats (Caps): A1.",)] * 2 + [("B2.",)]


def test_several_caption_columns_are_wordings_of_the_same(tmp_path, photos):
    records = [
        {"photo": "1.jpg", "a": "Hat", "b": "A hat"},
        {"photo": "1.jpg", "a": "", "b": "Cap"},
        {"photo": "1.jpg", "a": "Bag", "b": "Bag"},
        {"photo": "1.jpg", "a": ["One", "Two"], "b": 3},
    ]
    path = write_table(tmp_path / "t.jsonl", records)
    captions = [row.captions for row in rows_of(path, Columns("photo", ("a", "b")), photos)]
    assert captions == [("Hat", "A hat"), ("Cap",), ("Bag",), ("One", "Two", "3")]


def test_without_product_ids_equal_captions_are_one_product(tmp_path, photos):
    path = write_table(tmp_path / "t.csv", RECORDS)
    ids = [row.product_id for row in rows_of(path, COLUMNS._replace(product=None), photos)]
    assert ids[0] == ids[1] != ids[2]
    assert all(ids)
    records = [record | {"sku": ""} for record in RECORDS]
    assert [row.product_id for row in rows_of(write_table(path, records), COLUMNS, photos)] == ids


def test_numbers_are_written_as_their_digits(tmp_path, photos):
    records = [{"id": 12.0, "photo": "1.jpg", "text": 5}, {"id": None, "photo": "1.jpg", "text": "x"}]
    rows = rows_of(write_table(tmp_path / "t.jsonl", records), Columns("photo", ("text",), product="id"), photos)
    assert (rows[0].product_id, rows[0].captions) == ("12", ("5",))


def test_the_split_holds_products_together_and_loses_none(tmp_path, photos):
    records = [{"sku": f"P{n // 3}", "photo": "1.jpg" if n % 7 else "no.jpg", "text": "x"} for n in range(900)]
    path = write_table(tmp_path / "t.csv", records)
    columns = Columns("photo", ("text",), product="sku")
    train, valid = (rows_of(path, columns, photos, split=s, valid_fraction=0.2) for s in ("train", "valid"))
    assert len(train) + len(valid) == 900  # the skipped among them: each is counted once
    products = [{row.product_id for row in rows if isinstance(row, Row)} for rows in (train, valid)]
    assert not products[0] & products[1]
    assert 0.12 < len(products[1]) / 300 < 0.28
    more = write_table(path, [{"sku": "new", "photo": "1.jpg", "text": "y"}, *records])
    again = rows_of(more, columns, photos, split="valid", valid_fraction=0.2)
    assert {row.product_id for row in again if isinstance(row, Row)} - {"new"} == products[1]


def test_the_split_is_the_same_everywhere():
    assert [n for n in range(20) if split_of_product(str(n), 0.3) == "valid"] == [4, 8, 9, 10, 13, 17]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_missing_columns_are_named_with_those_there_are(tmp_path, photos, suffix):
    path = write_table(tmp_path / f"products{suffix}", RECORDS)
    for columns in (COLUMNS._replace(image="picture"), Columns("photo", template="{picture}")):
        with pytest.raises(ValueError, match="no column picture; it has sku, photo, text, kind, sub kind"):
            open_table(path, columns, photos)
    with pytest.raises(ValueError, match="needs --image-column; its columns are sku, photo"):
        open_table(path, COLUMNS._replace(image=None), photos)
    with pytest.raises(ValueError, match="needs --caption-column or --caption-template; its columns are sku"):
        open_table(path, Columns("photo"), photos)


def test_a_column_that_is_there_twice_is_refused(tmp_path, photos):
    path = tmp_path / "t.csv"
    path.write_text("photo,text,photo\n1.jpg,x,1.jpg\n")
    with pytest.raises(ValueError, match="more than one column photo"):
        open_table(path, Columns("photo", ("text",)), photos)


def skipped(path, columns, images, **options):
    return [row for row in rows_of(path, columns, images, **options) if isinstance(row, Skipped)]


def test_rows_that_cannot_be_used_are_skipped_with_their_line(tmp_path, photos):
    path = tmp_path / "t.csv"
    path.write_text(
        "photo,text\n1.jpg,x\n\n1.jpg\n1.jpg,x,y\n1.jpg, \n,x\nno.jpg,x\nhttps://shop.example/1.jpg,x\n1.jpg,y"
    )
    assert skipped(path, Columns("photo", ("text",)), photos) == [
        Skipped("t.csv:4", "blank caption"),
        Skipped("t.csv:5", "wrong number of cells"),
        Skipped("t.csv:6", "blank caption"),
        Skipped("t.csv:7", "no image name"),
        Skipped("t.csv:8", "missing image"),
        Skipped("t.csv:9", "image is a URL (--download DIR fetches it)"),
    ]


@pytest.mark.parametrize("name", ["../secret.jpg", "more/../../secret.jpg", "{}/secret.jpg", "link.jpg"])
def test_pictures_outside_the_folder_are_refused(tmp_path, photos, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    path = write_table(tmp_path / "t.csv", [{"photo": name.format(tmp_path), "text": "x"}])
    columns = Columns("photo", ("text",))
    assert "outside its folder" in skipped(path, columns, photos)[0].reason
    assert not skipped(path, columns, photos, allow_outside=True)


def test_hostile_text_is_one_clean_line(tmp_path, photos):
    text = "a\0b\r\n\u2028\x1b[31m 🧶\ufeff " + "long " * 20_000
    for suffix in (".csv", ".jsonl"):
        path = write_table(tmp_path / f"t{suffix}", [{"photo": "1.jpg", "text": text}])
        caption = rows_of(path, Columns("photo", ("text",)), photos)[0].captions[0]
        assert caption.startswith("a b [31m 🧶 long long")
        assert len(caption) > 99_000


def test_damaged_json_lines_are_skipped(tmp_path, photos):
    path = tmp_path / "t.jsonl"
    good = b'{"photo": "1.jpg", "text": "x"}\n'
    path.write_bytes(
        b"\xef\xbb\xbf" + good + b'[1]\n\xff\n{"photo": "1.j\n' + b"[" * 100_000 + b'\n{"text": "y"}\n' + good
    )
    reasons = [row.reason for row in skipped(path, Columns("photo", ("text",)), photos)]
    assert reasons == ["line that is no JSON object"] * 4 + ["no image name"]


def test_files_that_are_no_table_are_one_error(tmp_path, photos):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut")
    (tmp_path / "t.xls").touch()
    (tmp_path / "t.csv").touch()
    for name, words in [("t.parquet", "not a readable Parquet"), ("t.xls", "must end in .csv"), ("t.csv", "has none")]:
        with pytest.raises(ValueError, match=words):
            open_table(tmp_path / name, COLUMNS, photos)
    with pytest.raises(FileNotFoundError, match="absent.csv does not exist"):
        open_table(tmp_path / "absent.csv", COLUMNS, photos)
    with pytest.raises(FileNotFoundError, match="--images must name"):
        open_table(tmp_path / "t.csv", COLUMNS, tmp_path / "absent")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, photos, monkeypatch):
    path = write_table(tmp_path / "t.parquet", RECORDS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        open_table(path, COLUMNS, photos)
