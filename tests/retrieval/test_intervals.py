"""Intervals that cover what they promise to, and tests that call as much worse by chance as they say."""

import numpy as np
import pytest

from clip_finetuning.retrieval import intervals


def test_intervals_draw_products_not_queries():
    """All views of a product agree, so 4 views each must not narrow the interval of 100 products."""
    random = np.random.default_rng(1)
    hits = (random.random(100) < 0.5).astype(float)
    once = intervals.bootstrap(*intervals.product_sums({"r": hits}, np.arange(100))[:2])["r"]
    fourfold = intervals.bootstrap(
        *intervals.product_sums({"r": np.repeat(hits, 4)}, np.repeat(np.arange(100), 4))[:2]
    )["r"]
    assert once == pytest.approx(fourfold)
    assert 0.15 < once[1] - once[0] < 0.25  # 2 x 1.96 x sqrt(0.25 / 100) = 0.196


def clustered_hits(random, rounds, products, views, share, agree):
    """(rounds, products) hits and views; with probability `agree` the views of a product stand or fall together."""
    counts = random.choice(views, (rounds, products)).astype(float)
    together = (random.random((rounds, products)) < share) * counts
    apart = random.binomial(counts.astype(int), share)
    return np.where(random.random((rounds, products)) < agree, together, apart), counts


@pytest.mark.parametrize("share", [0.005, 0.02, 0.3, 0.98, 0.995])
@pytest.mark.parametrize(("products", "views"), [(40, [1]), (40, [1, 2, 3, 4, 5, 6]), (300, [4])])
def test_intervals_of_shares_keep_their_coverage(products, views, share):
    """Near 0 and 1 the percentile bootstrap covers 10 to 80 % here. Never of width 0, and the share itself is inside."""
    random = np.random.default_rng(0)
    for agree in (0.0, 0.5, 1.0):
        hits, counts = clustered_hits(random, 400, products, views, share, agree)
        bounds = np.array([intervals.share_interval(*row, 1.0) for row in zip(hits, counts)])
        covered = (bounds[:, 0] <= share) & (share <= bounds[:, 1])
        assert covered.mean() > 0.92  # 0.95 but for the chance of 400 draws
        assert (np.diff(bounds) > 0).all() and bounds.min() >= 0 and bounds.max() <= 1
        assert ((bounds[:, 0] <= hits.sum(1) / counts.sum(1)) & (hits.sum(1) / counts.sum(1) <= bounds[:, 1])).all()


@pytest.mark.parametrize("hits", [0, 1, 7, 20])
@pytest.mark.parametrize("views", [1, 4])
def test_intervals_of_shares_are_agresti_and_coulls_of_products_whose_views_agree(hits, views):
    """Its textbook form for 20 products: the smoothed design effect is exactly the number of views."""
    sums, counts = np.where(np.arange(20) < hits, views, 0), np.full(20, views)
    middle = (hits + 1.959964**2 / 2) / (20 + 1.959964**2)
    half = 1.959964 * np.sqrt(middle * (1 - middle) / (20 + 1.959964**2))
    expected = [max(0, middle - half), min(1, middle + half)]
    assert intervals.share_interval(sums, counts) == pytest.approx(expected, abs=1e-9)


def test_intervals_of_shares_are_as_narrow_as_the_bootstraps_in_the_middle():
    random = np.random.default_rng(0)
    for agree in (0.0, 1.0):
        hits, counts = clustered_hits(random, 1, 2000, [4], 0.4, agree)
        ours = intervals.share_interval(hits[0], counts[0], 1.0)
        assert ours == pytest.approx(intervals.bootstrap({"r": hits[0]}, counts[0])["r"], abs=0.003)


@pytest.mark.parametrize(("a", "b"), [(0.005, 0.005), (0.98, 0.98), (0.99, 0.97), (0.3, 0.4), (0.01, 0.99)])
def test_intervals_of_gains_keep_their_coverage(a, b):
    random = np.random.default_rng(0)
    for views in ([1], [1, 2, 3, 4, 5, 6]):
        counts = random.choice(views, (400, 60)).astype(float)
        luck, other = random.random((2, 400, 60))
        gains = counts * ((np.where(random.random((400, 60)) < 0.5, luck, other) < b) * 1.0 - (luck < a))
        bounds = np.array([intervals.gain_interval(*row) for row in zip(gains, counts)])
        assert ((bounds[:, 0] <= b - a) & (b - a <= bounds[:, 1])).mean() > 0.92
        assert (np.diff(bounds) > 0.01).all() and np.abs(bounds).max() <= 1


def test_gains_that_are_all_alike_have_an_interval():
    ones = np.ones(20)
    low, high = intervals.gain_interval(ones, ones)
    assert 0.7 < low < high == 1
    assert intervals.gain_interval(0 * ones, ones) == pytest.approx([-1.96 / 22, 1.96 / 22], abs=1e-3)


def test_the_chance_of_a_change_is_that_of_all_signs():
    """Against every one of the 2^9 signs, either way."""
    gains = np.array([-1, 2, -3, 0, 1, -2, -2, 4, -6, -1.0])
    signs = 1 - 2 * ((np.arange(512)[:, None] >> np.arange(9)) & 1)
    sums = signs @ gains[gains != 0]
    for other in (gains, -gains):
        assert intervals.change_p_value(other) == pytest.approx((np.abs(sums) >= abs(gains.sum())).mean())
    assert intervals.change_p_value(np.zeros(3)) == intervals.change_p_value(np.array([1.0, -1])) == 1
    for gain in (-1 / 7, 1 / 7):
        assert intervals.change_p_value(np.full(30, gain)) == pytest.approx(2.0**-29, rel=1e-3)
    assert intervals.change_p_value(-np.ones(5000)) < 1e-9


def test_holm_corrects_as_by_hand():
    assert intervals.corrected([0.04, 0.001, 0.03, 0.012]) == pytest.approx([0.06, 0.004, 0.06, 0.036])
    assert intervals.corrected([0.9]).tolist() == [0.9] and intervals.corrected([]).tolist() == []
    assert intervals.corrected([0.6, 0.7]).tolist() == [1, 1]


def test_intervals_are_seeded():
    values = np.random.default_rng(3).normal(size=50)
    sums, counts, _ = intervals.product_sums({"r": values}, np.arange(50))
    assert intervals.bootstrap(sums, counts, 1) == intervals.bootstrap(sums, counts, 1)
    assert intervals.bootstrap(sums, counts, 1) != intervals.bootstrap(sums, counts, 2)


@pytest.mark.parametrize(
    ("products", "levels"), [(1, 3), (40, 1), (60, 5), (300, 100_000), (9, 100_000), (3000, 100_000)]
)
def test_medians_of_resamples_are_those_of_the_drawn_queries(products, levels):
    """By drawing the queries themselves; few and many distinct values, ragged products."""
    random = np.random.default_rng(products)
    codes = np.append(random.integers(0, products, 3 * products), np.arange(products))
    values = random.integers(0, levels, len(codes)) ** 2 / 7
    medians = []
    for weights in np.concatenate([*intervals._weights(products, 5, 150)]):
        drawn = np.sort(np.repeat(values, weights[codes].astype(int)))
        medians.append(drawn[(len(drawn) - 1) // 2])
    assert intervals.bootstrap_median(values, codes, 5, 150) == pytest.approx(np.percentile(medians, [2.5, 97.5]))


def test_draws_that_are_kept_are_those_that_are_not(monkeypatch):
    drawn = np.concatenate([*intervals._weights(30, 1, 250)])
    monkeypatch.setattr(intervals, "KEPT_BYTES", range(10**9))
    assert (np.concatenate([*intervals._weights(30, 1, 250, chunk=70)]) == drawn).all() and (drawn.sum(1) == 30).all()
