"""Paired comparison: better, worse or unclear, overall and by category, and only for the same data."""

import numpy as np
import pytest
from test_retrieval_protocols import catalogue

import retrieval_comparison
from retrieval_protocols import evaluate


def result(name, noise, **changes):
    embeddings = catalogue(products=60, views=2, noise=noise, **changes)
    return {
        "name": name,
        "data": {"fingerprint": embeddings.fingerprint()},
        "protocols": {"product": evaluate(embeddings, "product", (1, 5, 10))},
    }


def test_a_better_model_is_called_better():
    text = retrieval_comparison.compare(result("a", 2.0), result("b", 0.3))
    assert text.count(" better") == 6
    assert max(map(len, text.splitlines())) <= 80


def test_a_worse_model_is_called_worse_with_its_categories():
    text = retrieval_comparison.compare(result("a", 0.1), result("b", 3.0))
    assert "worse in SHOES" in text and "worse in TOPS" in text


def test_a_model_compared_with_itself_is_unclear():
    text = retrieval_comparison.compare(result("a", 1.0), result("b", 1.0))
    assert text.count(" unclear") == 6
    assert "+0.0000 [-0.032, +0.032]" in text  # 60 products that agree do not prove that all do


def test_the_paired_interval_is_narrower_than_the_two_apart():
    a, b = (result(name, noise)["protocols"]["product"]["image_to_text"] for name, noise in (("a", 1.0), ("b", 0.97)))
    gain, (low, high) = retrieval_comparison.paired_difference(a, b, "recall@1")
    assert gain == pytest.approx(b["recall@1"] - a["recall@1"])
    assert low <= gain <= high
    assert high - low < np.hypot(*(np.ptp(numbers["intervals"]["recall@1"]) for numbers in (a, b)))


def test_results_of_other_data_are_refused():
    other = result("b", 1.0, captions=[f"other {number}" for number in range(60)])
    with pytest.raises(ValueError, match="a and b are results of different data"):
        retrieval_comparison.compare(result("a", 1.0), other)
