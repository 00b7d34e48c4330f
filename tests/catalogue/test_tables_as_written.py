"""Property: whatever a writer put into the cells of a table comes back as written, or is counted and said."""

import csv
import random

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_finetuning.catalogue.table import Columns
from clip_finetuning.runtime.text import text_of
from tests.helpers import read_table

QUICK = settings(
    max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
# What makes trouble, more of what makes some, and any text at all.
TEXTS = st.lists(
    st.one_of(
        st.text(alphabet=",;\t|\n\r'\"\\ abNé漢0.<&", max_size=12),
        st.text(alphabet='a,"\n', max_size=6),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    ),
    min_size=1,
    max_size=6,
)
DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|:^"),
        "quotechar": st.sampled_from('""\''),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]),
        "doublequote": st.booleans(),
        "escapechar": st.sampled_from([None, "\\"]),
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
    }
)
HEADER = ["id", "text", "photo"]


def check(folder, name, texts, **options):
    """Each text is the caption of its row, is skipped, or a remark says that something was made of it."""
    rows, skipped, remarks = read_table(folder, name, None, keep_markup=True, **options)
    back = {row.product_id: row.captions[0] for row in rows}
    assert len(rows) + sum(map(len, skipped.values())) >= len(texts)
    for number, text in enumerate(map(text_of, texts)):
        assert back.get(f"P{number}", "") == text or remarks or skipped, (text, back)
    return sum(back.get(f"P{number}") == text_of(text) for number, text in enumerate(texts))


@QUICK
@given(dialect=DIALECTS, texts=TEXTS)
def test_a_table_of_pythons_csv(tmp_path, dialect, texts):
    with open(tmp_path / "t.csv", "w", encoding="utf-8", newline="") as file:
        try:
            writer = csv.writer(file, **dialect)
            writer.writerow(HEADER)
            writer.writerows([f"P{number}", text, "1.jpg"] for number, text in enumerate(texts))
        except csv.Error:  # the dialect cannot say it
            return
    check(tmp_path, "t.csv", texts)


@QUICK
@given(texts=TEXTS, delimiter=st.sampled_from(",;\t|"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_a_table_that_is_quoted_as_usual_comes_back_whole(tmp_path, texts, delimiter, quoting):
    texts = [text.replace("\\", "/").replace("'", "`") for text in texts]  # they say nothing in such a table
    with open(tmp_path / "t.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        writer.writerow(HEADER)
        writer.writerows([f"P{number}", text, "1.jpg"] for number, text in enumerate(texts))
    said = [text for text in texts if text_of(text)]
    assert check(tmp_path, "t.csv", texts) == len(said)


def writers(pandas):
    return {
        ".csv": lambda frame, path: frame.to_csv(path, index=False),
        ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
        ".json": lambda frame, path: frame.to_json(
            path, orient=random.Random(len(frame)).choice(["records", "columns"])
        ),
        ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
        ".xlsx": lambda frame, path: frame.to_excel(path, index=False),
    }


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx"])
def test_a_table_of_pandas(tmp_path, suffix):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip({".parquet": "pyarrow", ".xlsx": "openpyxl"}.get(suffix, "csv"))
    path = tmp_path / f"t{suffix}"

    @settings(QUICK, max_examples=8 if suffix == ".xlsx" else 12)
    @given(texts=TEXTS)
    def comes_back(texts):
        if suffix == ".xlsx":  # a workbook holds no control characters, and takes "=1" for a formula
            texts = ["".join(c for c in text if c.isprintable() or c in "\n\t").lstrip("=") for text in texts]
        frame = pandas.DataFrame(
            {"id": [f"P{n}" for n in range(len(texts))], "text": texts, "photo": ["1.jpg"] * len(texts)}
        )
        writers(pandas)[suffix](frame, path)
        whole = check(tmp_path, path.name, texts)
        if suffix not in (".csv", ".tsv"):
            assert whole == sum(map(bool, map(text_of, texts)))

    comes_back()


# ----------------------------------------------------------------------------------------------- damaged files

SOUND = {
    "t.csv": b'id,text,photo\nP1,"Soft ""hat"", red\nand 1, 2",1.jpg\nP2,24" desk,1.jpg\n',
    "t.tsv": "id\ttext\tphoto\nP1\tSoft\\\that\t1.jpg\nP2\t男士衬衫\t1.jpg\n".encode("gbk"),
    "w.csv": "id,text,photo\nP1,Écharpe &amp; <b>x</b>,1.jpg\n".encode("utf-16"),
    "t.jsonl": b'{"id": 1, "text": "Hat", "photo": "1.jpg", "d": 1.5}\n{"id": [2], "text": ["Cap"], "photo": "1.jpg"}\n',
    "t.json": b'[{"id": 1, "text": "Hat", "photo": "1.jpg"}, {"id": 2, "text": "Cap", "photo": "1.jpg"}]',
}
PIECES = [
    b'"',
    b"'",
    b"\n",
    b"\r",
    b"\0",
    b"\\",
    b",",
    b"\xff",
    b"\xef\xbb\xbf",
    b"[[[",
    b"{",
    b"1e999999",
    b"&#0;",
    b"<p ",
]


@st.composite
def damaged(draw):
    name = draw(st.sampled_from(sorted(SOUND)))
    data = SOUND[name]
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 9))
        data = data[:at] + draw(st.sampled_from([*PIECES, b""])) + data[at + length :]
    return name, data


@settings(QUICK, max_examples=60)
@given(file=damaged(), encoding=st.sampled_from([None, None, None, "gbk", "utf-16", "utf-7", "cp037"]))
def test_a_damaged_table_is_read_or_is_one_error(tmp_path, file, encoding):
    try:
        read_table(tmp_path, *file, Columns("photo", ("text",), product="id"), encoding=encoding)
    except ValueError as error:
        assert file[0] in str(error) or "--encoding" in str(error)
