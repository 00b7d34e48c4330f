"""search_clip.py from the command line: indexes that are made, renewed, stopped and refused, and what they answer."""

import csv
import json
import resource

import numpy as np
import pytest
from PIL import Image, ImageDraw

import search_clip
from clip_finetuning.search import build
from clip_finetuning.search.index import Index
from tests.helpers import (
    ROOT,
    catalogue_sample,
    contents,
    encoded_picture,
    entry,
    parsed_page,
    write_config,
    write_mapping,
    write_shard,
)
from tests.processes import run_ranks

MODEL = ["--model-pretrained", "", "--num-workers", "0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The flags of a tiny model."""
    return ["--model-name", write_config(tmp_path_factory.mktemp("model")), *MODEL]


def write_folder(folder, pictures=6):
    """PNGs in two folders, two of a product."""
    for number in range(pictures):
        place = folder / ("shoes" if number % 2 else "tops")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(encoded_picture(number, file_format="PNG"))
        (place / f"{number}.txt").write_text(f"caption {number // 2}")
        (place / f"{number}.json").write_text(json.dumps({"product_id": f"P{number // 2}"}))
    return folder


def make(source, output, model, *arguments):
    search_clip.main(["index", str(source), "--output", str(output), *model, *arguments])


def ask(capsys, index, *arguments, model=()):
    """The hits of a query, by --json."""
    capsys.readouterr()
    search_clip.main(["query", str(index), *map(str, arguments), "--json", *MODEL[2:], *model])
    return json.loads(capsys.readouterr().out)


def index_of(place):
    """{image key: vector} of an index."""
    index = Index.open(place)
    keys = [key for key, _ in index.contents_by_key()]
    return dict(zip(keys, index.vectors))


# ------------------------------------------------------------------------------------------------------- sources


def test_shards_are_indexed_with_the_evaluators_own_embeddings(tmp_path, make_shards, model, capsys):
    import evaluate_clip

    pattern = make_shards(tmp_path / "shards", products=8, views=3, shards=2)
    make(pattern, tmp_path / "index", model, "--batch-size", "10")
    said = capsys.readouterr().out
    assert "24 pictures of 8 products in 1 categories: 24 added, 0 changed, 0 removed; 24 embedded now" in said
    saved = tmp_path / "saved.npz"
    output = ["--output", str(tmp_path / "results.json"), "--save-embeddings", str(saved)]
    evaluate_clip.main(["--dataset-path", pattern, *model, "--batch-size", "10", *output])
    with np.load(saved) as file:
        images, texts = file["image_embeddings"], file["text_embeddings"]
        assert json.loads(file["image_key"].tobytes()) == list(index_of(tmp_path / "index"))
    index = Index.open(tmp_path / "index")
    assert np.array_equal(index.vectors, images) and np.array_equal(index.caption_vectors, texts)
    streamed = "::".join(f"pipe:cat {shard}" for shard in sorted(tmp_path.glob("shards.*.tar")))
    make(streamed, tmp_path / "streamed", model)
    assert list(index_of(tmp_path / "streamed")) == list(index_of(tmp_path / "index"))


def test_a_folder_is_read_as_a_shard_that_was_unpacked(tmp_path, model, capsys):
    folder = write_folder(tmp_path / "pictures")
    (folder / "alone.jpg").write_bytes(encoded_picture(99))
    (folder / ".hidden.jpg").write_bytes(encoded_picture(98))
    (folder / "notes.pdf").write_bytes(b"%PDF")
    make(folder, tmp_path / "index", model)
    said = capsys.readouterr().out
    assert "7 pictures of 4 products in 2 categories" in said
    assert "2 pictures have no caption beside them" in said and "1 hidden files are left out" in said
    assert "1 pictures left out: not an image" in said
    items = {item["image_key"]: item for item in Index.open(tmp_path / "index").items(range(7))}
    assert items["shoes/3.png"] == {
        "image_key": "shoes/3.png", "product_id": "P1", "caption": "caption 1", "category": "shoes", "subcategory": "",
    }  # fmt: skip
    assert items["alone.jpg"]["product_id"] == "alone.jpg" and items["alone.jpg"]["caption"] == ""


def items_of(place):
    """[(image key, product, caption, category)] of an index."""
    index = Index.open(place)
    names = ("image_key", "product_id", "caption", "category")
    return [tuple(item[name] for name in names) for item in index.items(range(len(index)))]


def test_an_index_inside_its_own_folder_is_no_part_of_it(tmp_path, model, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (30, 30), "red").save(folder / "1.png")
    for _ in range(2):
        make(folder, folder / "index", model)
        said = capsys.readouterr()
        assert "not an image" not in said.out + said.err
    assert len(Index.open(folder / "index")) == 1


def test_captions_and_products_come_from_the_fields_that_are_named(tmp_path, model, capsys):
    """Of shards, of a folder that was such a shard, and never of a mapping."""
    fields = ["--caption-key", "meta.title", "--product-key", "sku"]
    records = [{"meta": {"title": f"shoe {n}"}, "sku": n // 2} for n in range(3)] + [{"sku": 7}]
    samples = [
        {f"{n}.jpg": encoded_picture(n), f"{n}.txt": b"no", f"{n}.json": json.dumps(r).encode()}
        for n, r in enumerate(records)
    ]
    write_shard(tmp_path / "a.tar", samples)
    make(tmp_path / "a.tar", tmp_path / "shards", model, *fields)
    assert "1 pictures left out: no text in the .json under CAPTION_KEY" in capsys.readouterr().out
    assert items_of(tmp_path / "shards") == [(str(n), str(n // 2), f"shoe {n}", "") for n in range(3)]
    (tmp_path / "folder").mkdir()
    for name, data in {name: data for files in samples for name, data in files.items()}.items():
        (tmp_path / "folder" / name).write_bytes(data)
    make(tmp_path / "folder", tmp_path / "index", model, *fields)
    assert "1 pictures have no caption beside them" in capsys.readouterr().out
    expected = [(f"{n}.jpg", str(n // 2), f"shoe {n}", "") for n in range(3)] + [("3.jpg", "7", "", "")]
    assert items_of(tmp_path / "index") == expected
    for source in (tmp_path / "a.tar", f"pipe:cat {tmp_path}/a.tar", tmp_path / "folder"):
        with pytest.raises(ValueError, match="^CAPTION_KEY=titel: .* the keys there are meta.title, sku"):
            make(source, tmp_path / "none", model, "--caption-key", "titel")
    mapping = write_mapping(tmp_path / "mapping.json", [entry(tmp_path / "folder" / "0.jpg", 5)])
    make(mapping, tmp_path / "mapped", model, *fields)
    assert "a mapping's own fields are used" in capsys.readouterr().out
    assert items_of(tmp_path / "mapped")[0][1:3] == ("P5", "Caption of product 5")


def test_a_picture_without_caption_keeps_its_product_and_category(tmp_path, model, capsys):
    (tmp_path / "pictures" / "sale").mkdir(parents=True)
    for number, record in enumerate([{"product_id": "P1", "category": "SHOES"}, {"product_id": "P1"}, [], None]):
        (tmp_path / "pictures" / "sale" / f"{number}.jpg").write_bytes(encoded_picture(number))
        if record is not None:
            (tmp_path / "pictures" / "sale" / f"{number}.json").write_text(json.dumps(record))
    make(tmp_path / "pictures", tmp_path / "index", model)
    said = capsys.readouterr().out
    assert "4 pictures have no caption beside them, 2 of them no product either" in said
    assert "1 guessed: damaged .json and no caption beside it" in said
    assert [(product, category) for _, product, _, category in items_of(tmp_path / "index")] == [
        ("P1", "SHOES"), ("P1", "sale"), ("sale/2.jpg", "sale"), ("sale/3.jpg", "sale"),
    ]  # fmt: skip


def test_a_mapping_is_read_with_what_it_leaves_out(tmp_path, model, capsys):
    paths = [tmp_path / "data" / f"{n}.png" for n in range(3)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths[:2]):
        path.write_bytes(encoded_picture(number, file_format="PNG"))
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded_picture(5))
    entries = [*(entry(path, number) for number, path in enumerate(paths)), {"caption": "no picture"}, 7]
    mapping = write_mapping(tmp_path / "mapping.json", [*entries, entry(outside, 9)])
    make(mapping, tmp_path / "index", model, "--data-dir", str(tmp_path / "data"))
    said = capsys.readouterr().out
    assert "2 pictures of 2 products" in said
    for reason in ("missing image", "no image_path", "not an object", "image outside --data-dir"):
        assert f"1 pictures left out: {reason}" in said
    make(mapping, tmp_path / "index", model, "--data-dir", str(tmp_path / "data"), "--allow-outside")
    assert "3 pictures of 3 products in 1 categories: 1 added" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- renewed


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures the model has seen, call by call."""
    from clip_finetuning.model import clip_model

    encode, seen = clip_model.encode_images, []

    def counted(model, images):
        seen.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(clip_model, "encode_images", counted)
    return seen


def test_only_new_and_changed_pictures_are_embedded_again(tmp_path, model, capsys, embedded):
    folder, place = write_folder(tmp_path / "pictures"), tmp_path / "index"
    make(folder, place, model)
    assert sum(embedded) == 6
    before, generation = index_of(place), json.loads((place / "index.json").read_text())["generation"]
    make(folder, place, model)
    assert sum(embedded) == 6 and json.loads((place / "index.json").read_text())["generation"] == generation

    (folder / "tops" / "0.png").write_bytes(encoded_picture(70, file_format="PNG"))  # changed
    (folder / "shoes" / "1.png").unlink()  # removed
    (folder / "tops" / "2.png").rename(folder / "tops" / "renamed.png")
    (folder / "new.jpg").write_bytes(encoded_picture(71))
    (folder / "shoes" / "3.txt").write_text("another caption")
    capsys.readouterr()
    make(folder, place, model)
    assert sum(embedded) == 8
    assert "2 added, 1 changed, 2 removed; 2 embedded now" in capsys.readouterr().out
    after = index_of(place)
    assert sorted(after) == [
        "new.jpg", "shoes/3.png", "shoes/5.png", "tops/0.png", "tops/4.png", "tops/renamed.png",
    ]  # fmt: skip
    assert np.array_equal(after["tops/renamed.png"], before["tops/2.png"])
    assert not np.array_equal(after["tops/0.png"], before["tops/0.png"])
    index = Index.open(place)
    assert "another caption" in index.captions() and len(index.caption_vectors) == len(index.captions())
    assert Image.open(place_of(tmp_path, index.picture("new.jpg"))).format == "JPEG"
    assert len(list(place.glob("generation-*"))) == 1 and not (place / "pending.sqlite").exists()


def place_of(folder, data):
    (folder / "thumbnail").write_bytes(data)
    return folder / "thumbnail"


def test_a_run_that_was_stopped_goes_on_and_leaves_the_old_index_until_then(tmp_path, model, monkeypatch, embedded):
    folder, place = write_folder(tmp_path / "pictures", 4), tmp_path / "index"
    make(folder, place, model)
    old = index_of(place)
    write_folder(folder, 12)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(build, "renew", killed)
        make(folder, place, model, "--batch-size", "3")
    assert index_of(place).keys() == old.keys()
    assert sum(embedded) == 12
    make(folder, place, model, "--batch-size", "3")
    assert sum(embedded) == 12 and len(index_of(place)) == 12


@pytest.mark.parametrize("moment", ["remove_other_generations", "publish"])
def test_a_run_that_ends_between_its_last_steps_leaves_one_of_both_indexes(tmp_path, model, monkeypatch, moment):
    folder, place = write_folder(tmp_path / "pictures", 4), tmp_path / "index"
    make(folder, place, model)
    write_folder(folder, 6)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"clip_finetuning.search.folder.{moment}", killed)
        make(folder, place, model)
    assert len(index_of(place)) == 4
    make(folder, place, model)
    assert len(index_of(place)) == 6 and len(list(place.glob("generation-*"))) == 1


def test_a_full_disk_leaves_the_old_index_as_it_was(tmp_path, model):
    folder, place = write_folder(tmp_path / "pictures", 4), tmp_path / "index"
    make(folder, place, model)
    before = {name: data for name, data in contents(place).items() if name.startswith(("index", "gen"))}
    write_folder(folder, 40)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(OSError):
            make(folder, place, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = contents(place)
    assert {name: after[name] for name in before} == before and len(index_of(place)) == 4
    make(folder, place, model)
    assert len(index_of(place)) == 40


def test_an_index_of_another_model_is_made_anew_aloud(tmp_path, model, capsys, caplog, embedded):
    folder, place = write_folder(tmp_path / "pictures", 4), tmp_path / "index"
    make(folder, place, model)
    make(folder, place, [*model, "--precision", "auto"])
    assert sum(embedded) == 4 and not caplog.text
    make(folder, place, [*model, "--seed", "7"])
    assert sum(embedded) == 8
    assert "is of another model or precision: every picture is embedded again" in caplog.text
    assert "0 pictures left out" not in capsys.readouterr().out


def test_a_damaged_index_is_made_anew_aloud(tmp_path, model, caplog):
    folder, place = write_folder(tmp_path / "pictures", 4), tmp_path / "index"
    make(folder, place, model)
    next(place.glob("*/vectors.npy")).write_bytes(b"cut")
    make(folder, place, model)
    assert "cut short or longer than it was: every picture is embedded again" in caplog.text
    assert len(index_of(place)) == 4


def test_an_index_of_an_older_version_is_refused_and_made_anew_aloud(tmp_path, model, caplog, capsys):
    folder, place = write_folder(tmp_path / "pictures", 4), tmp_path / "index"
    make(folder, place, model)
    about = json.loads((place / "index.json").read_text())
    (place / about["generation"] / "graph.old").write_bytes(b"graph")
    (place / "index.json").write_text(json.dumps(about | {"format": 1}))
    with pytest.raises(ValueError, match=r"index\.json is not of format 2, which this version reads; make it again"):
        ask(capsys, place, "red")
    make(folder, place, model)
    assert "is not of format 2, which this version reads: every picture is embedded again" in caplog.text
    assert len(index_of(place)) == 4 and not list(place.glob("*/graph.old"))


def test_two_runs_do_not_write_one_index(tmp_path, model):
    folder, place = write_folder(tmp_path / "pictures", 2), tmp_path / "index"
    place.mkdir()
    with build._locked(place), pytest.raises(ValueError, match="another run is writing the index"):
        make(folder, place, model)


def test_keys_that_come_twice_are_told_apart(tmp_path, model, capsys):
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", [catalogue_sample(3, shard) | {"000000003.jpg": encoded_picture(shard)}])
    make(f"{tmp_path}/{{0..1}}.tar", tmp_path / "index", model)
    assert sorted(index_of(tmp_path / "index")) == ["000000003", "000000003#2"]
    assert "1 pictures have the key of another one" in capsys.readouterr().out


def test_several_processes_make_the_same_index(tmp_path, make_shards, model):
    pattern = make_shards(tmp_path / "shards", products=6, views=2, shards=2)
    make(pattern, tmp_path / "one", model, "--batch-size", "6")
    arguments = [pattern, "--output", tmp_path / "two", *model, "--batch-size", "6"]
    done = run_ranks(ROOT / "search_clip.py", "index", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("12 pictures of 6 products") == 1
    one, two = index_of(tmp_path / "one"), index_of(tmp_path / "two")
    assert list(one) == list(two) and np.allclose(list(one.values()), list(two.values()), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def index(tmp_path_factory, model):
    """The index of twelve pictures, one of them with a caption that is a script."""
    folder = write_folder(tmp_path_factory.mktemp("catalogue") / "pictures", 12)
    (folder / "tops" / "0.txt").write_text("<script>alert(1)</script> & more")
    make(folder, folder.parent / "index", model)
    return folder.parent / "index"


def test_words_and_pictures_find_products(index, capsys):
    photo = index.parent / "pictures" / "tops" / "6.png"
    [first, *others] = ask(capsys, index, "--image", photo, "--top", 4)
    assert list(first) == ["product_id", "score", "image_key", "caption", "category"]
    assert first["product_id"] == "P3" and first["image_key"] == "tops/6.png"
    assert first["score"] == pytest.approx(1.0, abs=1e-5) and len(others) == 3
    assert len({hit["product_id"] for hit in [first, *others]}) == 4
    by_words = ask(capsys, index, "caption 2", "--top", 6)
    both = ask(capsys, index, "caption 2", "--image", photo, "--top", 6)
    assert len({json.dumps(hits) for hits in (by_words, both, ask(capsys, index, "--image", photo, "--top", 6))}) == 3
    exact = ask(capsys, index, "caption 2", "--top", 6, "--exact")
    assert [hit["image_key"] for hit in exact] == [hit["image_key"] for hit in by_words]
    views = ask(capsys, index, "caption 2", "--top", 12, "--all-views", "--category", "shoes")
    assert len(views) == 6 and {hit["category"] for hit in views} == {"shoes"}


def test_an_answer_is_printed_and_shown_on_a_page_without_script(index, tmp_path, capsys):
    sheet = tmp_path / "sheet.html"
    search_clip.main(["query", str(index), "<b>red</b>", "--top", "6", "--sheet", str(sheet), *MODEL[2:]])
    printed = capsys.readouterr().out
    assert f"page written to {sheet}" in printed and len(printed.splitlines()) == 7
    page = parsed_page(sheet.read_text(encoding="utf-8"))
    assert not page.find("script") and not page.find("b")
    assert page.find("h1")[0].text == "<b>red</b>" and len(page.find("li")) == 6
    assert all(image.attributes["src"].startswith("data:image/jpeg;base64,") for image in page.find("img"))


def test_mining_finds_what_was_planted(tmp_path, model, capsys):
    folder = write_folder(tmp_path / "pictures", 12)
    (folder / "tops" / "copy.png").write_bytes((folder / "shoes" / "7.png").read_bytes())
    (folder / "tops" / "copy.txt").write_text("=HYPERLINK(1)")
    small = Image.open(folder / "shoes" / "9.png").resize((36, 43), Image.Resampling.BICUBIC)
    small.save(folder / "tops" / "scaled.png")
    make(folder, tmp_path / "index", model)
    output = tmp_path / "found"
    search_clip.main(["mine", str(tmp_path / "index"), "--output", str(output), "--similarity", "0.999", "--top", "50"])
    with open(f"{output}.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = {(row["finding"], *sorted([row["image_key"], row["other_image_key"]])) for row in rows[:2]}
    assert pairs == {
        ("near-duplicate: the same file", "shoes/7.png", "tops/copy.png"),
        ("near-duplicate: nearly the same pixels", "shoes/9.png", "tops/scaled.png"),
    }
    assert "'=HYPERLINK(1)" in {row["caption"] for row in rows} | {row["other_caption"] for row in rows}
    kinds = {row["finding"].partition(":")[0] for row in rows}
    assert kinds == {"near-duplicate", "contradicts its caption", "contradicts its category"}
    ranks = [int(row["score"]) for row in rows if row["finding"].startswith("contradicts its caption")]
    assert ranks == sorted(ranks, reverse=True) and ranks[-1] > 1
    page = parsed_page((tmp_path / "found.html").read_text(encoding="utf-8"))
    assert not page.find("script") and len(page.find("li")) == len(rows)
    assert "1 the same file, 1 nearly the same pixels" in capsys.readouterr().out


def test_a_clock_of_another_hour_is_not_nearly_the_same_pixels(tmp_path, model, capsys):
    for number, hand in enumerate([(96, 20), (20, 96)]):
        clock = Image.new("RGB", (192, 192), "white")
        ImageDraw.Draw(clock).line([(96, 96), hand], fill="black", width=8)
        (tmp_path / "clocks").mkdir(exist_ok=True)
        clock.save(tmp_path / "clocks" / f"{number}.png")
    make(tmp_path / "clocks", tmp_path / "index", model)
    search_clip.main(["mine", str(tmp_path / "index"), "--output", str(tmp_path / "mine"), "--similarity", "0.01"])
    assert "0 the same file, 0 nearly the same pixels, 1 alike" in capsys.readouterr().out
    page = (tmp_path / "mine.html").read_text()
    assert "by tiny-test.json (" in page and str(tmp_path) not in page


def test_vectors_are_exported_for_a_server(tmp_path, model, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    make(write_folder(tmp_path / "pictures", 4), tmp_path / "index", model, "--export", "parquet")
    table = pq.read_table(tmp_path / "index" / "vectors.parquet")
    assert table.column_names == ["image_key", "product_id", "category", "subcategory", "caption", "vector"]
    vectors = index_of(tmp_path / "index")
    assert table["image_key"].to_pylist() == list(vectors)
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), np.array(list(vectors.values())))
    assert table.schema.metadata[b"model_hash"].decode() == Index.open(tmp_path / "index").about["model"]["hash"]


# ------------------------------------------------------------------------------------------------------- refused


def test_a_model_that_is_not_the_indexs_is_refused(index, tmp_path, capsys):
    about = json.loads((index / "index.json").read_text())
    about["model"]["seed"] = 1
    (tmp_path / "index.json").write_text(json.dumps(about))
    for name in (about["generation"], "pictures.sqlite"):
        (tmp_path / name).symlink_to(index / name)
    with pytest.raises(ValueError, match="made with another model than .* by --checkpoint"):
        ask(capsys, tmp_path, "red")
    about["model"]["name"] = "hf-hub:somebody/else"
    (tmp_path / "index.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="would be fetched; if you trust that, set MODEL_NAME"):
        ask(capsys, tmp_path, "red")


def test_what_cannot_be_asked_is_refused_in_one_line(index, tmp_path, capsys):
    (tmp_path / "notes.jpg").write_text("no picture")
    for arguments, message in [
        (["  "], "the query is empty"),
        (["--image", tmp_path / "notes.jpg"], r"notes\.jpg: not an image"),
        (["--image", tmp_path / "nowhere.jpg"], r"nowhere\.jpg: missing image"),
        (["red", "--category", "hats"], "no category 'hats'; near ones: tops"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask(capsys, index, *arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["query", "index"], "query needs words, or --image FILE, or both"),
        (["index", "pictures"], "--output is missing"),
        (["query", "index", "red", "--top", "0"], "--top 0 is not allowed"),
        (["query", "index", "red", "--port", "80"], "query takes no --port; it belongs to serve"),
        (["mine", "index", "--similarity", "2"], "--similarity 2.0 is not allowed"),
        (["serve", "index", "--port", "70000"], "--port 70000 is not allowed"),
        (["find", "index"], "invalid choice: 'find'"),
    ],
)
def test_a_mistaken_command_line_ends_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        search_clip.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_a_source_without_pictures_is_no_index(tmp_path, model, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").mkdir()
    (tmp_path / "text.jpg" / "none.jpg").write_text("no picture")
    for source, message in ((tmp_path / "empty", "the source is empty"), (tmp_path / "text.jpg", "1 not an image")):
        with pytest.raises(ValueError, match=message):
            make(source, tmp_path / "index", model)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        ask(capsys, tmp_path / "index", "red")
    with pytest.raises(FileNotFoundError, match="no shard matches"):
        make(tmp_path / "nowhere", tmp_path / "index", model)
