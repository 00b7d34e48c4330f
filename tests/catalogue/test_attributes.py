"""What a catalogue says of a product by name, from any kind of it into the mapping, the shards and the batches."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

import clip_prep
from clip_finetuning.catalogue.columns import Columns
from clip_finetuning.catalogue.mapping import check_entries
from clip_finetuning.catalogue.rows import Row
from tests.catalogue.test_hdf5 import write_fashiongen
from tests.helpers import (
    contents,
    entry,
    evaluation,
    read_records,
    read_table,
    shards_in,
    write_catalogue,
    write_shards,
)

COLUMNS = Columns("photo", ("text",), product="id", attributes=("colour", "sizes", "zip"))


def test_a_table_keeps_the_columns_that_are_named(tmp_path):
    records = [
        {
            "photo": "1.jpg",
            "text": "coat",
            "id": 1,
            "colour": "<b>navy</b> blue",
            "sizes": ["M", "L", "M"],
            "zip": True,
        },
        {"photo": "1.jpg", "text": "coat", "id": 2, "colour": None, "sizes": 39.5, "zip": False},
        {"photo": "1.jpg", "text": "coat", "id": 3, "colour": {"a": 1}, "sizes": [], "zip": "NaN"},
    ]
    rows, skipped, remarks = read_table(tmp_path, "t.json", json.dumps(records), COLUMNS)
    assert not skipped
    assert [dict(row.attributes) for row in rows] == [
        {"colour": "navy blue", "sizes": "L, M", "zip": "true"},
        {"sizes": "39.5", "zip": "false"},
        {},
    ]
    assert "1 rows have a colour that is an object, which counts as none (t.json:3)" in remarks
    assert [line.split(" (")[0] for line in remarks if "an attribute" in line] == [
        "2 images have no colour, an attribute",
        "1 images have no sizes, an attribute",
        "1 images have no zip, an attribute",
    ]


def test_a_row_that_continues_a_product_inherits_its_attributes(tmp_path):
    table = "photo,text,id,colour,sizes,zip\n1.jpg,coat,a,red,M,yes\n1.jpg,,a,,,\n"
    rows, _, remarks = read_table(tmp_path, "t.csv", table, COLUMNS)
    assert [dict(row.attributes) for row in rows] == [{"colour": "red", "sizes": "M", "zip": "yes"}] * 2
    assert not any("an attribute" in line for line in remarks)


def test_a_column_that_is_not_there_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="no column colour; it has photo, text, id$"):
        read_table(tmp_path, "t.csv", "photo,text,id\n1.jpg,a,b\n", COLUMNS)


def test_fields_of_an_hdf5_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    texts = {"input_season": "", "input_gender": "Women"}
    write_fashiongen(tmp_path / "train.h5", [(1, 2, texts), (2, 1, {"input_season": "SS"})], size=8)
    clip_prep.main(["--hdf5=train.h5", "--attributes=input_season, gender,gender"])
    said = [one.get("attributes") for one in json.loads((tmp_path / "clip_dataset_train.json").read_text())]
    assert said == [{"gender": "Women"}] * 2 + [{"input_season": "SS", "gender": "gender o"}]  # eight bytes
    assert "2 images have no input_season, an attribute (train.h5#0)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no field size; it has index"):
        clip_prep.main(["--hdf5=train.h5", "--attributes=size"])


def test_keys_of_pickles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("full_train_info_PAI", "extracted_train_images"):
        (tmp_path / folder).mkdir()
    for number, colour in enumerate(("red", " ", np.str_("blue"))):
        name = f"{number}_1.png"
        record = {"product_id": number, "img_name": name, "super_cls_name": "TOPS", "captions": "a", "colour": colour}
        (tmp_path / "full_train_info_PAI" / f"{number}.pkl").write_bytes(pickle.dumps(record))
        Image.new("RGB", (4, 4)).save(tmp_path / "extracted_train_images" / name)
    clip_prep.main(["--attributes=colour"])
    said = [one.get("attributes") for one in json.loads((tmp_path / "clip_dataset_train.json").read_text())]
    assert said[:2] == [{"colour": "red"}, None]
    assert "images have no colour, an attribute (extracted_train_images/1_1.png)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no pickle has the key hue .*; they have product_id, img_name, .*colour$"):
        clip_prep.main(["--attributes=hue"])


@pytest.mark.parametrize("names", [",", " , ", ""])
def test_no_names_are_one_line(names, capsys):
    with pytest.raises(SystemExit):
        clip_prep.main([f"--attributes={names}"])
    assert "names nothing" in capsys.readouterr().err


def test_attributes_reach_the_shards_and_the_batches_and_only_where_there_are_some(tmp_path):
    mapping = write_catalogue(tmp_path, products=2)
    write_shards(mapping, tmp_path / "without")
    entries = json.loads(mapping.read_text())
    for number, one in enumerate(entries):
        one["attributes"] = {"material": "wool", "colour": ["b", "a"][number % 2], "blank": " "} if number < 5 else {}
    mapping.write_text(json.dumps(entries))
    write_shards(mapping, tmp_path / "with")
    said = [record.get("attributes") for record in read_records(*shards_in(tmp_path / "with"))]
    expected = [{"colour": colour, "material": "wool"} for colour in "babab"] + [None]
    assert sorted(map(str, said)) == sorted(map(str, expected))
    loader = evaluation(str(shards_in(tmp_path / "with")[0]))
    assert [attributes for batch in loader for attributes in batch.attributes] == [one or {} for one in said]
    for one in entries:
        del one["attributes"]
    mapping.write_text(json.dumps(entries))
    write_shards(mapping, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "without")


def test_what_is_no_object_of_texts_counts_as_none_and_is_said(tmp_path):
    values = [
        entry("a.png", 1, attributes=attributes) for attributes in ("red", {"a": {}, "b": "c"}, ["red"], None, {})
    ]
    mapping = check_entries(values)
    assert [dict(one.attributes) for one in mapping.entries] == [{}, {"b": "c"}, {}, {}, {}]
    assert mapping.no_text == {"attributes": 3}


def test_a_row_says_none_unless_asked():
    assert Row("a.png", "a.png", ("a",), "", "", "1").attributes == ()
