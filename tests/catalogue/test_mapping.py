"""What a JSON mapping says, whoever reads it."""

import json

import pytest

from clip_finetuning.catalogue import audit, audit_summary
from clip_finetuning.catalogue.mapping import check_entries, read_mapping, write_mappings
from clip_finetuning.catalogue.table import Columns, open_table
from tests.helpers import encoded_picture, entry, read_records, shards_in, write_mapping, write_shards

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded_picture(1))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"caption": "\0\x01"},
        {"caption": "\ufeff"},
        {"caption": "\ud800"},
        {"caption": 5},
        {"caption": NAN},
        {"caption": ["a hat"]},
        {"image_path": " "},
        {"image_path": 5},
        {"image_path": None},
        {"product_id": NAN},
        {"product_id": INFINITY},
        {"product_id": True},
        {"product_id": ["P1"]},
        {"product_id": "\0"},
        {"product_id": 15970.0},
        {"product_id": 10**20},
    ],
    ids=repr,
)
def test_audit_and_shards_use_the_same_entries_and_see_the_same_products(tmp_path, picture, change):
    entries = [entry(picture, 0), entry(picture, 1), entry(picture, 1) | change]
    mapping = write_mapping(tmp_path / "odd.json", entries)
    report = audit.audit([mapping])["files"][mapping.as_posix()]
    write_shards(mapping, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/odd.manifest.json").read_text())
    assert report["usable"] == manifest["samples"]
    assert report["entries"] == manifest["entries"]
    skipped = {reason: found["count"] for reason, found in report["unusable_entries"].items()}
    assert skipped == {reason: found["count"] for reason, found in manifest["skipped"].items()}
    assert report["products"] == len({record["product_id"] for record in read_records(*shards_in(tmp_path / "out"))})


def test_both_refuse_the_same_files(tmp_path):
    mapping = tmp_path / "odd.json"
    for data in ("[]".encode("utf-16"), b'["\xed\xa0\x80"]'):
        mapping.write_bytes(data)
        for read in (lambda: audit.audit([mapping]), lambda: write_shards(mapping, tmp_path / "out")):
            with pytest.raises(ValueError, match="is not valid JSON"):
                read()


def test_an_entry_is_clean_text():
    odd = {"product_id": 15970.0, "category": "TOPS\n", "image_name": None, "captions": ["A  hat", "", "Cap", 7, None]}
    entry = check_entries([{"image_path": "a b.png", "caption": " A\that "} | odd]).entries[0]
    assert entry == ("a b.png", "A hat", ("A hat", "Cap", "7"), "15970", "TOPS", "", "", (), (), ())
    assert entry.captions == ("A hat", "Cap", "7")


def test_what_is_skipped_keeps_its_number_name_and_reason():
    values = [
        5,
        {"caption": "a"},
        {"image_path": "x\ud800.png", "caption": " "},
        {"image_path": "y.png", "caption": "a"},
    ]
    mapping = check_entries(values)
    assert mapping.skipped == [
        (0, "entry 0", "not an object"),
        (1, "entry 1", "no image_path"),
        (2, "x\\ud800.png", "no caption"),
    ]
    assert [entry.image_path for entry in mapping.entries] == ["y.png"]


def test_values_that_are_no_text_are_counted_and_said(tmp_path, picture, capsys):
    changes = [{"product_id": NAN}, {"product_id": [1], "category": True}, {"captions": "one"}, {"captions": ["a", {}]}]
    changes += [{"product_id": "", "category": None, "captions": []}, {}]
    mapping = write_mapping(tmp_path / "odd.json", [entry(picture, 1) | change for change in changes])
    remarks = [
        "captions holds no text in 2 entries, which counts as none",
        "category holds no text in 1 entries, which counts as none",
        "product_id holds no text in 2 entries, which counts as none",
        "3 entries have no product_id: equal captions are one product",
    ]
    write_shards(mapping, tmp_path / "out")
    assert capsys.readouterr().out.splitlines()[:4] == remarks
    report = audit.audit([mapping])
    assert all(f"  {remark}" in audit_summary.summary(report).splitlines() for remark in remarks)


def test_nothing_is_said_of_a_sound_mapping(tmp_path, picture, capsys):
    write_shards(write_mapping(tmp_path / "sound.json", [entry(picture, 1)]), tmp_path / "out")
    assert capsys.readouterr().out.startswith("Created 1 shards")


def test_no_product_id_is_the_same_id_in_every_stage(tmp_path, picture):
    """A table without ids, a mapping without ids: the same caption is the same product, told by name."""
    (tmp_path / "shop.csv").write_text(f"photo,text\n{picture.name},A hat\n", encoding="utf-8")
    source = open_table(tmp_path / "shop.csv", Columns("photo", ("text",)))
    (summary,) = write_mappings({tmp_path / "table.json": source}).values()
    assert "1 images have no product id: equal captions are one product" in str(summary)
    bare = write_mapping(tmp_path / "bare.json", [{"image_path": str(picture), "caption": "A  hat"}])
    ids = set()
    for mapping in (tmp_path / "table.json", bare):
        ids.add(read_mapping(mapping).entries[0].product_id)
        write_shards(mapping, tmp_path / "out")
        ids |= {record["product_id"] for record in read_records(*shards_in(tmp_path / "out"))}
    assert ids == {"caption-bb62aebcc4b90948"}
    assert audit.audit([tmp_path / "table.json", bare])["leakage"]["products"]["count"] == 1
