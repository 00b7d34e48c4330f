"""What a data set can show and how large a difference is, against simulations and textbooks."""

import numpy as np
import pytest

from clip_finetuning.retrieval import comparison, intervals, power


def two_models(share, other, counts, random, times):
    """(times, P) sums of hits of two models whose hits of a query have correlation 1/2; views of a product agree."""
    joint = share * other + 0.5 * np.sqrt(share * (1 - share) * other * (1 - other))  # chance that both hit
    luck = random.random((times, len(counts)))
    first = luck < share
    second = np.where(first, luck < joint, (luck - share) < other - joint)
    return first * counts, second * counts


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.93])
@pytest.mark.parametrize("views", [[1], [1, 2, 3, 4, 5, 6]])
def test_the_smallest_difference_is_seen_in_four_fifths_of_comparisons(share, views):
    random = np.random.default_rng(0)
    counts = random.choice(views, 250)
    typical = power.smallest_difference(share * counts + 0.0, counts, least_effect=(counts**2).sum() / counts.sum())
    for gain, low, high in ((typical, 0.7, 0.9), (typical / 2, 0.1, 0.45), (0, 0, 0.08)):
        a, b = two_models(share, share + (gain if share < 0.5 else -gain), counts, random, 400)
        seen = [comparison.verdict(*intervals.gain_interval(gains, counts)) != "unclear" for gains in b - a]
        assert low <= np.mean(seen) <= high
        if gain == typical:
            measured = np.mean([power.smallest_gain(gains, counts) for gains in b - a])
            estimated = np.mean([power.smallest_difference(sums, counts) for sums in a])
            assert measured == pytest.approx(typical, rel=0.15) and estimated == pytest.approx(typical, rel=0.15)


def test_more_products_show_less_and_uncorrelated_models_more():
    """By Connor's formula: 2.8 standard errors of a difference of two shares, which have 1.4 times that of one."""
    hits, counts = np.tile([0.0, 1.0], 5000), np.ones(10_000, np.int64)
    uncorrelated = power.smallest_difference(hits, counts, correlation=0)
    assert uncorrelated == pytest.approx(2.8016 * np.sqrt(2 * 0.25 / 10_000), rel=0.01)
    assert power.smallest_difference(hits, counts) == pytest.approx(uncorrelated / np.sqrt(2), rel=0.01)
    assert power.smallest_difference(hits[:100], counts[:100]) > 9 * power.smallest_difference(hits, counts)


def test_a_model_that_hits_nothing_or_all_has_a_smallest_difference():
    for products in (1, 2, 30, 3000):
        counts = np.full(products, 3)
        for sums in (np.zeros(products), counts.astype(float)):
            found = power.smallest_difference(sums, counts)
            assert 0 < found <= 1 and (found < 0.5 or products < 30)
        assert 0 < power.smallest_gain(np.zeros(products), counts) <= 1


def test_effect_sizes_are_the_textbooks():
    gains = np.array([1.0] * 9 + [-2.0] * 4 + [0.0] * 7)
    effect = power.effect(gains, 0.25, 0.75)
    assert (effect.gained, effect.lost, effect.odds) == (9, 4, pytest.approx(9.5 / 4.5))
    assert effect.h == pytest.approx(np.pi / 3) and effect.size == "large"  # Cohen (1988), table 6.2.2
    assert power.effect(-gains, 0.75, 0.25).h == pytest.approx(-np.pi / 3)
    assert power.effect(np.zeros(3), 0.5, 0.5)[2:] == (1, 0)
    assert [power.effect(gains, 0.5, after).size for after in (0.55, 0.6, 0.75)] == ["tiny", "small", "medium"]
