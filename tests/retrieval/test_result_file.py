"""Result files, whoever wrote them: what tables and pages cannot use is refused in one line."""

import copy
import json

import pytest

from clip_finetuning.retrieval import result_file
from clip_finetuning.retrieval.examples import record
from clip_finetuning.retrieval.results import measure_embeddings
from clip_finetuning.runtime.version import version
from tests.helpers import embedded_catalogue


@pytest.fixture(scope="module")
def results():
    measured = measure_embeddings(embedded_catalogue(products=3, views=2), ["product", "pair"], (1, 5, 10))
    return json.loads(json.dumps(measured | {"data": {"fingerprint": "f", "skipped": {"<i>": 1}}}))


@pytest.fixture(scope="module")
def judged(results):
    interval = {"recall@1": [0, 1]}
    ways = {
        way: {"recall@1": 0.5, "mrr": 0.5, "intervals": interval, "queries": 3}
        for way in ("text_to_image", "image_to_text")
    }
    truth = {"strict": ways, "pairs": {"pictures": 3}, "sentence": "s"}
    protocols = results["protocols"] | {"product": results["protocols"]["product"] | {"truth": truth}}
    return results | {"protocols": protocols, "judgements": {"fingerprint": "f", "sentence": "s", "right": 1}}


def test_truths_and_judgements_are_read(tmp_path, judged):
    result_file.write(tmp_path / "r.json", judged)
    assert result_file.read(tmp_path / "r.json")["protocols"]["product"]["truth"]["pairs"] == {"pictures": 3}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("judgements",), "x"),
        (("judgements", "fingerprint"), 7),
        (("protocols", "product", "truth"), []),
        (("protocols", "product", "truth", "sentence"), None),
        (("protocols", "product", "truth", "pairs"), {"pictures": "many"}),
        (("protocols", "product", "truth", "lax"), {}),
        (("protocols", "product", "truth", "strict"), {"text_to_image": {}}),
        (("protocols", "product", "truth", "strict", "image_to_text", "recall@1"), "<i>"),
        (("protocols", "product", "truth", "strict", "image_to_text", "intervals"), {}),
        (("protocols", "product", "truth", "strict", "image_to_text", "intervals", "recall@1"), [0, "1"]),
    ],
)
def test_damaged_truths_are_refused_in_one_line(tmp_path, judged, place, value):
    damaged = copy.deepcopy(judged)
    part = damaged
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "bad.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="bad.json is no result file of evaluate_clip.py: ") as error:
        result_file.read(tmp_path / "bad.json")
    assert "\n" not in str(error.value)


def test_what_is_written_is_read_with_the_version_that_wrote_it(tmp_path, results):
    result_file.write(tmp_path / "r.json", results)
    name = str(tmp_path / "r.json")
    assert result_file.read(name) == results | {"version": version(), "name": name}


def test_results_from_before_there_was_a_version_are_read(tmp_path, results):
    old = {key: value for key, value in results.items() if key not in ("version", "rules", "warnings")}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert result_file.read(tmp_path / "old.json")["protocols"] == results["protocols"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        (("data",), "x"),
        (("rules",), "2"),
        (("protocols",), []),
        (("protocols", "ev\x1b[2Jil"), {}),
        (("protocols", "product"), 1),
        (("protocols", "product", "version"), "1"),
        (("protocols", "product", "cite"), 1),
        (("protocols", "product", "image_to_text"), None),
        (("protocols", "product", "text_to_image", "recall@5"), "<script>"),
        (("protocols", "product", "text_to_image", "mrr"), float("nan")),
        (("protocols", "product", "text_to_image", "mrr"), 10**400),
        (("protocols", "product", "text_to_image", "categories"), 1),
        (("protocols", "product", "text_to_image", "categories", "TOPS", "recall@10"), "<script>"),
        (("protocols", "product", "text_to_image", "hubness"), [1]),
        (("protocols", "product", "text_to_image", "hubness"), {"skew_at_10": "<script>"}),
        (("protocols", "product", "languages"), []),
        (("protocols", "product", "languages"), {"d\x1b[2Je": {}}),
        (("protocols", "pair", "text_to_image", "by_product"), None),
        (("protocols", "pair", "text_to_image", "by_product", "queries"), [10**9, "x"]),
        (("protocols", "pair", "text_to_image", "by_product", "queries"), [0, 0, 0]),
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
        result_file.read(path)
    assert str(refusal.value).isprintable()


ZERO_SHOT = {
    **dict.fromkeys(("classes", "images", "top1", "top5", "macro"), 1),
    "chance": {"top1": 0.5},
    "majority": {"top1": 0.5, "class": "TOPS"},
    "intervals": {"top1": [0.5, 1.0]},
    "prompts": ["{}"],
    "confusion": {"top": [{"class": "a", "taken_for": "b", "images": 1, "share": 0.5}]},
    "by_product": {"product": ["P"], "category": ["a"], "queries": [1], "top1": [1], "top5": [1]},
}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), 1),
        (("top1",), "<script>"),
        (("top1",), None),
        (("chance",), {"top1": "x"}),
        (("chance",), {}),
        (("majority", "class"), 5),
        (("majority", "top1"), float("nan")),
        (("intervals", "top1"), [0.5]),
        (("prompts",), [1]),
        (("confusion",), None),
        (("confusion", "top", 0, "share"), "x"),
        (("confusion", "top", 0), []),
        (("by_product", "queries"), [0]),
        (("by_product", "top1"), ["1"]),
        (("by_product",), {"product": ["P"], "category": ["a"], "queries": [1]}),
    ],
)
def test_damaged_numbers_of_a_classification_are_refused(results, place, value):
    result_file.check_results(results | {"zero_shot": ZERO_SHOT})
    numbers = copy.deepcopy(ZERO_SHOT)
    part = numbers
    for key in place[:-1]:
        part = part[key]
    if place:
        part[place[-1]] = value
    with pytest.raises(ValueError, match="zero_shot"):
        result_file.check_results(results | {"zero_shot": numbers if place else value})


def test_a_classification_from_before_hits_were_kept_is_read(results):
    old = {key: ZERO_SHOT[key] for key in ("classes", "images", "top1", "top5", "macro", "prompts")}
    result_file.check_results(results | {"zero_shot": old})


def test_a_recall_that_only_its_products_have_is_refused(results):
    damaged = copy.deepcopy(results)
    del damaged["protocols"]["product"]["text_to_image"]["recall@5"]
    with pytest.raises(ValueError, match="product, text_to_image lacks 'recall@5', which its by_product has"):
        result_file.check_results(damaged)


def test_no_products_at_all_are_refused(results):
    damaged = copy.deepcopy(results)
    table = damaged["protocols"]["pair"]["image_to_text"]["by_product"]
    for column in table.values():
        column.clear()
    with pytest.raises(ValueError, match="'queries' of by_product must be whole numbers >= 1, and some"):
        result_file.check_results(damaged)


def test_a_file_that_is_not_there_says_who_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist; evaluate_clip\.py writes it"):
        result_file.read(tmp_path / "nowhere.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is no result file"):
        result_file.read(tmp_path / "deep.json")


@pytest.mark.parametrize(
    "examples",
    [
        [],
        {"text_to_image": {}},
        {"text_to_image": [{"query": "a", "rank": 0, "answers": []}]},
        {"text_to_image": [{"query": 5, "rank": 1, "answers": []}]},
        {"image_to_text": [{"query": "a", "rank": 1, "answers": {}}]},
        {"image_to_text": [{"query": "a", "rank": 1, "answers": [{"name": "b", "hit": 1, "score": 0.5}]}]},
        {"image_to_text": [{"query": "a", "rank": 1, "answers": [{"name": "b", "hit": True, "score": 10**400}]}]},
        {"image_to_text": [{"query": "a", "rank": 1, "answers": [{"name": "b", "hit": True, "score": float("nan")}]}]},
    ],
)
def test_examples_that_a_page_cannot_show_are_refused(tmp_path, results, examples):
    (tmp_path / "r.json").write_text(json.dumps(results | {"examples": examples}))
    with pytest.raises(ValueError, match="'examples'"):
        result_file.read(tmp_path / "r.json")


def test_examples_as_they_are_recorded_are_read(tmp_path, results):
    recorded = record(embedded_catalogue(products=3, views=2))
    result_file.write(tmp_path / "r.json", results | {"examples": recorded})
    assert result_file.read(tmp_path / "r.json")["examples"] == recorded
