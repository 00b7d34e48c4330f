"""Verdicts of people: from the file of disputed pairs and back, whatever a spreadsheet made of it; one line for each fault."""

import numpy as np
import pytest

from clip_finetuning.retrieval import judgements
from clip_finetuning.retrieval.positives import one_to_one
from clip_finetuning.runtime import spreadsheet
from tests.helpers import embedded_catalogue

HEADER = ("verdict", "caption", "image_key", "image_product")
ROWS = [
    ("right", "caption of P0", "000000003", "P1"),
    ("wrong", "Caption  of p0", "000000006", "P2"),
    ("", "=x", "1", ""),
]


def file_of(folder, rows=ROWS, name="j.csv", header=HEADER):
    (folder / name).write_text(spreadsheet.written(header, rows), encoding="utf-8")
    return folder / name


def test_verdicts_are_found_by_caption_and_key(tmp_path):
    found = judgements.read([file_of(tmp_path)], embedded_catalogue())
    assert [column.tolist() for column in (*found.right, *found.wrong)] == [[0], [3], [0], [6]]
    assert (found.blank, found.unknown) == (1, 0)
    assert found.sentence() == (
        "1 judged pairs count as hits, 1 are misses in every truth; not used: 1 without a verdict"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";").encode("utf-8"),
        lambda text: text.replace(",", "\t").encode("utf-16"),
        lambda text: text.removeprefix("\ufeff").replace("\r\n", "\n").encode("cp1252"),
        lambda text: text.replace("verdict,caption", "Verdict ,CAPTION").replace("right,", " RIGHT,").encode(),
        lambda text: (text + ",,,\r\n\r\n").encode(),
    ],
)
def test_what_a_spreadsheet_saves_is_read(tmp_path, change):
    path = file_of(
        tmp_path, [("right", "caption of P0", "000000003", "P1"), ("wrong", "caption of P1", "000000000", "P0")]
    )
    expected = judgements.read([path], embedded_catalogue())
    path.write_bytes(change(path.read_text(encoding="utf-8")))
    found = judgements.read([path], embedded_catalogue())
    assert found.fingerprint == expected.fingerprint and len(found.right[0]) == 1


@pytest.mark.parametrize("text", ["=1+1", "+a", "-5", "@x", "'=x", "''", "'a", 'a,b"c', "\tx", ""])
def test_no_cell_is_a_formula_and_every_text_comes_back(tmp_path, text):
    path = file_of(tmp_path, [("right", text, "k", "p")])
    assert (
        not path.read_text(encoding="utf-8").splitlines()[1].split(",")[1].lstrip('"').startswith(spreadsheet.FORMULA)
    )
    ((_, row),) = spreadsheet.read(path, HEADER, "")
    assert row["caption"] == text


def test_several_samples_of_one_key_are_told_by_their_products(tmp_path):
    mine = embedded_catalogue(products=3, views=1)
    mine.image_key[:] = "same"
    rows = [("right", "caption of P0", "same", "P1"), ("right", "caption of P0", "same", "P9")]
    found = judgements.read([file_of(tmp_path, rows)], mine)
    assert found.right[1].tolist() == [1] and found.unknown == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("maybe", "caption of P0", "000000003", "")],
            r"j\.csv:2: the verdict 'maybe' is none; it takes right, wrong or nothing",
        ),
        (
            [("right", "caption of P9", "000000003", "")],
            r"j\.csv: none of the 1 judged captions and pictures are in this data",
        ),
        (
            [ROWS[0], ("wrong", "CAPTION of P0", *ROWS[0][2:])],
            r"j\.csv:3 says wrong of .*j\.csv:2 says right; leave one",
        ),
    ],
)
def test_faults_are_one_line(tmp_path, rows, words):
    with pytest.raises(ValueError, match=words):
        judgements.read([file_of(tmp_path, rows)], embedded_catalogue())


def test_files_that_are_no_judgements_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.csv does not exist; it takes a CSV that --disputed wrote"):
        judgements.read([tmp_path / "absent.csv"], embedded_catalogue())
    with pytest.raises(ValueError, match="lacks the column verdict; it takes a CSV"):
        judgements.read([file_of(tmp_path, [], header=HEADER[1:])], embedded_catalogue())
    (tmp_path / "j.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="lacks the column caption, image_key, verdict"):
        judgements.read([tmp_path / "j.csv"], embedded_catalogue())


def test_files_contradict_each_other_too(tmp_path):
    files = [file_of(tmp_path), file_of(tmp_path, [("wrong", *ROWS[0][1:3])], "k.csv", HEADER[:3])]
    with pytest.raises(ValueError, match=r"k\.csv:2 says wrong .*j\.csv:2 says right"):
        judgements.read(files, embedded_catalogue())


def test_judged_pairs_in_a_protocols_terms():
    """Texts 5 and 7 have one caption; images 4 and 9 are in the gallery at 1 and 0."""
    captions = np.array([0, 1, 2, 3, 4, 5, 6, 5])
    keys = judgements.keys_in(
        (np.array([7, 5, 6, 5]), np.array([9, 4, 9, 2])), captions, texts=np.array([6, 5]), images=np.array([9, 4])
    )
    assert keys.tolist() == [0, 2, 3]
    joined = judgements.with_judged(one_to_one(2), keys, 2)
    assert [joined.of(query).tolist() for query in range(2)] == [[0], [0, 1]]
