"""The blocked ranks against a naive full matrix, ties and all, and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

import retrieval_metrics as metrics


def naive(queries, gallery, positives):
    """Best rank and average precision of every query from the whole score matrix, sorted with negatives first."""
    scores = torch.as_tensor(queries, dtype=torch.float32) @ torch.as_tensor(gallery, dtype=torch.float32).T
    best, precision = [], []
    for query, row in enumerate(scores.tolist()):
        mine = set(positives.items[positives.offsets[query] : positives.offsets[query + 1]].tolist())
        order = sorted(range(len(row)), key=lambda item: (-row[item], item in mine))
        ranks = [rank for rank, item in enumerate(order, 1) if item in mine]
        best.append(ranks[0] if ranks else metrics.NEVER)
        precision.append(np.mean([number / rank for number, rank in enumerate(ranks, 1)]) if ranks else 0.0)
    return np.array(best), np.array(precision)


def random_case(seed, queries=37, gallery=53, groups=9, size=8, levels=None):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(queries, size)), random.normal(size=(gallery, size))
    if levels:  # few distinct values: many exact ties
        a, b = np.round(a * levels) / levels, np.round(b * levels) / levels
    positives = metrics.by_group(random.integers(0, groups, queries), random.integers(0, groups, gallery))
    return a.astype(np.float32), b.astype(np.float32), positives


@pytest.mark.parametrize("block_rows", [None, 1, 5, 1000])
@pytest.mark.parametrize("levels", [None, 1, 2])
@pytest.mark.parametrize("groups", [2, 9, 60])
def test_blocks_equal_the_full_matrix(block_rows, levels, groups):
    """Ragged positives (many, few, none), ties, any block size."""
    for seed in range(5):
        queries, gallery, positives = random_case(seed, groups=groups, levels=levels)
        ranks = metrics.rank_positives(queries, gallery, positives, block_rows)
        best, precision = naive(queries, gallery, positives)
        assert ranks.best.tolist() == best.tolist()
        assert ranks.average_precision == pytest.approx(precision)


def test_duplicated_captions_and_images():
    queries, gallery, _ = random_case(1)
    queries, gallery = np.concatenate([queries, queries]), np.concatenate([gallery, gallery, gallery])
    random = np.random.default_rng(2)
    positives = metrics.by_group(random.integers(0, 20, len(queries)), random.integers(0, 20, len(gallery)))
    best, _ = naive(queries, gallery, positives)
    assert metrics.rank_positives(queries, gallery, positives).best.tolist() == best.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype):
    queries, gallery, positives = random_case(3)
    queries, gallery = torch.tensor(queries, dtype=dtype), torch.tensor(gallery, dtype=dtype)
    best, _ = naive(queries, gallery, positives)
    assert metrics.rank_positives(queries, gallery, positives, 7).best.tolist() == best.tolist()


def test_a_model_that_maps_everything_to_one_point_scores_zero():
    rows = np.ones((30, 4), np.float32)
    ranks = metrics.rank_positives(rows, rows, metrics.one_to_one(30))
    assert metrics.summarize(ranks, (1, 5, 10))["recall@10"] == 0
    assert set(ranks.best.tolist()) == {30}


def test_perfect_embeddings_score_one():
    rows = np.eye(12, dtype=np.float32)
    numbers = metrics.summarize(metrics.rank_positives(rows, rows, metrics.one_to_one(12)), (1, 5))
    assert (numbers["recall@1"], numbers["mrr"], numbers["map"], numbers["median_rank"]) == (1, 1, 1, 1)


def test_numbers_worked_out_by_hand():
    """One query; gallery scores 4, 3, 2, 1, positives in second and fourth place."""
    ranks = metrics.rank_positives(
        np.array([[1.0]]), np.array([[4.0], [3.0], [2.0], [1.0]]), metrics.Positives(np.array([0, 2]), np.array([1, 3]))
    )
    numbers = metrics.summarize(ranks, (1, 2))
    assert (numbers["recall@1"], numbers["recall@2"], numbers["mean_rank"], numbers["mrr"]) == (0, 1, 2, 0.5)
    assert numbers["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_random_embeddings_score_chance_within_the_interval():
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 600, 16)).astype(np.float32)
    positives = metrics.one_to_one(600)
    ranks = metrics.rank_positives(rows[0], rows[1], positives)
    sums, counts, _ = metrics.product_sums(metrics.query_values(ranks, (10,)), np.arange(600))
    low, high = metrics.bootstrap(sums, counts)["recall@10"]
    assert low <= metrics.chance_recall(positives, 600, 10) <= high


def test_chance_is_that_of_a_random_order():
    """Three positives among 10, k = 4: 1 - C(7, 4) / C(10, 4)."""
    positives = metrics.Positives(np.array([0, 3]), np.array([0, 1, 2]))
    assert metrics.chance_recall(positives, 10, 4) == pytest.approx(1 - math.comb(7, 4) / math.comb(10, 4))
    assert metrics.chance_recall(positives, 10, 50) == 1


def test_k_beyond_the_gallery_finds_everything():
    queries, gallery, _ = random_case(5, queries=6, gallery=6)
    ranks = metrics.rank_positives(queries, gallery, metrics.one_to_one(6))
    assert metrics.summarize(ranks, (100,))["recall@100"] == 1


def test_a_query_without_positive_is_no_hit_and_not_counted():
    rows = np.eye(3, dtype=np.float32)
    positives = metrics.Positives(np.array([0, 1, 1, 2]), np.array([0, 2]))
    ranks = metrics.rank_positives(rows, rows, positives)
    assert ranks.best.tolist() == [1, metrics.NEVER, 1]
    assert metrics.summarize(ranks, (1,))["recall@1"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused(bad):
    rows = np.ones((3, 2), np.float32)
    rows[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.rank_positives(rows, np.ones((3, 2), np.float32), metrics.one_to_one(3))


def test_the_other_direction_has_the_same_pairs():
    _, _, positives = random_case(4)
    back = metrics.transposed(positives, 53)
    pairs = {(q, i) for q in range(37) for i in positives.items[positives.offsets[q] : positives.offsets[q + 1]]}
    assert pairs == {(q, i) for i in range(53) for q in back.items[back.offsets[i] : back.offsets[i + 1]]}


def test_intervals_draw_products_not_queries():
    """All views of a product agree, so 4 views each must not narrow the interval of 100 products."""
    random = np.random.default_rng(1)
    hits = (random.random(100) < 0.5).astype(float)
    once = metrics.bootstrap(*metrics.product_sums({"r": hits}, np.arange(100))[:2])["r"]
    fourfold = metrics.bootstrap(*metrics.product_sums({"r": np.repeat(hits, 4)}, np.repeat(np.arange(100), 4))[:2])[
        "r"
    ]
    assert once == pytest.approx(fourfold)
    assert 0.15 < once[1] - once[0] < 0.25  # 2 x 1.96 x sqrt(0.25 / 100) = 0.196


def test_intervals_are_seeded():
    values = np.random.default_rng(3).normal(size=50)
    sums, counts, _ = metrics.product_sums({"r": values}, np.arange(50))
    assert metrics.bootstrap(sums, counts, 1) == metrics.bootstrap(sums, counts, 1)
    assert metrics.bootstrap(sums, counts, 1) != metrics.bootstrap(sums, counts, 2)


def test_the_best_items_come_first():
    queries, gallery, _ = random_case(6)
    items, scores = metrics.top_items(queries, gallery, 5, block_rows=4)
    full = torch.tensor(queries) @ torch.tensor(gallery).T
    assert np.allclose(scores, full.sort(dim=1, descending=True).values[:, :5])
    assert np.allclose(np.take_along_axis(full.numpy(), items, 1), scores)


def test_equal_to_open_clips_own_metrics_on_pairs_without_ties():
    train = pytest.importorskip("open_clip_train.train")
    random = np.random.default_rng(7)
    texts = torch.nn.functional.normalize(torch.tensor(random.normal(size=(200, 16)), dtype=torch.float32), dim=1)
    images = torch.nn.functional.normalize(texts + 0.5 * torch.tensor(random.normal(size=(200, 16))).float(), dim=1)
    theirs = train.get_clip_metrics(images, texts, torch.tensor(1.0))
    for name, queries, gallery in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        ours = metrics.summarize(metrics.rank_positives(queries, gallery, metrics.one_to_one(200)), (1, 5, 10))
        for k in (1, 5, 10):
            assert ours[f"recall@{k}"] == pytest.approx(theirs[f"{name}_R@{k}"])
        assert ours["mean_rank"] == pytest.approx(theirs[f"{name}_mean_rank"])


def test_equal_to_clip_benchmarks_recall_on_pairs_without_ties():
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    random = np.random.default_rng(8)
    texts = torch.tensor(random.normal(size=(150, 8)), dtype=torch.float32)
    images = texts + torch.tensor(random.normal(size=(150, 8))).float()
    ranks = metrics.rank_positives(texts, images, metrics.one_to_one(150))
    for k in (1, 5, 10):
        expected = theirs.recall_at_k(texts @ images.T, torch.eye(150, dtype=torch.bool), k).float().mean()
        assert metrics.summarize(ranks, (k,))[f"recall@{k}"] == pytest.approx(float(expected))
