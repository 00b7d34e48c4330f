"""Cells of every type: what is there is read or counted, and never becomes another product unsaid."""

import datetime
import json
from decimal import Decimal

import pytest

from clip_finetuning.catalogue.cells import text_and_kind
from clip_finetuning.catalogue.table import Columns
from tests.helpers import read_table

LONG = 1234567890123456789


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (LONG, "1234567890123456789"),
        (15970.0, "15970"),
        (12.5, "12.5"),
        (Decimal("1234567890123456789.00"), "1234567890123456789"),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+3"), "1000"),
        (["A1"], "A1"),
        ([[LONG]], "1234567890123456789"),
        ((Decimal(7),), "7"),
        (b"caf\xc3\xa9", "café"),
        *((nothing, "") for nothing in (None, "", " ", float("nan"), Decimal("NaN"), [], {}, [None], [""])),
    ],
)
def test_a_value_is_its_digits_or_nothing(value, text):
    assert text_and_kind(value) == (text, "")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "true or false"),
        ([False], "true or false"),
        (["A", "B"], "a list of several"),
        ({"a": 1}, "an object"),
        (float("inf"), "infinity"),
        (Decimal("-Infinity"), "infinity"),
        (10**200, "a number of more than 100 digits"),
        (1e200, "a number of more than 100 digits"),
        (Decimal("1e999999"), "a number of more than 100 digits"),
        (datetime.date(2020, 1, 2), "a date"),
        (datetime.timedelta(1), "a timedelta"),
        (b"\x00\x01\xff", "bytes that are no text"),
    ],
)
def test_what_is_no_text_has_a_name(value, kind):
    assert text_and_kind(value) == ("", kind)


def lines(*records):
    return "".join(json.dumps({"photo": "1.jpg", "text": "Hat", **record}) + "\n" for record in records)


def test_ids_of_every_type(tmp_path):
    ids = [LONG, LONG + 1, 12.0, [5], "A", None, "", True, {"a": 1}, ["A", "B"], float("inf")]
    rows, skipped, _ = read_table(tmp_path, "t.jsonl", lines(*({"id": one} for one in ids)))
    assert [row.product_id for row in rows[:5]] == ["1234567890123456789", "1234567890123456790", "12", "5", "A"]
    assert [row.product_id[:8] for row in rows[5:]] == ["caption-"] * 2
    assert skipped == {
        "product id is true or false": ["t.jsonl:8"],
        "product id is an object": ["t.jsonl:9"],
        "product id is a list of several": ["t.jsonl:10"],
        "product id is infinity": ["t.jsonl:11"],
    }


def test_long_numbers_of_json_keep_their_digits(tmp_path):
    data = '{"photo": "1.jpg", "text": "Hat", "id": 1234567890123456789.0}\n'
    rows, _, remarks = read_table(tmp_path, "t.jsonl", data)
    assert (rows[0].product_id, remarks) == ("1234567890123456789", [])


def test_ids_that_have_lost_digits_are_said(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids = [float(LONG), 15970.0, None]
    parquet.write_table(pyarrow.table({"id": ids, "photo": ["1.jpg"] * 3, "text": ["Hat"] * 3}), tmp_path / "t.parquet")
    rows, _, remarks = read_table(tmp_path, "t.parquet", None)
    assert rows[1].product_id == "15970"
    assert [remark[:44] for remark in remarks] == ["1 rows have a product id beyond 2^53 as a fl"]
    _, _, remarks = read_table(tmp_path, "t.csv", "id,photo,text\n1.23457E+18,1.jpg,Hat\n15E3,1.jpg,Hat\n")
    assert [remark[:44] for remark in remarks] == ["1 rows have a product id such as 1.23E+17: i"]


def test_an_id_of_excel_with_a_decimal_comma_has_lost_digits_too(tmp_path):
    _, _, remarks = read_table(tmp_path, "t.csv", "id;photo;text\n4,01235E+12;1.jpg;Hat\n15E3;1.jpg;Hat\n")
    assert [remark[:44] for remark in remarks] == ["1 rows have a product id such as 1.23E+17: i"]


def test_categories_and_captions_of_every_type(tmp_path):
    records = [
        {"id": 1, "kind": ["Hats"]},
        {"id": 2, "kind": ["Hats", "Caps"]},
        {"id": 3, "kind": 7, "text": ["One", 2]},
        {"id": 4, "text": True},
        {"id": 5, "text": ["One", {"a": 1}]},
    ]
    columns = Columns("photo", ("text",), product="id", category="kind")
    rows, skipped, remarks = read_table(tmp_path, "t.jsonl", lines(*records), columns)
    assert [(row.product_id, row.captions, row.category) for row in rows] == [
        ("1", ("Hat",), "Hats"),
        ("2", ("Hat",), ""),
        ("3", ("One", "2"), "7"),
        ("5", ("One",), ""),
    ]
    assert skipped == {"caption is true or false": ["t.jsonl:4"]}
    assert remarks == [
        "1 rows have a category that is a list of several, which counts as none (t.jsonl:2)",
        "1 rows have a text that is an object, which is left out of the caption (t.jsonl:5)",
    ]


def test_fields_of_a_template_that_are_no_text_or_not_there(tmp_path):
    data = lines({"title": "Cap", "sizes": ["S", "M"]}, {"title": "Cap"}, {"sizes": [7]}, {"sizes": {"a": 1}})
    rows, skipped, remarks = read_table(tmp_path, "t.jsonl", data, Columns("photo", template="{title}, {sizes}."))
    assert [row.captions[0] for row in rows] == ["Cap.", "Cap.", "7."]
    assert skipped == {"caption is an object": ["t.jsonl:4"]}
    assert remarks == ["1 rows have a sizes that is a list of several, which is left out of the caption (t.jsonl:1)"]


def test_types_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = pyarrow.array(["café", "Hat"])
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, text.buffers()[1], pyarrow.py_buffer(b"caf\xff\xffHat")]
    )
    ids = {
        "decimal": pyarrow.array([Decimal(LONG), Decimal("12.50")], pyarrow.decimal128(22, 2)),
        "unsigned": pyarrow.array([2**64 - 1, 5], pyarrow.uint64()),
        "names": pyarrow.array(["A", "B"]).dictionary_encode(),
        "nested": pyarrow.array([{"a": [{"sku": "X"}]}, {"a": [{"sku": "Y"}]}]),
        "dotted.name": ["own", "other"],
        "time": pyarrow.array([2**45, 1], pyarrow.timestamp("s")),
    }
    table = pyarrow.table({"photo": ["1.jpg"] * 2, "text": broken, **ids})
    parquet.write_table(table, tmp_path / "t.parquet")

    def products(name):
        rows, skipped, _ = read_table(tmp_path, "t.parquet", None, Columns("photo", ("text",), product=name))
        return [row.product_id for row in rows] or skipped

    assert products("decimal") == ["1234567890123456789", "12.50"]
    assert products("unsigned") == ["18446744073709551615", "5"]
    assert products("names") == ["A", "B"]
    assert products("nested.a.0.sku") == ["X", "Y"]
    assert products("dotted.name") == ["own", "other"]
    assert products("time") == {"product id is a datetime": ["t.parquet:1", "t.parquet:2"]}
    for absent in ("nested.b", "nested.a.x", "other.name"):
        with pytest.raises(ValueError, match=f"no column {absent}"):
            products(absent)
    rows, _, _ = read_table(tmp_path, "t.parquet", None, Columns("photo", ("text",)))
    assert [row.captions[0] for row in rows] == ["cafÿÿ", "Hat"]
