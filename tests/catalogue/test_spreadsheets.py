"""Excel workbooks."""

import sys
import zipfile

import pytest

from tests.helpers import read_table

openpyxl = pytest.importorskip("openpyxl")
HEADER = ["id", "text", "photo"]


def write(path, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"Sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_rows_of_a_sheet(tmp_path):
    long = 'Two\nlines, "quoted" & <3 _x000D_ 漢'
    rows = [
        HEADER,
        [1, "Hat", "1.jpg"],
        [],
        [2.5, long, "1.jpg", "more"],
        [True, "x", "1.jpg"],
        [4, "#N/A", "1.jpg"],
        [5],
    ]
    write(tmp_path / "t.xlsx", rows)
    read, skipped, remarks = read_table(tmp_path, "t.xlsx", None)
    assert [(row.product_id, row.captions[0]) for row in read] == [("1", "Hat"), ("2.5", 'Two lines, "quoted" & <3 漢')]
    assert skipped == {
        "product id is true or false": ["t.xlsx:5"],
        "blank caption": ["t.xlsx:6"],
        "no image name": ["t.xlsx:7"],
    }
    assert remarks == [
        "1 rows have cells in columns without a name, which are not read (t.xlsx:4: more)",
        "1 rows have a cell that is an error of Excel's, such as #N/A, which counts as blank (t.xlsx:6)",
    ]


def test_the_sheet_and_the_header_that_have_the_columns(tmp_path):
    write(tmp_path / "t.xlsx", [["Read me"]], [["Our products"], [], HEADER, [1, "Hat", "1.jpg"]], [HEADER])
    read, skipped, remarks = read_table(tmp_path, "t.xlsx", None)
    assert ([row.captions[0] for row in read], skipped) == (["Hat"], {})
    assert remarks == [
        "sheet Sheet 1 was read, not Sheet 0, Sheet 2",
        "the header is row 3 of the sheet; what stands above it was not read",
    ]
    write(tmp_path / "t.xlsx", [["name", "picture"], ["Hat", "1.jpg"]])
    with pytest.raises(ValueError, match="no column photo; it has name, picture"):
        read_table(tmp_path, "t.xlsx", None)


def test_a_file_that_says_it_is_smaller_than_it_is(tmp_path):
    write(tmp_path / "whole.xlsx", [HEADER, *([n, "Hat", "1.jpg"] for n in range(50))])
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as whole, zipfile.ZipFile(tmp_path / "t.xlsx", "w") as cut:
        assert b'ref="A1:C51"' in whole.read("xl/worksheets/sheet1.xml")
        for name in whole.namelist():
            cut.writestr(name, whole.read(name).replace(b'ref="A1:C51"', b'ref="A1:B2"'))
    assert len(read_table(tmp_path, "t.xlsx", None)[0]) == 50


def test_a_damaged_workbook_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not a readable Excel workbook"):
        read_table(tmp_path, "t.xlsx", b"PK no")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[xlsx\]"'):
        read_table(tmp_path, "t.xlsx", b"PK no")
