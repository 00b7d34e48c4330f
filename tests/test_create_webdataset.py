"""JSON mapping -> shards, through the command line."""

import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.catalogue.rows import caption_id
from tests.helpers import (
    ROOT,
    contents,
    entry,
    png_header,
    read_records,
    read_samples,
    run_create,
    shards_in,
    write_catalogue,
    write_mapping,
    write_shards,
)


def test_the_documented_lines(tmp_path):
    mapping = write_catalogue(tmp_path, products=14)
    out, _ = run_create("--json", mapping, "--output-dir", tmp_path / "out", "--shard-size", 6, "--num-workers", 2)
    assert "Shard pattern: clip_dataset_valid.{000000..000006}.tar" in out.splitlines()
    assert "Created 7 shards with 42 samples" in out
    assert "VALID_DATASET_PATTERN" in out
    assert [path.name for path in shards_in(tmp_path / "out")] == [f"clip_dataset_valid.{n:06d}.tar" for n in range(7)]
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {
        f"clip_dataset_valid.{n:06d}.tar": 6 for n in range(7)
    }


def test_a_sample_has_picture_caption_and_metadata(tmp_path):
    mapping = write_catalogue(tmp_path, products=1)
    write_shards(mapping, tmp_path / "out", "--no-shuffle")
    (key, sample), *_ = read_samples(*shards_in(tmp_path / "out")).items()
    assert (key, set(sample)) == ("000000000", {"jpg", "txt", "json"})
    assert sample["txt"].decode() == "Caption of product 0"
    assert json.loads(sample["json"]) == {"product_id": "P0", "category": "TOPS", "image_name": "0_0.png"}
    assert sample["jpg"].startswith(b"\xff\xd8")


def test_views_of_a_product_stay_together_and_products_are_shuffled(tmp_path):
    mapping = write_catalogue(tmp_path)
    write_shards(mapping, tmp_path / "a", "--shard-size=4")
    places = defaultdict(set)
    for path in shards_in(tmp_path / "a"):
        for record in read_records(path):
            places[record["product_id"]].add(path.name)
    assert len(places) == 10 and all(len(where) == 1 for where in places.values())
    order = list(dict.fromkeys(record["product_id"] for record in read_records(*shards_in(tmp_path / "a"))))
    assert order != sorted(order)
    write_shards(mapping, tmp_path / "b", "--shard-size=4", "--seed=7")
    assert order != list(dict.fromkeys(record["product_id"] for record in read_records(*shards_in(tmp_path / "b"))))


def test_no_shuffle_keeps_the_order(tmp_path):
    mapping = write_catalogue(tmp_path)
    write_shards(mapping, tmp_path / "out", "--no-shuffle", "--shard-size=4")
    names = [record["image_name"] for record in read_records(*shards_in(tmp_path / "out"))]
    assert names == [entry["image_name"] for entry in json.loads(mapping.read_text())]


def test_the_bytes_do_not_depend_on_processes(tmp_path):
    mapping = write_catalogue(tmp_path)
    write_shards(mapping, tmp_path / "one", "--shard-size=4")
    run_create("--json", mapping, "--output-dir", tmp_path / "three", "--shard-size=4", "--num-workers=3")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_sizes_of_other_data_sets_stay(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sizes.json").write_text('{"theirs-000000.tar": 5}')
    write_shards(write_catalogue(tmp_path, 4), out, "--shard-size=6")
    write_shards(write_catalogue(tmp_path, 2, name="clip_dataset_train"), out, "--shard-size=6")
    assert json.loads((out / "sizes.json").read_text()) == {
        "theirs-000000.tar": 5,
        "clip_dataset_train.000000.tar": 6,
        "clip_dataset_valid.000000.tar": 6,
        "clip_dataset_valid.000001.tar": 6,
    }


def test_max_shards_and_dataset_name(tmp_path, capsys):
    write_shards(write_catalogue(tmp_path), tmp_path / "out", "--shard-size=4", "--max-shards=1", "--dataset-name=few")
    assert [path.name for path in shards_in(tmp_path / "out")] == ["few.000000.tar"]
    assert "Shard pattern: few.{000000..000000}.tar" in capsys.readouterr().out


def test_every_entry_is_in_a_shard_or_skipped_with_its_reason(tmp_path, capsys):
    good = json.loads(write_catalogue(tmp_path, 2).read_text())
    picture = good[0]["image_path"]
    files = {"empty.jpg": b"", "page.jpg": b"<html>", "cut.png": Path(picture).read_bytes()[:150]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    bad = [entry(tmp_path / name, 7) for name in files]
    bad += ["text", None, 5, ["list"]]
    bad += [{}, {"image_path": 5}, entry("", 8) | {"image_path": ""}]
    bad += [entry(picture, 8, caption=caption) for caption in (None, 5, "", " \n ", "\0\x01", ["a"])]
    bad += [entry(tmp_path / "absent.png", 9), entry("a\0b.png", 9), entry("a\ud800.png", 9)]
    write_shards(write_mapping(tmp_path / "clip_dataset_valid.json", good + bad), tmp_path / "out")
    printed = capsys.readouterr().out
    reasons = {
        "empty file": 1,
        "not an image": 1,
        "truncated or damaged image": 1,
        "not an object": 4,
        "no image_path": 3,
        "no caption": 6,
        "missing image": 1,
        "unreadable file": 2,
    }
    for reason, count in reasons.items():
        assert f"skipped {count}: {reason} (" in printed
    assert sum(reasons.values()) == len(bad)
    assert len(read_samples(*shards_in(tmp_path / "out"))) == len(good)


def test_captions_are_one_line_of_utf8(tmp_path):
    picture = json.loads(write_catalogue(tmp_path, 1).read_text())[0]["image_path"]
    captions = {
        "a\nb\r\n\tc": "a b c",
        "nul\0inside": "nul inside",
        "👗 dress ⛄": "👗 dress ⛄",
        "lone \ud83d half": "lone half",
        "word " * 20_000: ("word " * 20_000).strip(),
    }
    entries = [entry(picture, number, caption=caption) for number, caption in enumerate(captions)]
    write_shards(write_mapping(tmp_path / "hostile.json", entries), tmp_path / "out", "--no-shuffle")
    found = read_samples(*shards_in(tmp_path / "out"))
    assert [sample["txt"].decode() for sample in found.values()] == list(captions.values())


def test_fields_that_are_no_strings(tmp_path):
    picture = json.loads(write_catalogue(tmp_path, 1).read_text())[0]["image_path"]
    fields = {"product_id": 12, "category": {"a": 1}, "subcategory": None, "captions": ["x\ny", 5, "", None]}
    entries = [
        entry(picture, 1, **fields),
        entry(picture, 2, product_id=12.0, captions="none"),
        entry(picture, 3, product_id=["x"]),
    ]
    write_shards(write_mapping(tmp_path / "hostile.json", entries), tmp_path / "out", "--no-shuffle")
    first, second, third = read_records(*shards_in(tmp_path / "out"))
    assert first == {"product_id": "12", "image_name": "0_0.png", "captions": ["x y", "5"]}
    assert (second["product_id"], "captions" in second) == ("12", False)
    assert third["product_id"] == caption_id("Caption of product 3")


def test_the_same_picture_twice_is_two_samples(tmp_path):
    first = json.loads(write_catalogue(tmp_path, 1).read_text())[0]
    write_shards(write_mapping(tmp_path / "twice.json", [first, first]), tmp_path / "out")
    found = read_samples(*shards_in(tmp_path / "out"))
    assert list(found) == ["000000000", "000000001"]


def test_without_a_product_id_equal_captions_are_one_product(tmp_path):
    entries = json.loads(write_catalogue(tmp_path).read_text())
    for record in entries:
        del record["product_id"]
    write_shards(write_mapping(tmp_path / "plain.json", entries), tmp_path / "out", "--shard-size=1")
    assert len(shards_in(tmp_path / "out")) == 10


@pytest.mark.parametrize(
    "data, words",
    [
        (b'{"image_path": "a.png"}', "must be a list"),
        (b'[{"image_path": "a.p', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'[{"image_path": "a.png", "caption": "\xff\xfe"}]', "not valid JSON"),
        pytest.param(b"[" * 100_000, "not valid JSON", id="nested"),
        (b"[]", "no sample"),
        (b'[{"image_path": "absent.png", "caption": "a"}]', "no sample"),
        (b"[1, 2]", "no sample"),
    ],
)
def test_a_mapping_without_a_sample_ends_in_one_line(tmp_path, data, words):
    mapping = tmp_path / "hostile.json"
    mapping.write_bytes(data)
    _, error = run_create("--json", mapping, "--output-dir", tmp_path / "out", code=2)
    assert words in error.splitlines()[-1] and str(mapping) in error
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


def test_a_mapping_that_is_not_there_ends_in_one_line(tmp_path):
    _, error = run_create("--json", tmp_path / "absent.json", "--output-dir", tmp_path / "out", code=2)
    assert len(error.splitlines()) == 1 and "clip_prep.py" in error


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    mapping = write_catalogue(tmp_path, 1)
    mapping.write_bytes(b"\xef\xbb\xbf" + mapping.read_bytes())
    write_shards(mapping, tmp_path / "out")
    assert len(shards_in(tmp_path / "out")) == 1


def test_transparent_and_turned_pictures_reach_the_shard_as_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    entries = [entry(tmp_path / "turned.jpg", 1), entry(tmp_path / "clear.png", 2)]
    write_shards(write_mapping(tmp_path / "seen.json", entries), tmp_path / "out", "--no-shuffle")
    for (key, sample), name in zip(read_samples(*shards_in(tmp_path / "out")).items(), ("turned", "clear")):
        path = tmp_path / f"{name}-{key}.jpg"
        path.write_bytes(sample["jpg"])
        with Image.open(path) as picture:
            if name == "turned":
                assert picture.size == (20, 40) and not picture.getexif()
            else:
                assert picture.getpixel((5, 5)) == (255, 255, 255)


def test_a_plain_jpeg_passes_untouched_and_others_are_encoded(tmp_path, capsys):
    mapping = write_catalogue(tmp_path, 2, file_format="jpg")
    entries = json.loads(mapping.read_text())
    Path(entries[1]["image_path"]).write_bytes(Path(entries[1]["image_path"]).read_bytes()[:-40])
    write_shards(mapping, tmp_path / "out", "--no-shuffle", "--quality=70")
    del entries[1]
    found = read_samples(*shards_in(tmp_path / "out")).values()
    assert [sample["jpg"] for sample in found] == [Path(entry["image_path"]).read_bytes() for entry in entries]
    out = capsys.readouterr().out
    assert "skipped 1: truncated or damaged image" in out and "5 pictures are plain JPEG" in out


@pytest.mark.parametrize(
    "arguments, size", [(["--image-size=20"], (20, 25)), (["--image-size=64"], (32, 40)), ([], (32, 40))]
)
def test_image_size_bounds_the_shorter_side(tmp_path, arguments, size):
    write_shards(write_catalogue(tmp_path, 1), tmp_path / "out", *arguments)
    for sample in read_samples(*shards_in(tmp_path / "out")).values():
        with Image.open(io.BytesIO(sample["jpg"])) as picture:
            assert picture.size == size


def test_crop_margins(tmp_path):
    picture = Image.new("RGB", (60, 60), "white")
    picture.paste((200, 0, 0), (20, 15, 40, 45))
    picture.save(tmp_path / "dress.png")
    mapping = write_mapping(tmp_path / "few.json", [entry(tmp_path / "dress.png", 1)])
    for arguments, size in (
        ((), (60, 60)),
        (("--crop-margins",), (30, 30)),
        (("--crop-margins", "--image-size=15"), (15, 15)),
    ):
        write_shards(mapping, tmp_path / "out", *arguments)
        (sample,) = read_samples(*shards_in(tmp_path / "out")).values()
        with Image.open(io.BytesIO(sample["jpg"])) as cropped:
            assert cropped.size == size


def climbing_entries(folder):
    """Entries of a catalogue in `raw/`, two inside and four that lead to the same picture outside."""
    write_catalogue(folder / "raw", 1)
    outside = folder / "secret.png"
    Image.new("RGB", (8, 8), "red").save(outside)
    (folder / "raw/link.png").symlink_to(outside)
    paths = ["raw/pictures/0_0.png", "pictures/0_1.png"]
    paths += ["raw/../secret.png", "../secret.png", str(outside), "raw/link.png"]
    return write_mapping(folder / "climbing.json", [entry(path, number) for number, path in enumerate(paths)])


def test_pictures_outside_the_data_dir_are_refused(tmp_path):
    mapping = climbing_entries(tmp_path)
    arguments = ["--json", mapping, "--output-dir", "out", "--data-dir", "raw", "--num-workers=0"]
    out, _ = run_create(*arguments, cwd=tmp_path)
    assert "skipped 4: image outside --data-dir (--allow-outside takes it)" in out
    assert len(read_samples(*shards_in(tmp_path / "out"))) == 2
    run_create(*arguments, "--allow-outside", cwd=tmp_path)
    assert len(read_samples(*shards_in(tmp_path / "out"))) == 6


def test_without_a_data_dir_paths_are_the_callers(tmp_path):
    mapping = climbing_entries(tmp_path)
    out, _ = run_create("--json", mapping, "--output-dir", "out", "--no-shuffle", cwd=tmp_path)
    assert "skipped 2: missing image (pictures/0_1.png, ../secret.png)" in out
    assert len(read_samples(*shards_in(tmp_path / "out"))) == 4


def test_a_bomb_costs_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    mapping = write_catalogue(tmp_path, 1)
    write_mapping(mapping, [*json.loads(mapping.read_text()), entry(tmp_path / "bomb.png", 5)])
    code = "import resource, create_webdataset, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
    code += "create_webdataset.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "--json", mapping, "--output-dir", tmp_path / "out", "--num-workers=0"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "skipped 1: decompression bomb" in out


def test_rows_of_an_hdf5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "fashiongen.h5", "w") as file:
        file["input_image"] = pictures
    entries = [entry(f"{tmp_path}/fashiongen.h5#{row}", row) for row in (2, 0, 9)]
    write_shards(write_mapping(tmp_path / "rows.json", entries), tmp_path / "out", "--no-shuffle", "--quality=100")
    found = [Image.open(io.BytesIO(sample["jpg"])) for sample in read_samples(*shards_in(tmp_path / "out")).values()]
    assert len(found) == 2
    for picture, row in zip(found, (2, 0)):
        assert (
            np.abs(
                np.asarray(picture.convert("L"), int) - np.asarray(Image.fromarray(pictures[row]).convert("L"), int)
            ).mean()
            < 3
        )


@pytest.mark.parametrize("argument", ["--image-size=0", "--max-shards=x", "--dataset-name=a/b", "--quality=101"])
def test_a_wrong_value_is_one_line(tmp_path, argument):
    _, error = run_create("--json", "x.json", "--output-dir", tmp_path, argument, code=2)
    assert len(error.splitlines()) == 1 and "is not allowed" in error


def test_knobs_from_the_environment(tmp_path):
    mapping = write_catalogue(tmp_path)
    environment = {**os.environ, "CLIP_SHARD_SIZE": "4", "CLIP_NUM_WORKERS": "0"}
    out, _ = run_create("--json", mapping, "--output-dir", tmp_path / "out", env=environment)
    assert "Shard pattern: clip_dataset_valid.{000000..000004}.tar" in out
