"""Graded nDCG: gains from attributes, against hand-written ones and the textbook's sum over a sorted gallery."""

import numpy as np
import pytest

from clip_finetuning.retrieval import graded, protocols, truth
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.positives import one_to_one
from tests.helpers import embedded_catalogue


def small(*attributes):
    mine = embedded_catalogue(products=len(attributes), views=1)
    mine.attributes, mine.category[:] = texts(attributes), "TOPS"
    return mine


def table(found, width):
    pairs, share = found
    dense = np.zeros((len(pairs.offsets) - 1, width))
    dense[pairs.queries(), pairs.items] = share
    return dense


def test_gains_are_shares_of_equal_attributes_from_a_half_on():
    mine = small({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1"}, {"a": "9", "c": "8", "b": "2"}, {})
    found = graded.gains(mine, one_to_one(5), np.arange(5))
    expected = np.eye(5)
    expected[0, 1] = expected[1, 0] = expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = 0.5
    assert np.allclose(table(found, 5), expected)
    assert np.allclose(table(graded.turned(found, 5), 5), expected.T)


def test_another_category_gains_nothing_and_no_attributes_are_no_gains(monkeypatch):
    mine = small({"a": "1"}, {"a": "1"}, {"a": "1"})
    mine.category[:2] = ["SHOES", "SHOES"]
    found = graded.gains(mine, one_to_one(3), np.arange(3))
    assert np.allclose(table(found, 3), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    monkeypatch.setattr(graded, "MOST_GAINS", 4)
    assert graded.gains(mine, one_to_one(3), np.arange(3)) is None
    mine.attributes = None
    assert graded.gains(mine, one_to_one(3), np.arange(3)) is None


@pytest.mark.parametrize("protocol", ["product", "one_view"])
def test_the_measure_is_the_textbooks_sum(protocol):
    random = np.random.default_rng(0)
    mine = embedded_catalogue(products=12, views=2, noise=2.0)
    mine.attributes = texts(
        [{name: str(random.integers(0, 3)) for name in "abc" if random.random() < 0.8} for _ in range(24)]
    )
    result = protocols.evaluate(mine, protocol, (1, 5), truth=truth.truth_of(mine))
    tasks = protocols.tasks(mine, protocol)
    forward = tasks["text_to_image"]
    gain = table(graded.gains(mine, forward.positives, forward.gallery_items), len(forward.gallery_items))
    for way, gains in (("text_to_image", gain), ("image_to_text", gain.T)):
        scores = tasks[way].queries @ tasks[way].gallery.T
        for k in (1, 5):
            discounts = 1 / np.log2(2 + np.arange(k))
            reached = np.take_along_axis(gains, np.argsort(-scores, axis=1)[:, :k], 1) @ discounts
            ideal = -np.sort(-gains, axis=1)[:, :k] @ discounts
            assert result[way][f"graded_ndcg@{k}"] == pytest.approx((reached / ideal).mean())
            low, high = result[way]["intervals"][f"graded_ndcg@{k}"]
            assert low <= result[way][f"graded_ndcg@{k}"] <= high
    mine.attributes = None
    assert (
        "graded_ndcg@5" not in protocols.evaluate(mine, protocol, (1, 5), truth=truth.truth_of(mine))["text_to_image"]
    )
