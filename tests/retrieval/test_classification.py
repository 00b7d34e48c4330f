"""Numbers of a classification against hand-made ones, and simulations for its intervals."""

import numpy as np
import pytest

from clip_finetuning.retrieval import classification, comparison


def measured(labels, answers, products=None, classes=None):
    """Of pictures that are nearest to `answers`."""
    labels, answers = np.array(labels), np.array(answers)
    count = max(labels.max(), answers.max()) + 1
    names = [f"C{number}" for number in range(count)]
    products = np.arange(len(labels)) if products is None else np.array(products)
    return classification.measure(np.eye(count)[answers], labels, classes or names, products)


def test_confusions_are_sorted_by_the_share_of_their_class():
    labels = [0] * 10 + [1] * 20 + [2] * 2
    answers = [0] * 7 + [1] * 3 + [1] * 14 + [0] * 4 + [2] * 2 + [1, 1]
    confusion = measured(labels, answers)["confusion"]
    assert confusion["matrix"] == [[7, 3, 0], [4, 14, 2], [0, 2, 0]] and confusion["names"] == ["C0", "C1", "C2"]
    assert [(row["class"], row["taken_for"], row["images"], row["share"]) for row in confusion["top"]] == [
        ("C0", "C1", 3, 0.3),
        ("C1", "C0", 4, 0.2),
        ("C1", "C2", 2, 0.1),
        ("C2", "C1", 2, 1.0),  # of two products alone, so after the others
    ]


def test_a_matrix_of_many_classes_is_not_kept():
    numbers = np.arange(60) % 30
    confusion = measured(numbers, (numbers + 1) % 30)["confusion"]
    assert set(confusion) == {"top", "kinds"} and (len(confusion["top"]), confusion["kinds"]) == (20, 30)


def test_of_equal_scores_another_class_is_the_answer():
    result = classification.measure(np.zeros((3, 3)), np.arange(3), ["a", "b", "c"], np.arange(3))
    assert (result["top1"], result["macro"], result["top5"]) == (0, 0, 1)
    assert result["confusion"]["matrix"] == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_intervals_hold_the_truth_and_are_never_empty():
    """Views of a product agree; classes have unlike sizes and shares."""
    random, missed = np.random.default_rng(0), {"top1": 0, "macro": 0}
    sizes, shares = np.array([100, 40, 12]), np.array([0.9, 0.5, 0.2])
    labels = np.repeat(np.repeat(np.arange(3), sizes), 3)
    truth = {"top1": (sizes * shares).sum() / sizes.sum(), "macro": shares.mean()}
    for _ in range(200):
        hits = np.repeat(random.random(sizes.sum()), 3) < shares[labels]
        result = measured(labels, np.where(hits, labels, (labels + 1) % 3), np.repeat(np.arange(sizes.sum()), 3))
        for key, expected in truth.items():
            low, high = result["intervals"][key]
            missed[key] += not low <= expected <= high
    assert max(missed.values()) <= 20 and min(missed.values()) >= 1  # 10 expected
    low, high = measured([0, 1] * 20, [0, 1] * 20)["intervals"]["macro"]
    assert 0.8 < low < high == 1


def results_of(name, labels, answers, prompts=("{}",), **changes):
    numbers = measured(labels, answers, **changes) | {"prompts": list(prompts)}
    way = {"by_product": {"product": ["P"], "category": ["C"], "queries": [1], "recall@1": [1.0]}, "recall@1": 1.0}
    protocols = {"product": {"text_to_image": way, "image_to_text": way}}
    return {"name": name, "data": {"fingerprint": "f"}, "protocols": protocols, "zero_shot": numbers}


def test_two_classifications_are_paired_by_product():
    labels = np.repeat([0, 1], [80, 20])
    worse, better = np.where(np.arange(100) % 4, labels, 1 - labels), labels
    a, b = results_of("a", labels, worse), results_of("b", labels, better, ("a {}", "{}"))
    text = comparison.compare(a, b)
    assert "zero-shot, 2 classes" in text and "asked by other prompts: 1 of A, 2 of B" in text
    assert text.count("] better") == 2 and "chance 0.5000, always 'C0' 0.8000" in text
    changes = comparison.zero_shot_changes(a["zero_shot"], b["zero_shot"])
    assert changes["top1"]["gain"] == pytest.approx(0.25) and changes["top5"]["verdict"] == "unclear"
    assert changes["macro"]["gain"] == pytest.approx(b["zero_shot"]["macro"] - a["zero_shot"]["macro"])
    low, high = changes["macro"]["interval"]
    assert 0 < low < changes["macro"]["gain"] < high


def test_classifications_that_cannot_be_paired_are_left_out_with_the_reason():
    labels = [0, 1] * 20
    whole, none = results_of("a", labels, labels), results_of("b", labels, labels)
    other = results_of("b", labels, labels, classes=["x", "y"])
    old = results_of("b", labels, labels)
    del none["zero_shot"], old["zero_shot"]["by_product"]
    for second, reason in (
        (none, "b lacks it"),
        (other, "the two have other categories"),
        (old, "one is from before hits were kept"),
    ):
        assert f"left out: zero-shot: {reason}" in comparison.compare(whole, second)
        assert f"left out: zero-shot: {reason}" in comparison.compare(second, whole)
    assert "zero-shot" not in comparison.compare(none, none)
