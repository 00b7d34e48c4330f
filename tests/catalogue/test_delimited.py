"""CSV and TSV as shops write them: every row is there, whole, or its line is counted."""

import pytest

from clip_finetuning.catalogue import delimited
from clip_finetuning.catalogue.table import Columns
from tests.helpers import read_table

ROWS = 100


def table(line, header="id,text,photo", end="\n"):
    """A header and line(1), line(2), ... line(100)."""
    return header + end + "".join(line(number) + end for number in range(1, ROWS + 1))


def captions(read):
    rows, skipped, _ = read
    assert not skipped
    return [row.captions[0] for row in rows]


def remark_of(read, words):
    """The one remark with these words."""
    (found,) = [remark for remark in read[2] if words in remark]
    return found


@pytest.mark.parametrize(
    ("opening", "closing"),
    [((20, 60), ()), ((20,), (60,)), ((20,), (21,)), ((20, 21, 22), ()), ((100,), ()), ((1,), ())],
)
@pytest.mark.parametrize(("suffix", "sign"), [(".tsv", "\t"), (".csv", ","), (".csv", ";")])
@pytest.mark.parametrize("picture", ["1.jpg", "https://shop.example/1.jpg?v=2", "img_000{}"])
def test_a_lone_quote_swallows_no_row(tmp_path, suffix, sign, opening, closing, picture):
    def line(number):
        title = '"' * (number in opening) + f"Title {number}" + '"' * (number in closing)
        return sign.join((f"P{number}", title, picture.format(number)))

    data = table(line, sign.join(("id", "text", "photo")))
    rows, skipped, remarks = read_table(tmp_path, f"t{suffix}", data)
    titles = [row.captions[0] for row in rows]
    lost = sum(map(len, skipped.values()))  # of pictures that are URLs or not there
    assert len(rows) + lost == ROWS
    assert set(skipped) <= {"missing image", "image is a URL (--download DIR fetches it)"}
    if picture == "1.jpg":
        assert [title.strip('"') for title in titles] == [f"Title {number}" for number in range(1, ROWS + 1)]
        assert titles[opening[0] - 1] == f'"Title {opening[0]}' + '"' * (opening[0] in closing)
    assert any("stray or unusual quotes" in remark and f"t{suffix}:{opening[0] + 1}" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('24" monitor', '24" monitor'),
        ('"24" monitor, wide"', '24" monitor, wide'),
        ('"Monitor, 24""', 'Monitor, 24"'),
        ('"Monitor, 24"""', 'Monitor, 24"'),
        ('"Nice" bag', '"Nice" bag'),
        ('"2\\" seam, red"', '2" seam, red'),
        ('"seam, 2\\""', 'seam, 2"'),
        ('2\\" seam', '2" seam'),
        ("a\\, b", "a, b"),
        ("a\\\nb", "a b"),
        ("'It''s, soft'", "It's, soft"),
        ("'Nike'", "'Nike'"),
        ("It's", "It's"),
        (' "Red, soft"', "Red, soft"),
        ('"A hat,\nred, with ""brim""\n\nand more"', 'A hat, red, with "brim" and more'),
        ('"Desk 24" wide\nsecond, line"', 'Desk 24" wide second, line'),
        ('"dir\\"', "dir\\"),
        ("a; b|c", "a; b|c"),
        ('""', ""),
    ],
)
def test_a_cell_says_what_its_writer_meant(tmp_path, cell, text):
    columns = Columns("photo", ("text", "also"), product="id")
    read = read_table(tmp_path, "t.csv", table(lambda n: f"P{n},{cell},{n},1.jpg", "id,text,also,photo"), columns)
    assert captions(read) == [text or str(n) for n in range(1, ROWS + 1)]


def test_a_cell_between_others_that_are_written_otherwise(tmp_path):
    odd = {7: '"24" desk, wide"', 8: '"2\\" seam, red"', 9: '"A hat,\n1, 2\n3, 4"', 10: "Plain"}
    soft = '"Soft, {}"'
    read = read_table(tmp_path, "t.csv", table(lambda n: f"P{n},{odd.get(n, soft.format(n))},1.jpg"))
    assert captions(read)[5:11] == [
        "Soft, 6",
        '24" desk, wide',
        '2" seam, red',
        "A hat, 1, 2 3, 4",
        "Plain",
        "Soft, 11",
    ]
    assert "t.csv:8:" in remark_of(read, "1 rows have stray or unusual quotes")
    assert "t.csv:9:" in remark_of(read, "1 rows had backslashes that escape")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "\x01", "^", "~", ":"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_delimiter_is_the_one_that_makes_the_columns(tmp_path, delimiter, end):
    data = table(
        lambda n: delimiter.join((f"P{n}", "Soft ,;\t| wool".replace(delimiter, ""), "1.jpg")),
        delimiter.join(("id", "text", "photo")),
        end,
    )
    for first in ("", f"sep={delimiter}{end}" if delimiter != "\x01" else "", end):
        assert len(set(captions(read_table(tmp_path, "t.csv", first + data)))) == 1


def test_missing_cells_are_blank_and_surplus_empty_ones_nothing(tmp_path):
    lines = ["1.jpg,a,Hats,A1", "1.jpg,b", "1.jpg,c,,,,", "1.jpg,d,Hats,A2, ,", "1.jpg,e,Hats,A3,more", "1.jpg", ",,,"]
    data = "\n".join(["photo,text,kind,id", *lines]) + "\n"
    columns = Columns("photo", ("text",), product="id", category="kind")
    rows, skipped, remarks = read_table(tmp_path, "t.csv", data, columns)
    assert [(row.captions[0], row.category, row.product_id[:8]) for row in rows] == [
        ("a", "Hats", "A1"),
        ("b", "", "caption-"),
        ("c", "", "caption-"),
        ("d", "Hats", "A2"),
    ]
    assert skipped == {"wrong number of cells": ["t.csv:6"], "no image name": ["t.csv:8"], "blank caption": ["t.csv:7"]}
    assert any("2 rows have fewer cells than the header" in remark and "t.csv:3" in remark for remark in remarks)


def test_what_no_reading_makes_right_is_counted_line_by_line(tmp_path):
    lines = [
        'P1,"a,b,1.jpg',
        "P2,b,1.jpg",
        'P3,"x, y", z,1.jpg',
        "P4,d,1.jpg",
        'P5,"open, and, on',
        "for, ever, and, on",
    ]
    rows, skipped, _ = read_table(tmp_path, "t.csv", "\n".join(["id,text,photo", *lines]) + "\n")
    assert [row.product_id for row in rows] == ["P2", "P4"]
    assert sorted(line for lines in skipped.values() for line in lines) == ["t.csv:2", "t.csv:4", "t.csv:6", "t.csv:7"]


def test_a_quote_that_stays_open_is_given_up_after_many_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "FIRST_LINES", 5)
    data = 'photo,text\n1.jpg,"x\n' + "1.jpg,y\n" * 1500
    rows, skipped, remarks = read_table(tmp_path, "t.csv", data, Columns("photo", ("text",)))
    assert (len(rows), skipped, rows[0].captions) == (1501, {}, ('"x',))
    long = 'photo,text\n1.jpg,"x\n' + "line\n" * 900 + 'end"\n1.jpg,y\n'
    rows, skipped, remarks = read_table(tmp_path, "t.csv", long, Columns("photo", ("text",)))
    assert (len(rows), skipped, remarks, len(rows[0].captions[0].split())) == (2, {}, [], 902)


def test_backslashes_that_may_mean_two_things_are_said(tmp_path):
    read = read_table(tmp_path, "t.csv", table(lambda n: f"P{n},C:\\\\dir,1.jpg"))
    assert set(captions(read)) == {"C:\\\\dir"}
    assert remark_of(read, "backslashes").startswith(
        "100 rows have backslashes before quotes or backslashes, which are text"
    )
    read = read_table(tmp_path, "t.csv", table(lambda n: f'P{n},"a \\"b\\", c",1.jpg'))
    assert remark_of(read, "backslashes").startswith("100 rows had backslashes that escape")


@pytest.mark.parametrize("null", ["\\N", "NULL", "#N/A", "n/a", "#REF!"])
def test_null_of_a_database_or_a_spreadsheet_is_blank(tmp_path, null):
    rows, _, _ = read_table(tmp_path, "t.tsv", table(lambda n: f"{null}\tHat\t1.jpg", "id\ttext\tphoto"))
    assert {row.product_id[:8] for row in rows} == {"caption-"}
