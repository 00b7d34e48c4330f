"""Plans: full batches, distinct products, every sample, fair and fast."""

import hashlib
import time

import numpy as np
import pytest

from clip_finetuning.loading.batch_sampler import plan_epoch, plan_size


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


@pytest.mark.parametrize("views", ["all", "random"])
def test_a_remainder_is_cut_whatever_the_number_of_views(views):
    """Over many epochs products of 1, 2, 4 and 8 views (or their samples) are seen equally often, wherever they lie."""
    views_of_product = np.tile([1, 2, 4, 8], 12)
    products = np.repeat(np.arange(48), views_of_product)
    batch_size, epochs = 19, 300  # of 48 products 10 are left out, of 180 samples 9
    seen = np.zeros(len(products))
    for epoch in range(epochs):
        seen[plan_epoch(products, batch_size, 0, epoch, views).ravel()] += 1
    of_sample = np.repeat(views_of_product, views_of_product)
    share = np.full(180, 171 / 180) if views == "all" else 38 / 48 / of_sample
    deviation = (seen - epochs * share) / np.sqrt(epochs * share * (1 - share))
    assert np.abs(deviation).max() < 4.5
    for count in (1, 2, 4, 8):
        mine = of_sample == count
        assert seen[mine].sum() == pytest.approx((epochs * share[mine]).sum(), rel=0.03), count
    halves = seen.reshape(2, 90).sum(1)
    assert halves[0] == pytest.approx(halves[1], rel=0.03)


def test_samples_of_a_product_with_more_views_than_batches_are_seen_as_often_as_that_allows():
    """40 samples of one product and 40 of others: 12 batches hold 12 of those 40, and nearly all others."""
    products = np.r_[np.zeros(40), np.arange(1, 41)].astype(int)
    batches, batch_size = plan_size(products, 4)
    seen = np.zeros(80)
    for epoch in range(400):
        seen[plan_epoch(products, 4, 0, epoch).ravel()] += 1 / 400
    assert (batches, batch_size) == (13, 4)
    assert seen[:40].mean() == pytest.approx(13 / 40, abs=0.005) and seen[:40].std() < 0.04
    assert seen[40:].mean() == pytest.approx(39 / 40, abs=0.005) and seen[40:].std() < 0.03


@pytest.mark.parametrize(("views", "digest"), [("all", "5bee35d230243a7b"), ("random", "e6a703d29588f93d")])
def test_the_order_of_runs_that_lose_nothing_stays_what_it_was(views, digest):
    """Checkpoints of earlier versions go on from their place in it."""
    products = np.repeat(np.arange(64), np.tile([1, 2, 4, 5], 16))
    plans = [plan_epoch(products, 32, 3, epoch, views) for epoch in range(3)]
    assert hashlib.sha256(np.stack(plans).astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_planning_fashion_gen_takes_well_under_a_second():
    products = products_like_fashion_gen(65_000)  # 260,000 samples
    seconds = []
    for epoch in range(3):
        start = time.perf_counter()
        plan = plan_epoch(products, 256, 0, epoch)
        seconds.append(time.perf_counter() - start)
    assert_sound(plan, products, 256, "all")
    assert min(seconds) < 1
