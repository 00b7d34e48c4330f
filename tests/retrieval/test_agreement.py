"""Our measures against other tools' definitions, written down the plain way, one query after the other."""

import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_finetuning.retrieval import metrics, ranking
from clip_finetuning.retrieval.pairs import pair_values
from clip_finetuning.retrieval.positives import from_pairs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KS = (1, 3, 5)


def definitions(scores, right):
    """Of one query, in the order of its scores: what ranx, torchmetrics and trec_eval call these."""
    hits = [right[item] for item in sorted(range(len(scores)), key=lambda item: (-scores[item], right[item]))]
    count = sum(right)
    precision = [sum(hits[: place + 1]) / (place + 1) * hit for place, hit in enumerate(hits)]
    numbers = {f"recall@{k}": float(any(hits[:k])) for k in KS}  # hit rate
    numbers |= {"mrr": 1 / (hits.index(True) + 1), "map": sum(precision) / count}
    numbers |= {"r_precision": sum(hits[:count]) / count, "map_at_r": sum(precision[:count]) / count}
    discounts = [1 / math.log2(place + 2) for place in range(len(hits))]
    for k in KS:
        gained = sum(discount for discount, hit in zip(discounts[:k], hits) if hit)
        numbers[f"ndcg@{k}"] = gained / sum(discounts[: min(k, count)])
    return numbers


def case(seed, queries=20, items=12, values=None):
    """(scores, which are right) of queries with 1 to 5 positives; of so many different values, or all different."""
    random = np.random.default_rng(seed)
    scores = random.permuted(np.tile(np.arange(items), (queries, 1)), axis=1) % (values or items)
    right = random.permuted(np.arange(items) < random.integers(1, 6, (queries, 1)), axis=1)
    return scores.astype(np.float32), right


def ours(scores, right):
    """Our numbers where the items' embeddings are the axes: a query's scores are its own numbers."""
    positives = from_pairs(*np.nonzero(right), len(right))
    return metrics.summarize(ranking.rank_positives(scores, np.eye(scores.shape[1], dtype=np.float32), positives), KS)


@pytest.mark.parametrize("values", [None, 3, 1])
def test_measures_are_those_of_the_other_tools_and_of_equal_scores_the_wrong_items_come_first(values):
    scores, right = case(0, values=values)
    rows = [definitions(*row) for row in zip(scores.tolist(), right.tolist())]
    numbers = ours(scores, right)
    for name in rows[0]:
        assert numbers[name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-12), name


def test_expected_recall_is_the_mean_over_every_order_of_equal_scores():
    scores, right = case(1, queries=6, items=6, values=2)
    orders = np.array(list(itertools.permutations(range(6))))
    numbers = ours(scores, right)
    for k in KS:
        hits = []
        for row, is_right in zip(scores, right):
            first = orders[np.arange(len(orders))[:, None], np.argsort(-row[orders], axis=1, kind="stable")[:, :k]]
            hits.append(is_right[first].any(1).mean())
        assert numbers[f"expected_recall@{k}"] == pytest.approx(np.mean(hits), abs=1e-12)
        assert numbers[f"recall@{k}"] <= numbers[f"expected_recall@{k}"]


def test_equal_to_scikit_learn_without_equal_scores():
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, right = case(2)
    numbers = ours(scores, right)
    for k in KS:
        assert numbers[f"ndcg@{k}"] == pytest.approx(sklearn.ndcg_score(right.astype(int), scores, k=k))
    precision = [sklearn.average_precision_score(*row) for row in zip(right, scores)]
    assert numbers["map"] == pytest.approx(np.mean(precision))


# ------------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def agreement(monkeypatch):
    """benchmarks/agreement.py, of which this much needs none of the tools."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("agreement")


def test_the_turns_of_equal_captions_average_to_what_pair_says_at_once(agreement):
    """One caption alone, two of two samples, one of three."""
    text_of = np.array([0, 1, 2, 1, 3, 2, 3, 3])
    random = np.random.default_rng(3)
    images, texts = (random.normal(size=(count, 4)).astype(np.float32) for count in (8, 4))
    values = pair_values(images, texts, text_of, KS)["image_to_text"]
    hits = []
    for turn in agreement.in_turns(text_of):
        order = np.argsort(-(images[turn] @ texts[text_of[turn]].T), axis=1, kind="stable")
        hits.append([(order[:, :k] == np.arange(8)[:, None]).any(1).mean() for k in KS])
    assert len(hits) == 6
    assert np.mean(hits, axis=0) == pytest.approx([values[f"recall@{k}"].mean() for k in KS])


def test_scores_in_our_order_give_any_tool_our_ranks(agreement):
    scores, right = map(torch.tensor, case(4, values=3))
    order = agreement.against_the_model(scores, right)
    assert order.min() > 0
    assert all(len(row.unique()) == len(row) for row in order)
    before, after = ours(scores.numpy(), right.numpy()), ours(order.numpy(), right.numpy())
    assert all(after[name] == pytest.approx(before[name]) for name in before if "expected" not in name)


@pytest.mark.parametrize(
    ("theirs", "how", "right", "verdict"),
    [
        (0.5 + 5e-7, {}, True, "agrees to 1e-6"),
        (0.5 + 5e-6, {}, False, "DISAGREES"),
        (0.9, {"rule": "counts otherwise", "allowed": (-math.inf, math.inf)}, True, "counts otherwise"),
        (0.4, {"rule": "not below ours", "allowed": (-1e-6, math.inf)}, False, "DISAGREES (not below ours)"),
        (
            math.nan,
            {"rule": "counts otherwise", "allowed": (-math.inf, math.inf)},
            False,
            "DISAGREES (counts otherwise)",
        ),
    ],
)
def test_a_difference_is_one_that_may_be_or_the_script_says_so(agreement, theirs, how, right, verdict):
    row = agreement.Row("data", "peer", "pair", "recall@1", 0.5, theirs, **how)
    assert (row.is_right(), row.verdict()) == (right, verdict)
