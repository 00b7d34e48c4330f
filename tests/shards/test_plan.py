"""Which sample goes into which shard."""

from clip_finetuning.catalogue.mapping import check_entries
from clip_finetuning.shards.plan import located, make_sample, plan_shards


def entries(products=20, views=4):
    return [
        {"image_path": f"p/{product}_{view}.png", "caption": f"Caption {product}", "product_id": f"P{product}"}
        for view in range(views)
        for product in range(products)
    ]


def plan(size, seed=None, **options):
    mapping = check_entries(entries())
    assert not mapping.skipped
    return plan_shards([make_sample(entry) for entry in mapping.entries], size, seed, **options)


def test_no_product_is_split_and_no_sample_lost():
    for size in (1, 3, 4, 7, 40, 1000):
        shards = plan(size, seed=1)
        places = {}
        for shard in shards:
            for sample in shard.samples:
                assert places.setdefault(sample.product, shard.number) == shard.number
            assert size <= len(shard.samples) < size + 4 or shard is shards[-1]
        assert sorted(sample.image_path for shard in shards for sample in shard.samples) == sorted(
            entry["image_path"] for entry in entries()
        )
        assert [shard.first_key for shard in shards] == [
            sum(len(earlier.samples) for earlier in shards[:number]) for number in range(len(shards))
        ]


def test_the_plan_depends_on_the_seed_alone():
    assert plan(10, seed=1) == plan(10, seed=1) != plan(10, seed=2)
    assert [sample.product for shard in plan(10) for sample in shard.samples[:1]] == [
        "P0",
        "P3",
        "P6",
        "P9",
        "P12",
        "P15",
        "P18",
    ]


def test_a_fingerprint_tells_samples_place_and_settings():
    prints = [shard.fingerprint for shard in plan(10)]
    assert len(set(prints)) == len(prints)
    assert not set(prints) & {shard.fingerprint for shard in plan(10, picture_settings=(95,))}
    assert prints[0] == plan(10)[0].fingerprint and prints[1:] != [shard.fingerprint for shard in plan(13)][1:]


def test_nothing_planned_for_no_samples():
    assert plan_shards([], 10) == []


def test_where_a_picture_is():
    assert located("raw/a.png", None) == "raw/a.png"
    for data_dir, path, result in (
        ("raw", "raw/a.png", "raw/a.png"),
        ("./raw", "raw/a.png", "raw/a.png"),
        ("raw", "a.png", "raw/a.png"),
        ("/data", "a.png", "/data/a.png"),
        ("/data", "/data/a.png", "/data/a.png"),
        ("raw", "/else/a.png", "/else/a.png"),
        ("raw", "../a.png", "raw/../a.png"),
        (".", "raw/a.png", "raw/a.png"),
        ("raw", "all.h5#3", "raw/all.h5#3"),
    ):
        assert located(path, data_dir) == result
