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
        (("protocols", "product", "image_to_text"), None),
        (("protocols", "product", "text_to_image", "recall@5"), "<script>"),
        (("protocols", "product", "text_to_image", "mrr"), float("nan")),
        (("protocols", "product", "text_to_image", "mrr"), 10**400),
        (("protocols", "product", "text_to_image", "categories"), 1),
        (("protocols", "product", "text_to_image", "categories", "TOPS", "recall@10"), "<script>"),
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
