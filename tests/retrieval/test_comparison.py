"""Paired comparison: better, worse or unclear, overall and by category, and only for the same data."""

import numpy as np
import pytest

from clip_finetuning.retrieval import comparison
from clip_finetuning.retrieval.protocols import evaluate
from tests.helpers import embedded_catalogue


def result(name, noise, **changes):
    embeddings = embedded_catalogue(products=60, views=2, noise=noise, **changes)
    return {
        "name": name,
        "data": {"fingerprint": embeddings.fingerprint()},
        "protocols": {"product": evaluate(embeddings, "product", (1, 5, 10))},
    }


def test_a_better_model_is_called_better():
    text = comparison.compare(result("a", 2.0), result("b", 0.3))
    assert text.count("] better") == 6 and text.count("  categories: 2 better, 0 worse of 2 judged") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_a_worse_model_is_called_worse_with_its_categories():
    text = comparison.compare(result("a", 0.1), result("b", 3.0))
    assert "worse in SHOES" in text and "worse in TOPS" in text


def test_a_model_compared_with_itself_is_unclear():
    text = comparison.compare(result("a", 1.0), result("b", 1.0))
    assert text.count(" unclear") == 6
    assert "+0.0000 [-0.032, +0.032]" in text  # 60 products that agree do not prove that all do


def test_the_paired_interval_is_narrower_than_the_two_apart():
    a, b = (result(name, noise)["protocols"]["product"]["image_to_text"] for name, noise in (("a", 1.0), ("b", 0.97)))
    gain, (low, high) = comparison.paired_difference(a, b, "recall@1")
    assert gain == pytest.approx(b["recall@1"] - a["recall@1"])
    assert low <= gain <= high
    assert high - low < np.hypot(*(np.ptp(numbers["intervals"]["recall@1"]) for numbers in (a, b)))


def test_results_of_other_data_are_refused():
    other = result("b", 1.0, captions=[f"other {number}" for number in range(60)])
    with pytest.raises(ValueError, match="a and b are results of different data"):
        comparison.compare(result("a", 1.0), other)


# ---------------------------------------------------------------------------------------------- categories


def hits_of(name, hits, categories, rules=2, captions=7, protocol="product"):
    """A result whose products have one query each, in both directions alike."""
    by_product = {
        "product": [f"P{number}" for number in range(len(hits))],
        "category": list(categories),
        "queries": [1] * len(hits),
        "recall@10": hits.astype(float).tolist(),
    }
    way = {"recall@10": float(hits.mean()), "by_product": by_product}
    protocols = {protocol: {"text_to_image": way, "image_to_text": way}}
    data = {"data": {"fingerprint": "f"}, "name": name, "num_captions": captions, "protocols": protocols}
    return data | ({"rules": rules} if rules else {})


def called(word, a, b, categories):
    changes = comparison.category_changes(*(numbers_of(hits, categories) for hits in (a, b)))
    return [change.category for change in changes if change.verdict == word]


def numbers_of(hits, categories):
    return hits_of("a", hits, categories)["protocols"]["product"]["text_to_image"]


def test_two_equally_good_models_of_48_categories_have_none_better_or_worse():
    """In 5 % of comparisons at most; uncorrected, nearly each has one or two."""
    random = np.random.default_rng(0)
    categories = [f"C{number:02d}" for number in range(48) for _ in range(20 + number // 2)]
    false_alarms = 0
    for _ in range(40):
        a, b = random.random((2, len(categories))) < random.uniform(0.3, 0.9)
        false_alarms += bool(called("worse", a, b, categories) + called("better", a, b, categories))
    assert false_alarms <= 5  # 2 expected at most; more than 5 come in 1 % of such simulations


@pytest.mark.parametrize("word", ["worse", "better"])
def test_one_category_that_changed_is_found_among_48(word):
    random = np.random.default_rng(1)
    categories = np.repeat([f"C{number:02d}" for number in range(48)], 60)
    a = random.random(len(categories)) < 0.8
    b = np.where(categories == "C07", a & (random.random(len(categories)) < 0.6), a)
    a, b = (a, b) if word == "worse" else (b, a)
    assert called(word, a, b, categories) == ["C07"] and len(called("unclear", a, b, categories)) == 47
    text = comparison.compare(hits_of("a", a, categories), hits_of("b", b, categories))
    counts = {"worse": "0 better, 1 worse", "better": "1 better, 0 worse"}[word]
    assert f"  categories: {counts} of 48 judged, by Holm at 5 %" in text
    assert ("  worse in C07: -0." if word == "worse" else "  better in C07 +0.") in text


def test_a_category_change_is_that_of_its_own_products():
    categories = ["SHOES"] * 30 + ["TOPS"] * 25 + ["ONE"] + ["nan"] * 2
    a, b = np.zeros(58), np.zeros(58)
    a[30:50], b[:30], b[55:] = 1, 1, 1
    rows = comparison.category_changes(numbers_of(a, categories), numbers_of(b, categories))
    assert [(row.category, row.products, row.queries, row.before, row.after, row.verdict) for row in rows] == [
        ("SHOES", 30, 30, 0, 1, "better"),
        ("TOPS", 25, 25, 0.8, 0, "worse"),
        ("nan", 2, 2, 0, 1, "few"),
        ("ONE", 1, 1, 0, 1, "few"),
    ]
    assert rows[0].gain == 1 and rows[1].gain == -0.8 and rows[3].corrected is None
    assert rows[0].corrected == pytest.approx(2 * 2.0**-29, rel=1e-3) and rows[0].interval[0] > 0.7
    with pytest.raises(ValueError, match="other queries"):
        comparison.category_changes(numbers_of(a, categories), numbers_of(b[1:], categories[1:]))


def test_many_categories_that_got_better_are_one_line(capsys):
    categories = np.repeat([f"C{number:02d} \x1b[2J" for number in range(12)], 40)
    text = comparison.compare(hits_of("a", np.zeros(480), categories), hits_of("b", np.ones(480), categories))
    assert " and 4 more" in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_category_of_few_products_is_not_judged():
    categories = ["SMALL"] * 19 + ["LARGE"] * 20
    a, b = np.ones(39), np.zeros(39)
    text = comparison.compare(hits_of("a", a, categories), hits_of("b", b, categories))
    assert "worse in LARGE" in text and "worse in SMALL" not in text
    assert "  categories: 0 better, 1 worse of 1 judged, by Holm at 5 %; 1 have fewer than\n    20 products" in text


# ------------------------------------------------------------------------------------------- older results


def test_results_of_older_rules_are_compared_in_product_alone():
    hits, categories = np.ones(30), ["C"] * 30
    old, new = hits_of("old.json", hits, categories, rules=None), hits_of("new.json", hits, categories)
    assert "unclear" in comparison.compare(old, new)
    for result in (old, new):
        result["protocols"]["pair"] = result["protocols"]["product"]
    text = comparison.compare(new, old)
    assert (
        "left out: old.json measures pair/v1 (the same caption of another product is a\n  miss), new.json pair/v2"
        in text
    )
    assert "pair, text" not in text and "product, text" in text
    for result in (old, new):
        del result["protocols"]["product"]
    with pytest.raises(ValueError, match="old.json measures pair/v1 .*, new.json pair/v2; measure old.json anew"):
        comparison.compare(old, new)
    assert "pair, text" in comparison.compare(old, old)


@pytest.mark.parametrize("versions", [(1, 2), (2, 1), (2, 3)])
def test_another_version_of_a_protocol_is_refused_by_name(versions):
    a, b = (hits_of(name, np.ones(30), ["C"] * 30, protocol="pair") for name in ("a.json", "b.json"))
    for result, version in zip((a, b), versions):
        result["protocols"]["pair"]["version"] = version
    older = "a.json" if versions[0] < versions[1] else "b.json"
    with pytest.raises(
        ValueError, match=f"^{older} measures pair/v{min(versions)}.* pair/v{max(versions)}; measure {older} anew$"
    ):
        comparison.compare(a, b)


def test_protocols_that_one_result_lacks_are_named():
    a, b = (hits_of(name, np.ones(30), ["C"] * 30) for name in ("a.json", "b.json"))
    b["protocols"] |= {"pair": a["protocols"]["product"], "one_view": a["protocols"]["product"]}
    assert "\nleft out: pair, one_view: a.json lacks them\n" in comparison.compare(a, b)
    assert "\nleft out: pair, one_view: a.json lacks them\n" in comparison.compare(b, a)


def test_older_results_with_a_caption_in_two_spellings_are_refused():
    hits, categories = np.ones(30), ["C"] * 30
    old = hits_of("old.json", hits, categories, rules=None, captions=8)
    with pytest.raises(ValueError, match="old.json counts .* as two in product; measure it anew"):
        comparison.compare(old, hits_of("new.json", hits, categories))
