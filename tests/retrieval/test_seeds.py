"""Several seeds as one line: both sources of variance, an interval that keeps its coverage, and what are no seeds."""

import copy

import numpy as np
import pytest

from clip_finetuning.retrieval import seeds


def result(name, hits, counts, protocol="product"):
    table = {
        "product": [f"P{number}" for number in range(len(counts))],
        "category": ["C"] * len(counts),
        "queries": counts.tolist(),
        "recall@10": hits.tolist(),
    }
    way = {
        "recall@10": float(hits.sum() / counts.sum()),
        "mrr": 0.5,
        "intervals": {"mrr": [0.4, 0.6]},
        "by_product": table,
    }
    return {
        "name": name,
        "data": {"fingerprint": "f"},
        "model": {"name": "ViT-B-32"},
        "protocols": {protocol: {"text_to_image": way, "image_to_text": way}},
    }


def drawn(random, products=60, count=3, spread=0.6, trait=1.0, noise=1.0):
    """Results of seeds: hits by what a seed, a product, and both together bring; (P,) queries."""
    counts = random.choice([1, 2, 3], products)
    logits = spread * random.normal(size=(count, 1)) + trait * random.normal(size=products)
    hits = (logits + noise * random.normal(size=(count, products)) > 0) * counts
    return [result(f"{number}.json", row.astype(float), counts) for number, row in enumerate(hits)]


def joined(results):
    return seeds.numbers([one["protocols"]["product"]["text_to_image"] for one in results])["recall@10"]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (400, 1.966)],
)
def test_quantiles_of_t_are_the_tables(degrees, expected):
    assert seeds.quantile(degrees) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "shape", [{}, {"spread": 0.0}, {"spread": 1.5}, {"trait": 0.0}, {"noise": 0.01, "spread": 0.0}]
)
def test_the_interval_covers_new_seeds_and_new_products(shape):
    """Of all seeds and products the share is 1/2, by symmetry."""
    random = np.random.default_rng(0)
    for count in (2, 5):
        bounds = np.array([joined(drawn(random, count=count, **shape)).interval for _ in range(150)])
        assert ((bounds[:, 0] <= 0.5) & (bounds[:, 1] >= 0.5)).mean() >= 0.91


def test_each_source_is_what_it_is_called():
    counts = np.full(400, 2)
    rows = np.tile([2.0, 0.0], 200), np.tile([2.0, 2.0, 0.0, 2.0], 100)  # shares 0.5 and 0.75
    found = joined([result("a", rows[0], counts), result("b", rows[1], counts)])
    assert found.mean == 0.625 and found.between == pytest.approx(np.std([0.5, 0.75], ddof=1))
    mean = (rows[0] + rows[1]) / 2
    assert found.within == pytest.approx(np.sqrt(((mean - 2 * 0.625) ** 2).sum()) / 800, rel=0.02)
    assert found.interval == [0, 1]  # two seeds that far apart say next to nothing
    low, high = joined([result("a", rows[0], counts), result("b", 2 - rows[0], counts)]).interval
    assert 0.4 < low < 0.5 < high < 0.6 and (low + high) / 2 == 0.5


def test_seeds_are_one_line_a_number():
    results = drawn(np.random.default_rng(1))
    lines = seeds.join(results).splitlines()
    assert lines[0] == "3 seeds: 0.json, 1.json, 2.json" and max(map(len, lines)) <= 80
    assert "Student's t with 2 degrees of freedom (4.30)" in " ".join(map(str.strip, lines))
    found = joined(results)
    line = next(line for line in lines if line.startswith("  Recall@10"))
    low, high = found.interval
    told = [f"{found.mean:.4f}", f"[{low:.3f},", f"{high:.3f}]", f"{found.between:.4f}", f"{found.within:.4f}"]
    assert line.split() == ["Recall@10", *told] and any(line.startswith("  MRR") for line in lines)
    assert lines[-1] == "protocol: product/v1 strict sha256:f"


def changed(results, number, change):
    results = copy.deepcopy(results)
    change(results[number])
    return results


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one.update(name="./0.json"), r"--seeds names \./0.json twice"),
        (lambda one: one["data"].update(fingerprint="x"), "are results of different data"),
        (lambda one: one["protocols"]["product"].update(version=2), "measures product/v1.* product/v2"),
        (lambda one: one["protocols"].update(pair=one["protocols"]["product"]), "joins the same protocols"),
        (lambda one: one.update(protocols={"pair": one["protocols"]["product"]}), "have no protocol in common"),
        (lambda one: one["model"].update(name="RN50"), "1.json is of the model RN50, 0.json of ViT-B-32"),
    ],
)
def test_what_are_no_seeds_of_one_run_is_refused(change, words):
    with pytest.raises(ValueError, match=words) as refusal:
        seeds.join(changed(drawn(np.random.default_rng(2)), 1, change))
    assert "\n" not in str(refusal.value)


def test_one_file_and_a_copy_are_refused():
    results = drawn(np.random.default_rng(3))
    with pytest.raises(ValueError, match="--seeds needs the results of two seeds at least; 0.json is one"):
        seeds.join(results[:1])
    with pytest.raises(ValueError, match="0.json and copy.json hold the same numbers"):
        seeds.join([results[0], copy.deepcopy(results[0]) | {"name": "copy.json"}])
