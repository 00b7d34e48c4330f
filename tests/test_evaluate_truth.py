"""Incomplete truth through the scripts: a table with attributes becomes shards, is measured, disputed and judged."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_prep
import create_webdataset
import evaluate_clip
from clip_finetuning.retrieval import embeddings as embeddings_file
from tests.helpers import encoded_picture, parsed_page, write_config, write_shard

pytest.importorskip("imagehash")
NASTY = "=<script>alert('x')</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve products of two views: 0 and 1 are one garment under two ids; attributes of all are equal in pairs."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    rows = []
    for number in range(12):
        for view in range(2):
            random = np.random.default_rng([number - (number == 1), view])
            picture = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            size = (96, 96) if number != 1 else (80, 80)
            picture.resize(size, Image.Resampling.BICUBIC).save(folder / "photos" / f"{number}_{view}.png")
            title = f"{NASTY} coat" if number == 0 else f"coat {number}"
            row = {"photo": f"{number}_{view}.png", "sku": f"P{number}", "kind": "COATS", "title": title}
            rows.append({**row, "colour": f"colour {number // 2}", "size": "" if number == 11 else "M"})
    with open(folder / "products.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_config(folder)
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def measured(folder):
    """Results with all truths, disputed pairs and embeddings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        table = ["--table=products.csv", "--images=photos", "--image-column=photo", "--product-column=sku"]
        columns = ["--category-column=kind", "--caption-column=title", "--split=valid", "--attributes=colour,size"]
        clip_prep.main([*table, *columns])
        shards = ["--json=clip_dataset_valid.json", "--output-dir=shards", "--num-workers=0"]
        create_webdataset.main(shards)
        return evaluate(
            "--truth=all", "--protocol=all", "--disputed=d.csv", "--save-embeddings=e.npz", "--output=r.json"
        )


def evaluate(*more):
    flags = ["--model-name=tiny-test.json", "--model-pretrained=", "--device=cpu", "--precision=fp32", "--batch-size=7"]
    pattern = "shards/clip_dataset_valid.{000000..000000}.tar"
    evaluate_clip.main([*flags, "--num-workers=0", f"--valid-dataset-pattern={pattern}", *more])
    output = next(flag.split("=")[1] for flag in more if flag.startswith("--output="))
    return json.loads(Path(output).read_text())


def test_look_alikes_are_found_by_pictures_and_attributes(measured):
    truth = measured["protocols"]["product"]["truth"]
    assert truth["pairs"] == {"pictures": 4, "captions": 0, "attributes": 20, "all": 20}
    assert "2 samples lack an attribute of their category" in truth["sentence"]
    for way in ("text_to_image", "image_to_text"):
        strict, tolerant, without = (truth[name][way]["recall@5"] for name in ("strict", "tolerant", "without"))
        assert strict == measured["recall@5"][way] and tolerant >= strict and without >= strict


def test_the_embeddings_file_gives_the_same_truths(measured, capsys):
    evaluate_clip.main(["--from-embeddings=e.npz", "--truth=all", "--protocol=product", "--output=f.json"])
    again = json.loads(Path("f.json").read_text())
    expected, found = measured["protocols"]["product"]["truth"], again["protocols"]["product"]["truth"]
    assert found["pairs"] == expected["pairs"]
    assert found["tolerant"]["text_to_image"]["recall@10"] == expected["tolerant"]["text_to_image"]["recall@10"]
    printed = capsys.readouterr().out
    assert "Recall@10 tolerant" in printed and max(map(len, printed.splitlines())) <= 80


def test_attributes_can_be_chosen_and_a_name_that_is_not_there_is_told(measured):
    evaluate_clip.main(
        ["--from-embeddings=e.npz", "--truth=all", "--attributes=size", "--protocol=product", "--output=f.json"]
    )
    pairs = json.loads(Path("f.json").read_text())["protocols"]["product"]["truth"]["pairs"]
    assert pairs["attributes"] == 11 * 20
    with pytest.raises(
        ValueError, match="--attributes hue: no sample of the embeddings file has it; there are colour, size$"
    ):
        evaluate_clip.main(["--from-embeddings=e.npz", "--attributes=hue"])
    with pytest.raises(ValueError, match="--attributes hue: no sample of .*keys there are .*attributes.colour"):
        evaluate("--attributes=hue", "--output=f.json")


def test_disputed_pairs_are_judged_and_then_count(measured, folder):
    with open("d.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    products = {(row["product"], row["image_product"]) for row in rows}
    assert products <= {("P0", "P1"), ("P1", "P0")} and rows
    assert {row["attributes"] for row in rows} == {"colour: colour 0; size: M"}
    assert all(row["caption"].startswith("'=") for row in rows if row["product"] == "P0")  # no formula
    page = Path("d.html").read_text(encoding="utf-8")
    assert NASTY not in page and len(page) < 2e6
    assert len(parsed_page(page).find("fieldset")) == len(rows) and page.count("data:image/jpeg") == 2 * len(rows)
    for row in rows:
        row["verdict"] = "right"
    with open("judged.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    results = evaluate("--judgements=judged.csv", "--truth=tolerant", "--disputed=again.csv", "--output=j.json")
    assert results["judgements"]["right"] == len(rows)
    assert f"{len(rows)} judged pairs count as hits" in results["protocols"]["product"]["protocol"]
    assert len(Path("again.csv").read_text(encoding="utf-8-sig").splitlines()) == 1
    with pytest.raises(ValueError, match="go by other judgements"):
        evaluate_clip.main(["--compare", "r.json", "j.json"])
    with pytest.raises(ValueError, match="go by other judgements"):  # before anything is measured
        evaluate("--judgements=judged.csv", "--baseline=r.json", "--output=k.json")
    evaluate("--judgements=judged.csv", "--baseline=j.json", "--output=k.json")


def test_a_training_evaluation_looks_at_no_picture_twice(measured):
    evaluate("--save-embeddings=plain.npz", "--output=p.json")
    plain = embeddings_file.load("plain.npz")
    assert plain.looks is None and plain.attributes is not None
    assert embeddings_file.load("e.npz").looks.shape == (24, 200)


def test_without_attributes_or_fingerprints_disputed_pairs_are_one_line(tmp_path, measured):
    write_shard(
        tmp_path / "a.000000.tar", [{f"{n}.jpg": encoded_picture(n), f"{n}.txt": b"caption %d" % n} for n in range(4)]
    )
    with pytest.raises(ValueError, match="--disputed goes by attributes, and no sample has any: keep some with"):
        evaluate(f"--dataset-path={tmp_path}/a.{{000000..000000}}.tar", "--disputed=n.csv", "--output=n.json")
    bare = embeddings_file.load("e.npz")
    bare.attributes = None
    embeddings_file.save("bare.npz", bare)
    with pytest.raises(ValueError, match="--disputed goes by attributes, and no sample has any: keep some with"):
        evaluate_clip.main(["--from-embeddings=bare.npz", "--disputed=n.csv", "--output=n.json"])
    assert not Path("n.json").exists()  # told before anything is measured
    evaluate("--save-embeddings=plain.npz", "--output=p.json")
    with pytest.raises(
        ValueError, match="has no fingerprints of them: write it anew with --save-embeddings and --truth all"
    ):
        evaluate_clip.main(["--from-embeddings=plain.npz", "--disputed=n.csv", "--output=n.json"])
    assert not Path("n.json").exists()


def test_wrong_judgements_are_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_clip, "load_model", lambda *_: pytest.fail("a model was loaded"))
    judged, row = tmp_path / "j.csv", "coat 3,000000007,{},P3\n"
    for said, message in (
        (row.format("maybe"), r"j.csv:2: the verdict 'maybe' is none"),
        (row.format("") + row.format("right") + row.format("Wrong"), r"j.csv:4 says wrong of .*j.csv:3 says right"),
    ):
        judged.write_text("caption,image_key,verdict,image_product\n" + said)
        with pytest.raises(ValueError, match=message):
            evaluate(f"--judgements={judged}", "--output=n.json")
    with pytest.raises(FileNotFoundError):
        evaluate("--judgements=nowhere.csv", "--output=n.json")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[near-duplicates\]"$'):
        evaluate("--truth=all", "--output=n.json")


@pytest.mark.parametrize("arguments", [["--disputed=d.html"], ["--truth=lax"], ["--attributes=,"]])
def test_wrong_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit):
        evaluate_clip.main(arguments)
    assert capsys.readouterr().err.count("error: ") == 1
