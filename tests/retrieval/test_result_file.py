"""Result files and candidate lists of others: what tables and pages cannot use is refused in one line."""

import copy
import json
import types

import numpy as np
import pytest

import evaluate_clip
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.result_file import check_candidates, check_results


@pytest.fixture(scope="module")
def embeddings():
    vectors = np.eye(6, dtype=np.float32)
    products = np.array([f"P{number // 2}" for number in range(6)])
    captions = np.array(["<script>alert(1)</script>", 'b" onload="x', "c\ud800", "d\x1b[2J", "e", "f"])
    category = np.array(["<b>TOPS</b>", "a", "a", "a", "a", "a"])
    return Embeddings(vectors, vectors, products, products, captions, captions, category, category, np.arange(6))


@pytest.fixture(scope="module")
def results(embeddings):
    measured = evaluate_clip.measure_embeddings(embeddings, ["product", "pair"], (1, 5, 10))
    return json.loads(json.dumps(measured | {"data": {"fingerprint": "f", "skipped": {"<i>": 1}}}))


def test_the_suites_own_results_pass(results):
    check_results(results)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        (("data",), "x"),
        (("protocols",), []),
        (("protocols", "ev\x1b[2Jil"), {}),
        (("protocols", "product"), 1),
        (("protocols", "product", "image_to_text"), None),
        (("protocols", "product", "text_to_image", "recall@5"), "<script>"),
        (("protocols", "product", "text_to_image", "mrr"), float("nan")),
        (("protocols", "product", "text_to_image", "categories"), 1),
        (("protocols", "product", "text_to_image", "categories", "a", "recall@10"), "<script>"),
        (("protocols", "pair", "text_to_image", "by_product"), None),
        (("protocols", "pair", "text_to_image", "by_product", "queries"), [10**9, "x"]),
        (("protocols", "pair", "text_to_image", "by_product", "category"), [["a"]]),
        (("protocols", "pair", "text_to_image", "by_product", "recall@5"), [0.5]),
        (("protocols", "pair", "text_to_image", "by_product", "recall@5"), ["1", "1", "1"]),
        (("protocols", "pair", "text_to_image", "by_product", "recall@\x1b[2J"), [1, 1, 1]),
    ],
)
def test_a_damaged_or_hostile_result_file_is_refused_in_one_line(tmp_path, results, place, value):
    damaged = copy.deepcopy(results)
    part = damaged
    for key in place[:-1]:
        part = part[key]
    if place:
        part[place[-1]] = value
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(damaged if place else value))
    with pytest.raises(ValueError, match=r"theirs\.json is no result file") as refusal:
        evaluate_clip.load_results(path, None)
    assert str(refusal.value).isprintable()


def test_the_page_shows_foreign_text_as_text(tmp_path, embeddings, results):
    args = types.SimpleNamespace(report=tmp_path / "r.html", seed=0, dataset_path=str(tmp_path / "none.tar"))
    baseline = results | {"name": "<img src=x>.json"}
    model = {"name": "<u>", "weights": "<s>"}
    evaluate_clip.write_report(args, embeddings, results | {"model": model}, baseline)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for tag in ("<script", "<b>TOPS", "<u>", "<s>", "<img src=x", '" onload', "<i>:"):
        assert tag not in page
    assert "&lt;script&gt;" in page and "&lt;b&gt;TOPS" in page


@pytest.mark.parametrize(
    "change",
    [
        {"text_to_image": np.zeros((2, 3))},
        {"text_to_image": np.zeros((5, 6, 4))},
        {"text_to_image": np.full((5, 6, 4), 6)},
        {"text_to_image": np.full((5, 6, 4), -2)},
        {"text_to_image": np.full((5, 6, 4), -1)},
        {"text_to_image": np.zeros((5, 0, 4), int)},
        {"text_to_image": np.zeros((5, 7, 4), int)},
        {"topped_up": np.array("x\x1b")},
        {"topped_up": np.zeros(3, int)},
        {"image_to_text": None},
    ],
)
def test_candidate_lists_name_images_that_are_there(embeddings, tmp_path, change):
    good = np.zeros((5, 6, 4), int)
    lists = {"text_to_image": good, "image_to_text": good, "topped_up": np.array(0)}
    check_candidates(lists, 6)
    lists = {key: value for key, value in (lists | change).items() if value is not None}
    path = tmp_path / "theirs.npz"
    np.savez(path, fingerprint=embeddings.fingerprint(), **lists)
    args = types.SimpleNamespace(protocol=["sampled101"], candidates=str(path), seed=0)
    with pytest.raises(ValueError, match=r"theirs\.npz holds damaged candidate lists"):
        evaluate_clip.candidate_lists(embeddings, args)
