"""The two rankings of an index: exact as the evaluator's, approximate by a scan; folding, categories, damage."""

import json
import os
import sqlite3

import numpy as np
import pytest

from clip_finetuning.retrieval import ranking
from clip_finetuning.retrieval.positives import by_group
from clip_finetuning.search import build, folder, scan
from clip_finetuning.search.database import Store, write_items
from clip_finetuning.search.index import Index
from clip_finetuning.search.reading import Row, content_of

DIMENSIONS = 8


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_index(place, vectors, products=None, categories=None, contents=None, renewed=False):
    """An index of these vectors, pictures of one product each unless `products` says otherwise."""
    vectors = unit(vectors)
    products = products or [f"P{n}" for n in range(len(vectors))]
    categories = categories or ["TOPS"] * len(vectors)
    contents = contents or [content_of(f"picture {n}") for n in range(len(vectors))]
    rows = [
        Row(f"{n:09d}", product, category, "", f"caption of {product}", content)
        for n, (product, category, content) in enumerate(zip(products, categories, contents))
    ]
    place.mkdir(exist_ok=True)
    store = Store(place, "model")
    first = {row.content: n for n, row in reversed(list(enumerate(rows)))}
    store.add("picture", list(first), vectors[list(first.values())], [b"jpeg of %d" % n for n in first.values()])
    captions = {content_of(row.caption): n for n, row in enumerate(rows)}
    store.add("caption", list(captions), vectors[list(captions.values())])
    counts = {"embedded": len(rows), "again_in_fp32": 0, "skipped": {}, "guessed": {}}
    about = {"name": "tiny", "hash": "model", "precision": "fp32"}
    old = Index.open(place) if renewed and (place / folder.ABOUT).exists() else None
    build.renew(place, old, store, rows, counts, about, vectors.shape[1])
    return Index.open(place)


def keys(hits):
    return [hit.image_key for hit in hits]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_exact_is_the_evaluators_ranking_of_all_pictures(tmp_path, random):
    vectors = random.normal(size=(300, DIMENSIONS))
    vectors[250:] = vectors[:50]  # equal scores, of other products
    queries = unit(random.normal(size=(7, DIMENSIONS)))
    index = make_index(tmp_path / "index", vectors)
    wanted, scores = ranking.top_items(queries, unit(vectors), 300)
    hits = index.search(queries, 300, exact=True, views=True)
    assert [[int(key) for key in keys(row)] for row in hits] == wanted.tolist()
    assert np.allclose([[hit.score for hit in row] for row in hits], scores, atol=1e-6)


def test_a_positive_stands_where_the_evaluator_ranks_it(tmp_path, random):
    vectors, queries = random.normal(size=(60, DIMENSIONS)), unit(random.normal(size=(5, DIMENSIONS)))
    products = [f"P{n // 3}" for n in range(60)]
    index = make_index(tmp_path / "index", vectors, products)
    positives = by_group(np.arange(5), np.arange(60) // 3)  # of query n: the views of product n
    ranks = ranking.rank_positives(queries, unit(vectors), positives).best
    hits = index.search(queries, 60, exact=True, views=True)
    assert [[hit.product_id for hit in row].index(f"P{n}") + 1 for n, row in enumerate(hits)] == ranks.tolist()


def test_each_product_comes_once_by_its_best_picture(tmp_path):
    vectors = [[1, 0.3], [1, 0.1], [1, 0], [1, 0.2]]
    index = make_index(tmp_path / "index", vectors, ["A", "A", "B", "B"])
    for exact in (True, False):
        [hits] = index.search(unit([[1, 0]]), 10, exact=exact)
        assert [(hit.product_id, hit.image_key) for hit in hits] == [("B", "000000002"), ("A", "000000001")]
        assert hits[0].score == pytest.approx(1.0) and hits[0].caption == "caption of B"


def test_a_category_admits_its_products_alone_and_still_fills_the_answer(tmp_path, random):
    vectors = random.normal(size=(200, DIMENSIONS))
    categories = ["SHOES" if n % 20 == 0 else "TOPS" for n in range(200)]
    index = make_index(tmp_path / "index", vectors, categories=categories)
    query = unit(random.normal(size=(1, DIMENSIONS)))
    for exact in (True, False):
        [hits] = index.search(query, 10, "SHOES", exact)
        assert len(hits) == 10 and {hit.category for hit in hits} == {"SHOES"}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert index.categories() == ["SHOES", "TOPS"]
    with pytest.raises(ValueError, match="no category 'SHOE'; near ones: SHOES"):
        index.search(query, 10, "SHOE")


@pytest.mark.parametrize(
    "queries, top, message",
    [
        (np.ones((1, 3)), 5, "another model's query"),
        (np.ones(DIMENSIONS), 5, "another model's query"),
        (np.full((1, DIMENSIONS), np.nan), 5, "NaN or infinity"),
        (np.ones((1, DIMENSIONS)), 0, "top=0 is not allowed"),
    ],
)
def test_what_is_no_query_is_refused(tmp_path, random, queries, top, message):
    index = make_index(tmp_path / "index", random.normal(size=(5, DIMENSIONS)))
    with pytest.raises(ValueError, match=message):
        index.search(queries, top)


# ------------------------------------------------------------------------------------------------------- the scan


@pytest.fixture
def small_scans(monkeypatch):
    """Scans for indexes of a test's size."""
    monkeypatch.setattr(build, "SCAN_FROM", 100)
    monkeypatch.setattr(scan, "FARTHEST", 2)
    monkeypatch.setattr("clip_finetuning.search.index.SCORED", 10)


def clustered(random, products=200, views=4):
    centres = random.normal(size=(products, DIMENSIONS))
    return np.repeat(centres, views, axis=0) + 0.05 * random.normal(size=(products * views, DIMENSIONS))


def test_the_scan_answers_as_all_scores_do(tmp_path, random, small_scans, monkeypatch):
    products = [f"P{n // 4}" for n in range(800)]
    index = make_index(tmp_path / "index", clustered(random), products, ["A", "B", "B", "B"] * 200)
    assert index.about["scan"]["recall"] >= 0.99 and index.about["scan"]["queries"] == 200
    queries = unit(random.normal(size=(20, DIMENSIONS)))
    monkeypatch.setattr(Index, "_scored", scored_few)
    few = index.search(queries, 5), index.search(queries, 5, "B")
    exact = index.search(queries, 5, exact=True), index.search(queries, 5, "B", exact=True)
    found = [len(set(keys(a)) & set(keys(b))) for one, other in zip(few, exact) for a, b in zip(one, other)]
    assert np.mean(found) >= 4.9
    assert {hit.category for hits in few[1] for hit in hits} == {"B"}


def scored_few(index, query, rows):
    """The way of the scan: never all rows."""
    assert rows is not None and len(rows) <= 400
    return index.vectors[rows] @ query


def test_pictures_of_one_code_are_one_entry_and_all_found(tmp_path, random, small_scans):
    contents = [content_of(str(n % 150)) for n in range(300)]
    vectors = np.tile(random.normal(size=(150, DIMENSIONS)), (2, 1))
    index = make_index(tmp_path / "index", vectors, contents=contents)
    assert index.scan is not None and len(index.scan) <= 150
    [hits] = index.search(unit(vectors[7:8]), 2)
    assert keys(hits) == ["000000007", "000000157"] and hits[0].score == hits[1].score


def test_many_copies_do_not_crowd_out_the_others(tmp_path, random, small_scans):
    """Three hundred products share a placeholder's vector; each of them comes, and what is next to it too."""
    vectors = np.concatenate([np.tile(random.normal(size=(1, DIMENSIONS)), (300, 1)), clustered(random, 200, 1)])
    index = make_index(tmp_path / "index", vectors)
    for top in (10, 310):
        [few], [exact] = (index.search(unit(vectors[:1]), top, exact=exact) for exact in (False, True))
        assert keys(few)[:300] == keys(exact)[:300] and len(set(keys(few)) & set(keys(exact))) >= 0.99 * top


def test_a_scan_that_finds_too_little_is_not_used(tmp_path, random, small_scans, monkeypatch):
    monkeypatch.setattr(scan, "REACHES", (1,))
    index = make_index(tmp_path / "index", random.normal(size=(300, DIMENSIONS)))
    assert index.scan is None and index.about["scan"]["reach"] is None and index.about["scan"]["recall"] <= 0.5
    query = unit(random.normal(size=(1, DIMENSIONS)))
    [few], [exact] = index.search(query, 10), index.search(query, 10, exact=True)
    assert keys(few) == keys(exact)


def test_a_quantiser_is_kept_while_it_knows_most_pictures(tmp_path, random, small_scans, monkeypatch):
    trained, calls = scan.trained, []
    monkeypatch.setattr(scan, "trained", lambda vectors: calls.append(len(vectors)) or trained(vectors))
    vectors = clustered(random, 150, 1)
    for pictures, made, fresh in ((100, 1, 0), (110, 1, 10), (120, 1, 20), (140, 2, 0), (120, 2, 0)):
        index = make_index(tmp_path, vectors[:pictures], renewed=True)
        assert (len(calls), index.about["scan"]["fresh"]) == (made, fresh), pictures
        [hits] = index.search(unit(vectors[pictures - 1 : pictures]), 1)
        assert keys(hits) == [f"{pictures - 1:09d}"]


def test_a_quantiser_that_finds_too_little_by_now_is_replaced(tmp_path, random, small_scans, monkeypatch):
    make_index(tmp_path, clustered(random, 150, 1)[:100])
    tuned, asked = scan.tuned, []

    def poor_at_first(*arguments):
        asked.append(arguments)
        return scan.Tuning(None, 0.5, 10) if len(asked) == 1 else tuned(*arguments)

    monkeypatch.setattr(scan, "tuned", poor_at_first)
    index = make_index(tmp_path, clustered(random, 150, 1)[:101], renewed=True)
    assert len(asked) == 2 and index.about["scan"]["fresh"] == 0 and index.scan is not None


# -------------------------------------------------------------------------------------------------------- damage


def files_of(place):
    return folder.generation(place, folder.read_about(place))


@pytest.mark.parametrize("name", sorted(folder.NEEDED))
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_file_is_refused_by_name(tmp_path, random, name, damage):
    make_index(tmp_path, random.normal(size=(40, DIMENSIONS)))
    path = files_of(tmp_path) / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    if damage == "gone":
        path.unlink()
    what = {"cut": "cut short", "changed": "is damaged", "gone": "cannot be read"}[damage]
    with pytest.raises(ValueError, match=rf"{name} .*{what}.*make it again"):
        Index.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1}, {"generation": "../elsewhere"}, {"generation": None}, {"model": {"name": "a"}}, {"model": 3},
        {"model": {"name": "a", "hash": "b", "precision": "fp8"}}, {"counts": {"pictures": "many"}}, {"counts": None},
        {"model": {"name": "a", "hash": "b", "precision": "fp32", "seed": "x"}},
        {"model": {"name": "a", "hash": "b", "precision": "fp32", "checkpoint": 3}},
        {"files": {}}, {"files": {name: {"bytes": 1} for name in folder.NEEDED}},
    ],
)  # fmt: skip
def test_an_index_json_that_says_something_else_is_refused(tmp_path, random, change):
    make_index(tmp_path, random.normal(size=(4, DIMENSIONS)))
    about = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match="make it again"):
        Index.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"'])
def test_an_index_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is (damaged|not of format 2)"):
        Index.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Index.open(tmp_path / "nowhere")


def test_arrays_that_bring_code_are_not_read(tmp_path, random):
    make_index(tmp_path, random.normal(size=(4, DIMENSIONS)))
    place = files_of(tmp_path)
    np.save(place / folder.VECTORS, np.array([print], dtype=object))
    about = folder.read_about(tmp_path)
    about["files"][folder.VECTORS] = folder.describe(place / folder.VECTORS)
    (tmp_path / "index.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"vectors\.npy (cannot be read|does not hold)"):
        Index.open(tmp_path)


@pytest.mark.parametrize("column", [2, 3])
def test_rows_that_name_what_is_not_there_are_refused(tmp_path, random, column):
    make_index(tmp_path, random.normal(size=(4, DIMENSIONS)))
    place = files_of(tmp_path)
    rows = np.load(place / folder.ROWS)
    rows[1, column] = 1000
    np.save(place / folder.ROWS, rows)
    about = folder.read_about(tmp_path)
    about["files"][folder.ROWS] = folder.describe(place / folder.ROWS)
    (tmp_path / "index.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="names categories or captions that are not there"):
        Index.open(tmp_path)


def test_thumbnails_that_a_killed_run_left_half_written_are_taken_back(tmp_path, random):
    make_index(tmp_path, random.normal(size=(4, DIMENSIONS)))
    if not (child := os.fork()):
        file = sqlite3.connect(tmp_path / "pictures.sqlite", isolation_level=None)
        file.execute("PRAGMA cache_size = 2")
        file.execute("BEGIN")
        file.executemany("INSERT INTO thumbnails VALUES (?, ?)", ((n, b"x" * 3000) for n in range(300)))
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "pictures.sqlite-journal").stat().st_size
    assert Index.open(tmp_path).picture("000000002") == b"jpeg of 2"


def test_a_thumbnail_is_found_by_its_key(tmp_path, random):
    index = make_index(tmp_path, random.normal(size=(4, DIMENSIONS)))
    assert index.picture("000000002") == b"jpeg of 2"
    with pytest.raises(KeyError):
        index.picture("../../etc/passwd")


def test_full_disks_and_damage_are_told_apart(tmp_path):
    (tmp_path / "pictures.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        Store(tmp_path, "model")
    with pytest.raises(OSError, match="the index is as it was"):
        write_items(tmp_path / "nowhere" / "items.sqlite", [], [], [])


def test_near_duplicates_are_the_same_by_the_scan_and_by_all_scores(tmp_path, random, small_scans, monkeypatch):
    from clip_finetuning.search import mine

    vectors = clustered(random, 200, 1)
    vectors[100:110] = vectors[:10] + 0.001 * random.normal(size=(10, DIMENSIONS))
    index = make_index(tmp_path, vectors)

    def pairs():
        found = [zip(first.tolist(), second.tolist()) for first, second, _ in mine._close_pairs(index, 0.999)]
        return sorted(pair for some in found for pair in some)

    by_scan = pairs()
    monkeypatch.setattr(index, "scan", None)
    assert by_scan == pairs() and {(n, 100 + n) for n in range(10)} <= set(by_scan)


def test_a_scan_that_does_not_fit_is_refused(tmp_path, random, small_scans):
    make_index(tmp_path, clustered(random))
    codes = files_of(tmp_path) / folder.CODES
    for array in (np.zeros((3, 2), np.uint8), np.zeros((800, 9), np.uint8), np.zeros((800, 2), np.float32)):
        np.save(codes, array)
        about = folder.read_about(tmp_path)
        about["files"][folder.CODES] = folder.describe(codes)
        (tmp_path / "index.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=r"codes\.npy does not (fit|hold).*make it again"):
            Index.open(tmp_path)
