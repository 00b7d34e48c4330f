"""What an audit finds in mappings, and what it makes of damaged ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.catalogue import audit as catalogue_audit
from clip_finetuning.catalogue.audit import MAX_TOKENS, about_tokens, audit, leaks
from clip_finetuning.catalogue.audit_summary import summary
from clip_finetuning.pictures import near_duplicates
from tests.helpers import ROOT


def picture(number, size=(80, 80)):
    """A picture that tells its number."""
    corners = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add(name, image, product, caption=None, **fields):
    """An entry; a number stands for the picture of that number, saved as `name`."""
    if not isinstance(image, str):
        (image if isinstance(image, Image.Image) else picture(image)).save(name)
        image = name
    caption = caption or f"Description of {product}"
    return {
        "image_path": image,
        "image_name": name,
        "caption": caption,
        "category": "TOPS",
        "product_id": product,
    } | fields


def write(name, entries):
    Path(name).write_text(json.dumps(entries), encoding="utf-8")
    return name


def run(folder, *arguments):
    command = [sys.executable, ROOT / "clip_prep.py", "--audit", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True)


@pytest.fixture
def clean(folder):
    """train.json with two products of two views, valid.json with one; nothing wrong with them."""
    write("train.json", [add(f"{n}.png", n, f"P{n // 2}") for n in range(4)])
    write("valid.json", [add(f"{n}.png", n, "P9", category="HATS") for n in (8, 9)])
    return folder


def test_clean_mappings(clean):
    result = run(clean, "train.json", "valid.json")
    assert result.returncode == 0, result.stderr
    assert "train.json: 4 entries, 4 usable, 2 products, 2 captions" in result.stdout
    assert "0  LEAKAGE: products in more than one file" in result.stdout
    report = json.loads((clean / "audit.json").read_text())
    assert report["categories"] == {
        "TOPS": {"train.json": {"images": 4, "products": 2}},
        "HATS": {"valid.json": {"images": 2, "products": 1}},
    }
    assert "2  are not in every file" in result.stdout
    counts = {name: found["count"] for name, found in report.items() if "count" in found}
    assert counts == dict.fromkeys(counts, 0)
    assert len(counts) == 9
    assert not leaks(report)


def test_a_product_in_both_files_is_leakage(clean):
    write("valid.json", [add("9.png", 9, "P1", "Other words"), add("8.png", 8, "P8")])
    result = run(clean, "train.json", "valid.json", "--output", "found/report.json")
    assert result.returncode == 1
    assert "1  LEAKAGE: products in more than one file (P1)" in result.stdout
    assert json.loads((clean / "found" / "report.json").read_text())["leakage"]["products"] == {
        "count": 1,
        "listed": [{"product_id": "P1", "images": {"train.json": ["2.png", "3.png"], "valid.json": ["9.png"]}}],
    }


def test_an_identical_picture_in_both_files_is_leakage(clean):
    write("valid.json", [add("copy.png", 3, "P9")])
    result = run(clean, "train.json", "valid.json")
    assert result.returncode == 1
    assert "1  LEAKAGE: identical pictures in more than one file (3.png = copy.png)" in result.stdout
    assert "1  identical pictures of different products (3.png)" in result.stdout


def test_without_ids_equal_captions_are_one_product(clean):
    for name, numbers in (("train.json", (1, 2)), ("valid.json", (3, 4))):
        write(name, [add(f"{n}.png", n, "", "The same") for n in numbers])
    report = audit(["train.json", "valid.json"])
    assert report["leakage"]["products"]["count"] == 1
    assert report["files"]["train.json"]["products"] == 1
    assert report["captions_of_several_products"]["count"] == 0


def test_one_file_alone_and_three_together(clean):
    assert run(clean, "train.json").returncode == 0
    assert "LEAKAGE" not in run(clean, "train.json").stdout
    write("test.json", [add("8b.png", 8, "P77")])
    report = audit(["train.json", "valid.json", "test.json"])
    assert report["leakage"]["pictures"]["listed"][0]["images"] == {"valid.json": ["8.png"], "test.json": ["8b.png"]}


def test_captions_of_different_products(clean):
    entries = [add(f"{n}.png", n, f"P{n}", "Cotton shirt", captions=["Cotton shirt", f"Shirt {n}"]) for n in range(5)]
    found = audit([write("train.json", entries)])["captions_of_several_products"]
    assert found == {
        "count": 1,
        "listed": [{"caption": "Cotton shirt", "products": ["P0", "P1", "P2"], "product_count": 5}],
    }


def test_pictures_more_than_once_in_a_file(clean):
    entries = [add("1.png", 1, "P1"), add("1.png", 1, "P1"), add("again.png", 1, "P1"), add("2.png", 2, "P2")]
    report = audit([write("train.json", entries), "valid.json"])
    assert report["repeated_pictures"] == {
        "count": 1,
        "listed": [{"images": ["1.png", "1.png", "again.png"], "times": 3}],
    }
    assert report["pictures_of_several_products"]["count"] == 0
    assert not leaks(report)


def test_near_duplicates_by_kind(clean):
    pytest.importorskip("imagehash")
    shapes = [picture(n, (128, 128)) for n in range(3)]
    train = [add(f"a{n}.png", shape, f"P{n}") for n, shape in enumerate(shapes)]
    train += [add("same.jpg", shapes[0], "P0"), add("other.jpg", shapes[1], "P7")]
    valid = [add("larger.png", shapes[2].resize((256, 256)), "P8")]
    report = audit([write("train.json", train), write("valid.json", valid)])
    found = {kind: [pair["images"] for pair in pairs["listed"]] for kind, pairs in report["near_duplicates"].items()}
    assert found == {
        "across_files": [["a2.png", "larger.png"]],
        "other_product": [["a1.png", "other.jpg"]],
        "same_product": [["a0.png", "same.jpg"]],
    }
    assert not leaks(report)  # likeness is a hint, not a proof
    assert "near-duplicate pictures across files (a2.png = larger.png)" in summary(report)


def test_without_imagehash_the_rest_is_audited(clean, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert not near_duplicates.can_fingerprint()
    report = audit(["train.json", "valid.json"])
    assert report["near_duplicates"] is None
    assert "pip install ImageHash" in summary(report)


def test_odd_and_unusable_pictures(clean):
    Path("empty.png").touch()
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("1.png").read_bytes()[:-30])
    entries = [add(name, name, "P1") for name in ("empty.png", "text.png", "cut.png", "absent.png", "../out.png", ".")]
    entries += [add("tiny.png", picture(1, (63, 90)), "P1"), add("long.png", picture(2, (70, 211)), "P1")]
    report = audit([write("train.json", entries)])
    reasons = {reason: found["listed"] for reason, found in report["unreadable_pictures"].items()}
    assert reasons == {
        "empty file": ["empty.png"],
        "missing image": ["absent.png", "../out.png", "."],
        "not an image": ["text.png"],
        "truncated or damaged image": ["cut.png"],
    }
    assert report["tiny_pictures"]["listed"] == [{"image": "tiny.png", "width": 63, "height": 90}]
    assert report["extreme_pictures"]["listed"] == [{"image": "long.png", "width": 70, "height": 211}]
    assert report["files"]["train.json"]["usable"] == 2
    assert "3  unusable pictures: missing image (absent.png, ../out.png, .)" in summary(report)


def test_rows_of_an_hdf5_file(clean):
    h5py = pytest.importorskip("h5py")
    with h5py.File("train.h5", "w") as file:
        file["input_image"] = np.stack([np.asarray(picture(n)) for n in range(3)])
    write("train.json", [add(f"{n}.png", f"train.h5#{n}", f"P{n}") for n in range(4)])
    report = audit(["train.json"])
    assert report["files"]["train.json"]["usable"] == 3
    assert report["unreadable_pictures"]["missing image"]["listed"] == ["train.h5#3"]


def test_entries_that_are_none_are_counted(clean):
    good = add("1.png", 1, 17, category=None, captions="not a list")  # ids as numbers are taken
    entries = [
        good,
        None,
        [good],
        "text",
        {},
        good | {"caption": " "},
        good | {"caption": 3},
        good | {"image_path": []},
    ]
    report = audit([write("train.json", entries)])
    file = report["files"]["train.json"]
    assert (file["entries"], file["usable"], file["products"]) == (8, 1, 1)
    assert file["unusable_entries"] == {
        "no caption": {"count": 2, "listed": [5, 6]},
        "no image_path": {"count": 2, "listed": [4, 7]},
        "not an object": {"count": 3, "listed": [1, 2, 3]},
    }
    assert "3  entries: not an object (1, 2, 3)" in summary(report)


def test_hostile_text_does_not_reach_the_console(clean):
    entries = [add("1.png", 1, "\x1b[2J\nP", "a\0\n" + "long " * 30_000), add("2.png", "a\0b\ud800.png", "P2")]
    result = run(clean, write("train.json", entries))
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "\0" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 300


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"image_path": "1.png", "cap', "bad.json is not valid JSON"),
        (b"", "bad.json is not valid JSON"),
        (b"\xff\xfe\xff", "bad.json is not valid JSON"),
        pytest.param(b"[" * 200_000, "bad.json is not valid JSON", id="nested"),
        (b'{"1.png": "caption"}', "bad.json holds a dict; it must be a list"),
        (b"3", "bad.json holds a int; it must be a list"),
    ],
)
def test_damaged_json_is_one_line(clean, content, words):
    Path("bad.json").write_bytes(content)
    result = run(clean, "train.json", "bad.json")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert not Path("audit.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.json"], "absent.json does not exist"),
        (["train.json", "./train.json"], "train.json is named twice"),
        (["train.json", "--output", "train.json"], "--output train.json is one of the files"),
        (["train.json", "--split", "train"], "--split does not go with --audit"),
        (["train.json", "--hdf5", "a.h5"], "not allowed with argument"),
    ],
)
def test_wrong_arguments_are_one_line(clean, arguments, words):
    before = Path("train.json").read_bytes()
    result = run(clean, *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert Path("train.json").read_bytes() == before


def test_several_processes_find_the_same(clean):
    entries = [add(f"{n}.png", n, f"P{n}") for n in range(40)]
    entries += [add(f"{n}.png", f"missing/{n}.png", f"P{n}") for n in range(600)]
    write("train.json", entries)
    assert audit(["train.json", "valid.json"], num_workers=2) == audit(["train.json", "valid.json"])


def test_a_list_of_findings_is_bounded_and_their_count_exact(clean, monkeypatch):
    monkeypatch.setattr(catalogue_audit, "LISTED", 4)
    report = audit([write("train.json", [add("x", f"no/{n}.png", "P") for n in range(30)])])
    found = report["unreadable_pictures"]["missing image"]
    assert (found["count"], len(found["listed"])) == (30, 4)


CAPTIONS = [  # with what open_clip's tokenizer makes of them, its two marks included
    ("Long sleeve panelled cotton jersey t-shirt in black and white. Ribbed knit crewneck collar and cuffs.", 25),
    ('Approx. 12" length x 8.5" height x 6" width.', 19),
    ("Veste droite en laine mélangée à chevrons, col cranté, deux poches passepoilées", 29),
]


def test_long_captions_are_estimated(clean):
    for caption, tokens in CAPTIONS:
        assert abs(about_tokens(caption) / tokens - 1) < 0.15
    long = " ".join([CAPTIONS[0][0]] * 5)
    found = audit([write("train.json", [add("1.png", 1, "P1", long), add("2.png", 2, "P2")])])[
        "captions_over_77_tokens"
    ]
    assert found == {"count": 1, "listed": [{"tokens_about": about_tokens(long), "caption": long}]}
    assert about_tokens(long) > MAX_TOKENS
