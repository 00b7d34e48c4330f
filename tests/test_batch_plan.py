"""Plans: full batches, distinct products, every sample, fair and fast."""

import time

import numpy as np
import pytest

from batch_plan import plan_epoch, plan_size


def products_like_fashion_gen(count, seed=0):
    """Product hashes, about four samples each, sorted by product as raw data is."""
    random = np.random.default_rng(seed)
    return np.repeat(random.integers(-(2**62), 2**62, count), random.integers(1, 8, count))


def assert_sound(plan, products, batch_size, views):
    assert plan.shape == plan_size(products, batch_size, views)
    assert len(np.unique(plan)) == plan.size  # no sample twice
    in_batch = np.sort(products[plan], axis=1)
    assert (np.diff(in_batch, axis=1) != 0).all()


@pytest.mark.parametrize("views", ["all", "random"])
def test_any_products_and_batch_sizes(views):
    random = np.random.default_rng(1)
    for trial in range(500):
        products = random.integers(0, random.integers(1, 20), random.integers(1, 60))
        batch_size = int(random.integers(1, 25))
        plan = plan_epoch(products, batch_size, seed=trial, epoch=0, views=views)
        assert plan.size > 0
        assert_sound(plan, products, batch_size, views)


def test_nothing_but_the_last_partial_batch_is_left_out():
    products = products_like_fashion_gen(1000)
    plan = plan_epoch(products, 64, seed=0, epoch=0)
    assert_sound(plan, products, 64, "all")
    assert plan.size == len(products) // 64 * 64


def test_fewer_products_than_a_batch_make_it_smaller():
    assert plan_size(np.repeat([1, 2, 3], 4), 8) == (4, 3)
    assert plan_size(np.array([7]), 8) == (1, 1)
    assert plan_epoch(np.array([], dtype=np.int64), 8, 0, 0).shape == (0, 0)


def test_order_is_a_function_of_seed_and_epoch():
    products = products_like_fashion_gen(200)
    plan = plan_epoch(products, 16, seed=3, epoch=5)
    assert (plan == plan_epoch(products, 16, seed=3, epoch=5)).all()
    assert (plan != plan_epoch(products, 16, seed=3, epoch=6)).any()
    assert (plan != plan_epoch(products, 16, seed=4, epoch=5)).any()


def test_random_views_show_each_product_once_and_every_view_in_time():
    products = np.repeat(np.arange(64), 4)
    seen = set()
    for epoch in range(40):
        plan = plan_epoch(products, 32, 0, epoch, "random")
        assert sorted(products[plan].ravel()) == list(range(64))
        seen |= set(plan.ravel().tolist())
    assert seen == set(range(256))


def test_every_batch_is_a_fair_sample():
    """The mean position in the sorted data of a batch's samples is what chance gives, for the first batch as any."""
    products = products_like_fashion_gen(3000)
    plan = plan_epoch(products, 128, 0, 0)
    expected, deviation = (len(products) - 1) / 2, len(products) / np.sqrt(12 * 128)
    distance = np.abs(plan.mean(axis=1) - expected) / deviation
    assert distance.max() < 4.5
    assert 0.6 < np.sqrt((distance**2).mean()) < 1.4


def test_pairs_of_products_meet_at_random():
    """How often two products meet has the spread of independent draws: 4 of 40 batches for each of them."""
    products = np.repeat(np.arange(400), 4)
    meetings = np.zeros((400, 400))
    for batch in products[plan_epoch(products, 40, 0, 0)]:
        meetings[np.ix_(batch, batch)] += 1
    pairs = meetings[np.triu_indices(400, 1)]
    assert pairs.mean() == pytest.approx(4 * 4 / 40, rel=0.03)
    assert pairs.var() == pytest.approx(4 * 0.1 * 0.9 * 36 / 39, rel=0.06)  # hypergeometric


def test_planning_fashion_gen_takes_well_under_a_second():
    products = products_like_fashion_gen(65_000)  # 260,000 samples
    seconds = []
    for epoch in range(3):
        start = time.perf_counter()
        plan = plan_epoch(products, 256, 0, epoch)
        seconds.append(time.perf_counter() - start)
    assert_sound(plan, products, 256, "all")
    assert min(seconds) < 1
