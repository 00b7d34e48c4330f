"""Tables in JSON: an object a line, arrays, what shops and pandas write; fields inside fields."""

import json

import pytest

from clip_finetuning.catalogue.table import Columns
from tests.helpers import read_table

RECORDS = [{"id": 1, "text": "Hat", "photo": "1.jpg"}, {"id": 2, "text": "Cap", "photo": "1.jpg"}]
COLUMNWISE = {name: {str(n): record[name] for n, record in enumerate(RECORDS)} for name in RECORDS[0]}
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.jsonl", LINES),
        ("t.ndjson", "\n\n" + LINES),
        ("t.json", LINES),
        ("t.json", json.dumps(RECORDS)),
        ("t.json", json.dumps(RECORDS, indent=1)),
        ("t.jsonl", json.dumps(RECORDS)),
        ("t.jsonl", json.dumps(RECORDS, indent=1)),
        ("t.json", json.dumps({"products": RECORDS, "count": 2})),
        ("t.json", json.dumps({"products": RECORDS, "count": 2}, indent=1)),
        ("t.json", json.dumps(COLUMNWISE)),
        ("t.json", json.dumps({"a": RECORDS[0], "b": RECORDS[1]})),
        ("t.json", json.dumps({"columns": list(RECORDS[0]), "data": [list(record.values()) for record in RECORDS]})),
        ("t.json", "\ufeff" + json.dumps(RECORDS)),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path, name, data):
    rows, skipped, remarks = read_table(tmp_path, name, data)
    assert [(row.product_id, row.captions) for row in rows] == [("1", ("Hat",)), ("2", ("Cap",))]
    assert (skipped, remarks) == ({}, [])


@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_is_one_row(tmp_path, indent):
    assert len(read_table(tmp_path, "t.json", json.dumps(RECORDS[0], indent=indent))[0]) == 1


def test_fields_inside_fields(tmp_path):
    record = {**RECORDS[0], "variants": [{"sku": "X1"}], "a.b": {"c": "Y1"}, "a": {"b.c": "never", "d": {"e": "Z1"}}}

    def product(name, **more):
        data = json.dumps([{**record, **more}, RECORDS[1]])
        return read_table(tmp_path, "t.json", data, Columns("photo", ("text",), product=name))[0][0].product_id

    assert product("variants.0.sku") == "X1"
    assert product("variants.0.sku", **{"variants.0.sku": "own"}) == "own"
    assert (product("a.b.c"), product("a.d.e")) == ("Y1", "Z1")
    for absent in ("variants.1.sku", "variants.sku", "a.x", "id.0"):
        with pytest.raises(ValueError, match=f"no column {absent}"):
            product(absent)
    rows, _, _ = read_table(
        tmp_path, "t.jsonl", json.dumps(record), Columns("photo", template="{text} {variants.0.sku}")
    )
    assert rows[0].captions == ("Hat X1",)


def test_elements_that_are_no_objects_are_counted(tmp_path):
    rows, skipped, _ = read_table(tmp_path, "t.json", json.dumps([RECORDS[0], 5, None, [1], RECORDS[1]]))
    assert len(rows) == 2
    assert skipped == {"line that is no JSON object": ["t.json:2", "t.json:3", "t.json:4"]}


@pytest.mark.parametrize("data", ['[{"id": 1', "5", "null", '"x"', "[" * 100_000, '{"products": [1'])
def test_what_is_no_table_is_one_error(tmp_path, data):
    with pytest.raises(ValueError, match="t.json"):
        read_table(tmp_path, "t.json", data)
