"""Pictures that are rows of a Parquet file, read as they are needed."""

import pytest

from clip_finetuning.pictures import stored
from clip_finetuning.pictures.decode import PictureError, read_source
from clip_finetuning.pictures.stored import StoredRow, file_of, stored_row

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path, rows, group=7):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.fixture
def table(tmp_path):
    """products.parquet of 50 rows: `image` is an object, `raw` plain bytes, `views` a list of objects."""
    rows = [
        {
            "image": {"bytes": b"%d." % n * (n + 1), "path": f"{n}.jpg"},
            "raw": b"raw %d" % n,
            "views": [{"bytes": b"view %d.%d" % (n, k), "path": None} for k in range(n % 3)],
        }
        for n in range(50)
    ]
    rows[3] |= {"image": None, "raw": None, "views": None}
    rows[4]["image"] = {"bytes": None, "path": "4.jpg"}
    return write(tmp_path / "products.parquet", rows)


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("a/f.h5#12", StoredRow("a/f.h5", 12)),
        ("f.hdf5#0", StoredRow("f.hdf5", 0)),
        ("a/p.parquet#12", StoredRow("a/p.parquet", 12)),
        ("P.PARQUET#12.3", StoredRow("P.PARQUET", 12, None, 3)),
        ("p.parquet#back:12", StoredRow("p.parquet", 12, "back")),
        ("p.parquet#a:b#1:12.0", StoredRow("p.parquet", 12, "a:b#1", 0)),
        ("p.parquet#x", None),
        ("p.parquet#-1", None),
        ("look#3", None),
        ("f.h5#1.2", None),
    ],
)
def test_what_a_path_says(path, row):
    assert stored_row(path) == row
    assert file_of(path) == (row.file if row else path)


def test_rows_in_any_order(table):
    for row in (0, 49, 20, 21, 20, 6, 7, 13, 48, 5):
        assert read_source(f"{table}#image:{row}") == b"%d." % row * (row + 1)
        assert read_source(f"{table}#raw:{row}") == b"raw %d" % row
    assert read_source(f"{table}#views:5.1") == b"view 5.1"


def test_the_only_column_of_pictures_needs_no_name(tmp_path):
    picture = {"bytes": b"picture", "path": None}
    path = write(tmp_path / "p.parquet", [{"image": picture, "key": b"bytes that are none", "text": "x"}])
    assert read_source(f"{path}#0") == b"picture"
    plain = write(tmp_path / "plain.parquet", [{"jpg": b"picture", "text": "x"}])
    assert read_source(f"{plain}#0") == b"picture"


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ("image:50", "missing image"),
        ("image:3", "missing image"),
        ("image:4", "missing image"),
        ("raw:3", "missing image"),
        ("views:3.0", "missing image"),
        ("views:1.1", "missing image"),
        ("views:1", "missing image"),
        ("image:1.0", "missing image"),
        ("absent:1", "unreadable file"),
        ("99999999999999999999", "unreadable file"),
        ("1", "unreadable file"),  # which column?
    ],
)
def test_what_is_not_there_has_a_reason(table, mark, reason):
    with pytest.raises(PictureError) as caught:
        read_source(f"{table}#{mark}")
    assert caught.value.reason == reason


def test_a_file_that_is_none_has_a_reason(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut")
    for name, reason in {"cut.parquet#0": "unreadable file", "absent.parquet#0": "missing image"}.items():
        with pytest.raises(PictureError) as caught:
            read_source(f"{tmp_path}/{name}")
        assert caught.value.reason == reason


def test_pictures_outside_the_folder_are_refused(table, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(PictureError, match="outside"):
        read_source(f"{table}#image:0", tmp_path / "in")
    assert read_source(f"{table}#image:0", tmp_path)


def test_few_rows_are_in_memory_at_a_time(tmp_path, monkeypatch):
    """Also of one large row group, as pandas writes it; ascending rows are one pass."""
    monkeypatch.setattr(stored, "READ", 10_000)
    path = write(tmp_path / "p.parquet", [{"image": bytes([n]) * 1000} for n in range(200)], group=200)
    column = stored.ParquetColumn(str(path))
    sizes, begins = [], []
    for row in range(0, 200, 3):
        assert column.value(row) == bytes([row]) * 1000
        sizes.append(len(column._batch))
        begins.append(column._begin)
    assert max(sizes) <= 10
    assert begins == sorted(begins)
