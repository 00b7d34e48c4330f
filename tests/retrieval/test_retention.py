"""What a model still knows of other data: its change, its comparison, and what others' files may say of it."""

import copy
import json

import pytest

from clip_finetuning.retrieval import comparison, result_file, retention, table
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue


def others(noise, products=40):
    embeddings = embedded_catalogue(products=products, views=2, noise=noise, seed=5)
    measured = measure_embeddings(embeddings, ["product", "pair"], (1, 5, 10))
    data = {"fingerprint": embeddings.fingerprint(), "skipped": {"empty file": 2}}
    return {"pattern": "/far/general.tar", "data": data, **measured}


@pytest.fixture(scope="module")
def measured():
    """(the results of a model before, of a worse one), both with retention."""
    embeddings = embedded_catalogue(products=30, noise=0.5)
    own = measure_embeddings(embeddings, ["product"], (1, 5, 10)) | {"data": {"fingerprint": embeddings.fingerprint()}}
    before, after = others(0.2), others(9.0)
    first = own | {"name": "before.json", "retention": retention.report(before, None, {}, "it is the one before")}
    base = {"name": "ViT", "weights": "openai"}
    return json.loads(json.dumps([first, own | {"name": "b.json", "retention": retention.report(after, before, base)}]))


def test_a_change_is_the_paired_difference_of_the_same_samples(measured):
    first, second = (results["retention"]["protocols"]["product"] for results in measured)
    for way, changes in measured[1]["retention"]["change"].items():
        assert list(changes) == ["recall@1", "recall@5", "recall@10"]
        for key, change in changes.items():
            gain, interval = comparison.paired_difference(first[way], second[way], key)
            assert (change["gain"], change["interval"]) == (pytest.approx(gain), pytest.approx(interval))
            assert change["verdict"] == "worse" and change["before"] == first[way][key]
    others = measured[1]["retention"]["other_changes"]
    assert list(others) == ["pair"] and others["pair"]["text_to_image"]["recall@10"]["verdict"] == "worse"
    pair = [results["retention"]["protocols"]["pair"]["text_to_image"] for results in measured]
    assert others["pair"]["text_to_image"]["recall@5"]["gain"] == pytest.approx(
        comparison.paired_difference(*pair, "recall@5")[0]
    )
    assert measured[0]["retention"]["change"] == measured[0]["retention"]["other_changes"] == {}


def test_a_baseline_serves_if_it_measured_the_same_samples(measured):
    after = others(2.0)
    assert retention.of_baseline(measured[0], after)["name"] == "before.json"
    assert retention.of_baseline(measured[0], others(2.0, products=41)) is None
    assert retention.of_baseline({key: measured[0][key] for key in ("name", "data", "protocols")}, after) is None
    assert retention.of_baseline(None, after) is None


def test_the_tables_have_it(measured):
    for results in measured:
        lines = table.render(results).splitlines()
        assert max(map(len, lines)) <= 80 and "  left out: 2 empty file" in lines
        assert sum(line.startswith("protocol: ") for line in lines) == 3  # its own, and two of the other data
    assert "what was forgotten is not known: it is the one before" in " ".join(table.render(measured[0]).split())
    assert "; before: ViT, openai" in table.render(measured[1]) and table.render(measured[1]).count("] worse") == 12


def test_two_results_are_compared_there_too(measured):
    text = comparison.compare(*measured)
    part = text[text.index("retention, on /far/general.tar") :]
    assert part.count("] worse") == 12 and "pair, image->text" in part
    plain = {key: value for key, value in measured[0].items() if key != "retention"}
    assert "left out: retention: before.json lacks it" in comparison.compare(plain, measured[1])
    assert "retention" not in comparison.compare(plain, plain)
    elsewhere = measured[0] | {"retention": measured[0]["retention"] | {"data": {"fingerprint": "x"}}}
    assert "left out: retention: before.json and b.json are results of different data" in " ".join(
        comparison.compare(elsewhere, measured[1]).split()
    )


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), 1),
        (("pattern",), None),
        (("retention",), {}),
        (("protocol",), "none"),
        (("data",), None),
        (("protocols", "product", "text_to_image", "recall@5"), "<script>"),
        (("sentence",), 1),
        (("base", "weights"), ["x"]),
        (("change",), []),
        (("base",), []),
        (("other_changes",), []),
        (("other_changes",), {"one_view": {}}),
        (("other_changes", "pair"), 1),
        (("other_changes", "pair", "sideways"), {}),
        (("other_changes", "pair", "text_to_image", "recall@5", "gain"), "x"),
        (("change", "text_to_image"), 1),
        (("change", "sideways"), {}),
        (("change", "text_to_image", "recall@5", "gain"), "x"),
        (("change", "text_to_image", "recall@5", "interval"), [0.1]),
        (("change", "text_to_image", "recall@5", "verdict"), "<b>"),
        (("change", "text_to_image", "<b>"), None),
    ],
)
def test_what_tables_cannot_use_is_refused_in_one_line(measured, place, value):
    result_file.check_results(measured[1])
    damaged = copy.deepcopy(measured[1])
    part = damaged["retention"]
    for key in place[:-1]:
        part = part[key]
    if place == ("change", "text_to_image", "<b>"):
        value = part["recall@5"]
    if place:
        part[place[-1]] = value
    else:
        damaged["retention"] = value
    with pytest.raises(ValueError, match="retention") as refusal:
        result_file.check_results(damaged)
    assert str(refusal.value).isprintable()
