"""What leaks leaves the training split, through the command, and the pairs of the audit are readable."""

import json
from pathlib import Path

import pytest

import clip_prep
from clip_finetuning.catalogue.audit import audit, leaks
from clip_finetuning.catalogue.audit_summary import cut_between_words, told_apart
from tests.catalogue.test_audit import add, write


@pytest.fixture
def leaking(tmp_path, monkeypatch):
    """train.json of P0 to P5 with two views each; valid.json has P1's id, a picture of P2 and clean P8; test.json P8."""
    monkeypatch.chdir(tmp_path)
    Path("train").mkdir()
    Path("valid").mkdir()
    train = [add(f"train/{n}.png", n, f"P{n // 2}") for n in range(12)]
    valid = [add("valid/20.png", 20, "P1"), add("valid/4.png", 4, "Q"), add("valid/30.png", 30, "P8")]
    write("train.json", [*train, {"image_path": "train/1.png"}, "no entry"])
    write("valid.json", valid)
    write("test.json", [add("test.png", 31, "P8"), add("test2.png", 32, "P9")])
    return tmp_path


def read(name):
    return json.loads(Path(name).read_text(encoding="utf-8"))


def audited(capsys, *arguments):
    code = clip_prep.main(["--audit", *arguments])
    return code, capsys.readouterr().out


def test_leaking_products_leave_the_training_split(leaking, capsys):
    code, out = audited(capsys, "valid.json", "train.json", "--drop-leaks")
    assert code == 0
    assert "what leaks leaves train.json rather than valid.json" in out
    assert (
        "train_clean.json: 10 of 14 entries; 2 products went: 2 entries because their product is in valid.json (P1); "
        "2 entries because a picture of their product is in valid.json (P2)" in out
    )
    kept = read("train_clean.json")
    assert kept == [
        value for value in read("train.json") if value == "no entry" or value.get("product_id") not in ("P1", "P2")
    ]
    assert not Path("valid_clean.json").exists()
    assert not leaks(audit(["train_clean.json", "valid.json"]))
    assert audited(capsys, "train.json", "valid.json")[0] == 1  # nothing of the files themselves has changed


def test_test_is_the_last_to_lose_anything(leaking, capsys):
    _, out = audited(capsys, "train.json", "test.json", "valid.json", "--drop-leaks")
    assert "what leaks leaves train.json rather than valid.json rather than test.json" in out
    assert (
        "valid_clean.json: 2 of 3 entries; 1 products went: 1 entries because their product is in test.json (P8)" in out
    )
    assert not Path("test_clean.json").exists()
    assert not leaks(audit(["train_clean.json", "valid_clean.json", "test.json"]))


def test_without_leaks_no_file_is_written(leaking, capsys):
    write("valid.json", [add("valid/9.png", 40, "P9")])
    code, out = audited(capsys, "train.json", "valid.json", "--drop-leaks")
    assert (code, "nothing leaks: no file was written" in out) == (0, True)
    assert not list(leaking.glob("*_clean.json"))


def test_a_file_of_which_nothing_would_be_left_is_said(leaking):
    write("train.json", read("valid.json")[:1])
    with pytest.raises(ValueError, match="train.json: all of it is in the other files too; nothing was written"):
        clip_prep.main(["--audit", "train.json", "valid.json", "--drop-leaks"])
    assert not list(leaking.glob("*_clean.json"))


def test_a_cleaned_file_keeps_what_it_says(leaking, capsys):
    odd = add("train/1.png", 50, "P0", "« navy » \ud83d", captions=["a"], more={"x": [1.50]})
    Path("train.json").write_text(json.dumps([odd, add("train/2.png", 51, "P1")]), encoding="utf-8-sig")
    audited(capsys, "train.json", "valid.json", "--drop-leaks")
    assert read("train_clean.json") == [odd]


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["a/b/1.png", "a/b/2.png"], ["1.png", "2.png"]),
        (["train/7/1.png", "valid/7/1.png"], ["train/7/1.png", "valid/7/1.png"]),
        (["x/train/1.png", "x/valid/1.png"], ["train/1.png", "valid/1.png"]),
        (["b/1.png", "a/b/1.png"], ["b/1.png", "a/b/1.png"]),
        (["a/1.png", "a/1.png"], ["1.png"]),
        (["d/t.parquet#1", "d/t.parquet#2"], ["t.parquet#1", "t.parquet#2"]),
        (["x" * 200 + ".png", "y.png"], ["x" * 200 + ".png", "y.png"]),
    ],
)
def test_a_pair_is_shown_by_what_tells_it_apart(paths, shown):
    assert told_apart(paths) == shown


def test_nothing_is_cut_in_a_word_or_a_folder():
    assert cut_between_words("Knit " * 30) == "Knit " * 12 + "..."
    assert cut_between_words("long-folder/" * 30 + "1.png") == "long-folder/" * 4 + "1.png"
    assert cut_between_words("x" * 100) == "x" * 100
