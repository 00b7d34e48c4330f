"""Batches of one category: as many samples as of mixed ones, no look-alikes, whatever categories and products there are."""

import json

import numpy as np
import pytest

from clip_finetuning.loading import batch_sampler, kept_index, labels
from clip_finetuning.loading.category_batches import alike_of, joined, plan_epoch
from clip_finetuning.loading.first_look import check_categories
from clip_finetuning.loading.labels import Labels, labels_of, words_of
from clip_finetuning.loading.tar_index import TarIndex
from tests.helpers import assert_same, catalogue_sample, epoch, keys, training, write_shard


def made(products, category, caption=None, attributes=None):
    """Alike samples of these columns; without captions each product has its own."""
    nothing = np.zeros(len(products), dtype=np.int64)
    columns = (products if caption is None else caption, nothing if attributes is None else attributes)
    return alike_of(np.asarray(products), Labels([], np.asarray(category), *map(np.asarray, columns)))


def assert_sound(plan, products, category, caption, batch_size, views):
    assert plan.batches.shape == batch_sampler.plan_size(products, batch_size, views)
    assert len(np.unique(plan.batches)) == plan.batches.size
    assert (np.diff(np.sort(products[plan.batches], axis=1), axis=1) != 0).all()
    own = plan.batches[plan.of_category]
    assert (category[own] == category[own][:, :1]).all() and (category[own] >= 0).all()
    assert (np.diff(np.sort(caption[own], axis=1), axis=1) != 0).all()


@pytest.mark.parametrize("views", ["all", "random"])
def test_any_products_categories_and_captions(views):
    """Products of several categories too, and captions that many share: the samples of an epoch are those of mixed batches."""
    random = np.random.default_rng(1)
    of_category = 0
    for trial in range(300):
        count = int(random.integers(1, 120))
        products = random.integers(0, random.integers(1, 60), count)
        category = random.integers(-1, 4, 60)[products] if trial % 3 else random.integers(-1, 4, count)
        caption = random.integers(0, random.integers(1, 80), 60)[products]
        attributes = random.integers(0, random.integers(1, 20), 60)[products]
        batch_size = int(random.integers(1, 20))
        plan = plan_epoch(made(products, category, caption, attributes), batch_size, trial, 0, views)
        assert_sound(plan, products, category, caption, batch_size, views)
        mixed = batch_sampler.plan_epoch(products, batch_size, trial, 0, views)
        assert set(plan.batches.ravel()) == set(mixed.ravel())
        of_category += plan.of_category.sum()
    assert of_category > 400


def test_a_category_gives_as_many_batches_as_it_fills_and_the_rest_is_mixed():
    products = np.repeat(np.arange(100), 2)
    category = np.where(
        products < 50, 0, np.where(products < 90, 1, np.where(products < 98, 2, -1))
    )  # 100, 80, 16 and 4
    plan = plan_epoch(made(products, category), 16, 0, 0)
    assert (
        len(plan.batches) == 12 and plan.of_category.sum() >= 6 + 5 - 2
    )  # two may be without what an epoch leaves out
    assert {0, 1} <= set(category[plan.batches[plan.of_category]].ravel())
    first = plan.of_category.tolist()
    assert first != sorted(first) and first != sorted(first, reverse=True)  # batches of both kinds come in turn


def test_the_plan_is_a_function_of_seed_and_epoch():
    alike = made(np.repeat(np.arange(80), 2), np.repeat(np.arange(2), 80))
    plan = plan_epoch(alike, 16, 3, 5).batches
    assert (plan == plan_epoch(alike, 16, 3, 5).batches).all()
    assert (plan != plan_epoch(alike, 16, 3, 6).batches).any() and (plan != plan_epoch(alike, 16, 4, 5).batches).any()


def test_small_categories_are_seen_in_every_epoch_but_for_what_is_left_out_at_random():
    category = np.r_[np.zeros(64, int), np.ones(5, int)]
    seen = [set(plan_epoch(made(np.arange(69), category), 16, 0, number).batches.ravel()) for number in range(12)]
    assert set().union(*seen) == set(range(69))


def test_what_many_share_leaves_a_category_and_attributes_count_where_they_cost_nothing():
    """Forty shirts of one wording: one a batch; of attributes, those that would cost a batch are no reason."""
    caption = np.r_[np.zeros(40, int), np.arange(1, 41)]
    category = np.zeros(80, dtype=int)
    plan = plan_epoch(made(np.arange(80), category, caption), 8, 0, 0)
    assert_sound(plan, np.arange(80), category, caption, 8, "all")
    assert plan.of_category.sum() == 5  # seven of the others and one of the forty: 40 // 7
    fine, coarse = np.arange(80) // 4 + 1, np.arange(80) % 2 + 1
    for attributes, apart in ((fine, True), (coarse, False)):
        plan = plan_epoch(made(np.arange(80), category, attributes=attributes), 8, 0, 0)
        met = [len(set(batch)) for batch in attributes[plan.batches].tolist()]
        assert plan.of_category.all() and (met == [8] * 10) == apart


def test_what_is_joined_by_others_is_together():
    assert joined(np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 1, 2])).tolist() == [0, 0, 0, 0, 1]
    chain = np.repeat(np.arange(5001), 2)
    assert not joined(chain[1:-1], np.repeat(np.arange(5000), 2)).any()
    assert joined(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red cotton shirt", "red  COTTON shirt."),
        ("Red shirt, cotton; long", "long. Cotton, red shirt"),
        ("T-shirt, size XL", "T-shirt, size S"),
        ("Chair 45 cm", "Chair 60cm cm"),
        ("USB cable (2 m)", "USB cable (m) 3"),
    ],
)
def test_captions_of_the_same_words(one, other):
    assert words_of(one) == words_of(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a red shirt", "a blue shirt"), ("42", "43"), ("XL", "S"), ("赤い靴", "青い靴")]
)
def test_captions_that_differ_in_a_word(one, other):
    assert words_of(one) != words_of(other)


# -------------------------------------------------------------------------------------------------------------- shards


def write_products(folder, shards=2, count=40, **fields):
    """Shards of products of two categories by turns, each sample with a caption of its own -> the pattern."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        samples = []
        for number in range(count * shard, count * (shard + 1)):
            word = "".join(chr(ord("a") + int(digit)) for digit in f"{number:03d}")
            sample = catalogue_sample(number, number, **{"category": ["TOPS", "Shoes"][number % 2], **fields})
            samples.append({**sample, f"{number:09d}.txt": f"a {word}".encode()})
        write_shard(folder / f"{shard}.tar", samples)
    return str(folder / f"{{0..{shards - 1}}}.tar")


def test_the_loader_makes_them_says_so_and_goes_on_anywhere(tmp_path):
    pattern = write_products(tmp_path / "s")
    loader = training(pattern, 8, batches="category", seed=1)
    assert loader.arrangement == "in the first one 10 of one category"
    whole = epoch(loader, 1)
    assert len(whole) == len(loader) == 10 and all(len(set(batch.categories)) == 1 for batch in whole)
    assert sorted(keys(whole)) == sorted(keys(epoch(training(pattern, 8), 1)))
    assert_same(epoch(training(pattern, 8, batches="category", seed=1, num_workers=2), 1, start=4), whole[4:])
    halves = [epoch(training(pattern, 4, batches="category", seed=1, rank=rank, world_size=2), 1) for rank in (0, 1)]
    assert [one.keys + two.keys for one, two in zip(*halves)] == [batch.keys for batch in whole]


def test_what_is_left_over_is_said_and_mixed(tmp_path):
    pattern = write_products(tmp_path / "s", count=27)  # 27 of each
    write_shard(tmp_path / "s" / "1.tar", [catalogue_sample(number, number, category=None) for number in range(27, 32)])
    loader = training(pattern, 8, batches="category")
    assert loader.arrangement == (
        "in the first one 2 of one category, the others mix what is left over of 2 categories and 5 samples without a category"
    )
    assert sum(len(set(batch.categories)) > 1 for batch in epoch(loader)) == 2


def test_no_category_is_one_line_and_too_small_ones_are_warned_of(tmp_path, caplog):
    pattern = write_products(tmp_path / "s", category="")
    with pytest.raises(ValueError, match=r"no sample of \S+ has a category in its .json; .* or set BATCHES=mixed"):
        training(pattern, 8, batches="category")
    training(write_products(tmp_path / "t", count=10), 16, batches="category")
    assert "no category fills a batch" in caplog.text
    write_shard(tmp_path / "s" / "1.tar", [catalogue_sample(1, 1, category="TOPS")])  # late, yet found
    check_categories(pattern)


def test_streams_are_refused():
    with pytest.raises(ValueError, match="BATCHES=category needs local shards"):
        training("pipe:cat a.tar", 8, batches="category")


def test_another_arrangement_or_other_categories_are_not_the_checkpoints(tmp_path):
    pattern = write_products(tmp_path / "s")
    state = training(pattern, 8, batches="category").state()
    assert training(pattern, 8, batches="category").check_state(state) == []
    assert training(pattern, 8).check_state(state) == ["batches: category in the checkpoint, mixed now"]
    old = {name: value for name, value in training(pattern, 8).state().items() if name != "batches"}
    assert training(pattern, 8).check_state(old) == []
    write_products(tmp_path / "s", category="TOPS")
    (message,) = training(pattern, 8, batches="category").check_state(state)
    assert message.startswith("the categories, or the captions")


def test_unreadable_pictures_are_replaced_by_no_look_alike(tmp_path):
    """All that could replace the damaged one but for one product say the same as a sample of its batch."""
    pattern = write_products(tmp_path / "s", count=16, category="TOPS")
    samples = [catalogue_sample(number, number) for number in range(16, 32)]
    samples[0]["000000016.jpg"] = b"damaged"
    for number, sample in enumerate(samples, 16):
        sample[f"{number:09d}.txt"] = b"the same words"
    write_shard(tmp_path / "s" / "1.tar", samples)
    loader = training(pattern, 8, batches="category")
    for number in range(6):
        for batch in epoch(loader, number):
            assert batch.captions.count("the same words") <= 1 or len(set(batch.product_ids)) == 8
    assert loader.skipped.total() == 1


def test_labels_are_read_once_and_never_trusted(tmp_path, caplog, monkeypatch):
    write_products(tmp_path / "s", attributes={"colour": "Red"})
    paths = [str(tmp_path / "s" / f"{shard}.tar") for shard in range(2)]
    index = TarIndex(paths)
    fresh = labels_of(index)
    assert fresh.names == ["TOPS", "Shoes"] and fresh.category.tolist() == [0, 1] * 40
    assert len(set(fresh.caption.tolist())) == 80 and len(set(fresh.attributes.tolist())) == 1 and fresh.attributes[0]
    anew = []
    read = labels._read_labels
    monkeypatch.setattr(labels, "_read_labels", lambda index, numbers: anew.append(numbers) or read(index, numbers))

    def assert_as_before():
        for ours, theirs in zip(labels_of(TarIndex(paths)), fresh):
            assert np.array_equal(ours, theirs)

    assert_as_before()
    assert anew == []
    place = next(kept_index.places(paths[1], labels.ENDING))
    whole = place.read_bytes()
    index_file = next(kept_index.places(paths[1])).read_bytes()
    others = next(kept_index.places(paths[0], labels.ENDING)).read_bytes()
    head = {"format": 1, "rules": None, "stamp": None, "names": ["x"]}
    for damaged in (b"", whole[:-1], index_file, others, kept_index.pack(head, []), whole[:40] + b"\0" + whole[41:]):
        caplog.clear()
        place.write_bytes(damaged)
        assert_as_before()
        assert "the kept categories of 1 shards cannot be used" in caplog.text
        assert place.read_bytes() == whole
    assert anew == [range(40, 80)] * 6


def test_numbers_of_labels_out_of_bounds_are_damage(tmp_path):
    write_products(tmp_path / "s", shards=1)
    ((_, stamp, count),) = TarIndex([str(tmp_path / "s" / "0.tar")]).shards()
    good = Labels(["a"], np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64))
    assert labels._decoded(labels._encoded(good, stamp, {}), stamp, {}, count).names == ["a"]
    bad = [good._replace(category=good.category + 1), good._replace(caption=good.caption[1:]), good._replace(names=[1])]
    for wrong in bad:
        with pytest.raises(kept_index.Unusable, match="damaged"):
            labels._decoded(labels._encoded(wrong, stamp, {}), stamp, {}, count)


def test_an_old_index_stays_valid(tmp_path):
    """The bytes of an index are what they were before there were labels."""
    write_products(tmp_path / "s", shards=1)
    path = str(tmp_path / "s" / "0.tar")
    TarIndex([path])
    data = next(kept_index.places(path)).read_bytes()
    head = json.loads(data[16 : 16 + int.from_bytes(data[12:16], "little")])
    assert list(head) == [
        "stamp", "found", "damage", "lost", "most_captions", "suffixes", "skipped", "guessed", "columns", "format", "rules",
    ]  # fmt: skip
    assert len(head["columns"]) == 8 and head["rules"] == {"reading": 1, "caption": None, "product": None}
