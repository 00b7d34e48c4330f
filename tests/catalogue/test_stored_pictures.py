"""A table with its pictures inside: from Parquet to shards and the audit, through the commands."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import clip_prep
import create_webdataset
from clip_finetuning.catalogue import stored_pictures
from clip_finetuning.catalogue.audit import audit
from clip_finetuning.pictures.stored import ParquetColumn
from tests.helpers import read_samples, shards_in

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def jpeg(number):
    values = np.random.default_rng(number).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(values).save(data, "JPEG")
    return data.getvalue()


ROWS = 12
KINDS = {
    "object": lambda n: {"bytes": jpeg(n), "path": f"train/{n}.jpg"},
    "bytes": jpeg,
    "list": lambda n: [{"bytes": jpeg(n), "path": None}],
    "list of bytes": lambda n: [jpeg(n)],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(cells, name="t.parquet", **columns):
    rows = [
        {"image": cell, "text": f"Hat {n // 2}", "sku": f"P{n // 2}"}
        | {key: cells[n] for key, cells in columns.items()}
        for n, cell in enumerate(cells)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), name, row_group_size=5)


def prepared(*arguments):
    columns = ("--image-column", "image", "--caption-column", "text", "--product-column", "sku")
    clip_prep.main(["--table", "t.parquet", *columns, *arguments])
    with open("clip_dataset_train.json", encoding="utf-8") as file:
        return json.load(file)


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_table_to_shards_and_audit(folder, kind):
    write([KINDS[kind](n) for n in range(ROWS)])
    entries = prepared()
    suffix = ".0" if "list" in kind else ""
    assert [entry["image_path"] for entry in entries] == [f"t.parquet#{n}{suffix}" for n in range(ROWS)]
    assert entries[3]["image_name"] == ("3.jpg" if kind == "object" else f"t.parquet#3{suffix}")
    write_shards = ["--json", "clip_dataset_train.json", "--output-dir", "out", "--shard-size=5", "--num-workers=0"]
    create_webdataset.main(write_shards)
    samples = read_samples(*shards_in(folder / "out"))
    names = {entry["image_name"]: n for n, entry in enumerate(entries)}
    assert len(samples) == ROWS
    for sample in samples.values():  # shuffled, and each picture with its own caption
        number = names[json.loads(sample["json"])["image_name"]]
        assert (sample["jpg"], sample["txt"].decode()) == (jpeg(number), f"Hat {number // 2}")
    report = audit(["clip_dataset_train.json"])
    assert report["files"]["clip_dataset_train.json"]["usable"] == ROWS
    assert report["repeated_pictures"]["count"] == 0


def test_each_row_is_a_picture_or_counted(folder, capsys):
    cells = [{"bytes": jpeg(n), "path": None} for n in range(ROWS)]
    (folder / "beside.jpg").write_bytes(jpeg(99))
    cells[1] = None
    cells[2] = {"bytes": None, "path": None}
    cells[6] = {"bytes": None, "path": "beside"}
    cells[7] = {"bytes": None, "path": "absent.jpg"}
    write(cells)
    assert [entry["image_path"] for entry in prepared()] == [
        *("t.parquet#0", "t.parquet#3", "t.parquet#4", "t.parquet#5", "beside.jpg"),
        *(f"t.parquet#{n}" for n in range(8, ROWS)),
    ]
    out = capsys.readouterr().out
    assert "skipped 2: no image name (t.parquet:2, t.parquet:3)" in out
    assert "skipped 1: missing image (t.parquet:8)" in out


def test_several_columns_of_pictures_are_views(folder, capsys):
    pictures = [{"bytes": jpeg(n), "path": None} for n in range(4)]
    write(pictures, back=[*pictures[:2], None, None])
    paths = [entry["image_path"] for entry in prepared("--image-column", "image", "back")]
    assert paths == [f"t.parquet#{mark}" for mark in ("image:0", "back:0", "image:1", "back:1", "image:2", "image:3")]
    assert "2 rows name several pictures, 2 more than rows" in capsys.readouterr().out


def test_names_written_as_bytes_are_names(folder):
    (folder / "0.jpg").write_bytes(jpeg(0))
    write([b"0.jpg", b"0.jpg"])
    assert [entry["image_path"] for entry in prepared()] == ["0.jpg", "0.jpg"]


def test_pictures_are_not_read_for_their_names(folder, monkeypatch):
    write([KINDS["object"](n) for n in range(ROWS)])
    monkeypatch.setattr(ParquetColumn, "value", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(stored_pictures, "_holds_names", lambda *_: False)
    assert [entry["image_name"] for entry in prepared()] == [f"{n}.jpg" for n in range(ROWS)]


def test_a_split_takes_each_row_once(folder):
    write([KINDS["object"](n) for n in range(ROWS)])
    train = prepared("--valid-fraction", "0.5")
    with open("clip_dataset_valid.json", encoding="utf-8") as file:
        both = train + json.load(file)
    assert sorted(int(entry["image_path"].partition("#")[2]) for entry in both) == list(range(ROWS))
    assert all(entry["caption"] == f"Hat {int(entry['image_name'][:-4]) // 2}" for entry in both)


def test_a_hugging_face_table_needs_its_preset_alone(folder):
    write([KINDS["object"](n) for n in range(2)])
    clip_prep.main(["--table", "t.parquet", "--preset", "huggingface"])
