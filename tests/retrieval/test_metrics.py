"""The blocked ranks against a naive full matrix, ties and all, and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from clip_finetuning.retrieval import intervals, metrics, ranking, tiles
from clip_finetuning.retrieval.pairs import pair_values
from clip_finetuning.retrieval.positives import Positives, by_group, one_to_one, transposed


def naive(queries, gallery, positives):
    """Best rank and average precision of every query from the whole score matrix, sorted with negatives first."""
    scores = torch.as_tensor(queries, dtype=torch.float32) @ torch.as_tensor(gallery, dtype=torch.float32).T
    best, precision = [], []
    for query, row in enumerate(scores.tolist()):
        mine = set(positives.items[positives.offsets[query] : positives.offsets[query + 1]].tolist())
        order = sorted(range(len(row)), key=lambda item: (-row[item], item in mine))
        ranks = [rank for rank, item in enumerate(order, 1) if item in mine]
        best.append(ranks[0] if ranks else ranking.NEVER)
        precision.append(np.mean([number / rank for number, rank in enumerate(ranks, 1)]) if ranks else 0.0)
    return np.array(best), np.array(precision)


def random_case(seed, queries=37, gallery=53, groups=9, size=8, levels=None):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(queries, size)), random.normal(size=(gallery, size))
    if levels:  # few distinct values: many exact ties
        a, b = np.round(a * levels) / levels, np.round(b * levels) / levels
    positives = by_group(random.integers(0, groups, queries), random.integers(0, groups, gallery))
    return a.astype(np.float32), b.astype(np.float32), positives


@pytest.mark.parametrize("block_rows", [None, 1, 5, 1000])
@pytest.mark.parametrize("levels", [None, 1, 2])
@pytest.mark.parametrize("groups", [2, 9, 60])
def test_blocks_equal_the_full_matrix(block_rows, levels, groups):
    """Ragged positives (many, few, none), ties, any block size."""
    for seed in range(5):
        queries, gallery, positives = random_case(seed, groups=groups, levels=levels)
        ranks = ranking.rank_positives(
            queries, gallery, positives, shape=block_rows and tiles.Shape(block_rows, 10 * block_rows)
        )
        best, precision = naive(queries, gallery, positives)
        assert ranks.best.tolist() == best.tolist()
        assert ranks.average_precision == pytest.approx(precision)


def test_duplicated_captions_and_images():
    queries, gallery, _ = random_case(1)
    queries, gallery = np.concatenate([queries, queries]), np.concatenate([gallery, gallery, gallery])
    random = np.random.default_rng(2)
    positives = by_group(random.integers(0, 20, len(queries)), random.integers(0, 20, len(gallery)))
    best, _ = naive(queries, gallery, positives)
    assert ranking.rank_positives(queries, gallery, positives).best.tolist() == best.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype):
    queries, gallery, positives = random_case(3)
    queries, gallery = torch.tensor(queries, dtype=dtype), torch.tensor(gallery, dtype=dtype)
    best, _ = naive(queries, gallery, positives)
    assert ranking.rank_positives(queries, gallery, positives, shape=tiles.Shape(7, 9)).best.tolist() == best.tolist()


def test_a_model_that_maps_everything_to_one_point_scores_zero():
    rows = np.ones((30, 4), np.float32)
    ranks = ranking.rank_positives(rows, rows, one_to_one(30))
    assert metrics.summarize(ranks, (1, 5, 10))["recall@10"] == 0
    assert set(ranks.best.tolist()) == {30}


def test_perfect_embeddings_score_one():
    rows = np.eye(12, dtype=np.float32)
    numbers = metrics.summarize(ranking.rank_positives(rows, rows, one_to_one(12)), (1, 5))
    assert (numbers["recall@1"], numbers["mrr"], numbers["map"], numbers["median_rank"]) == (1, 1, 1, 1)


def test_numbers_worked_out_by_hand():
    """One query; gallery scores 4, 3, 2, 1, positives in second and fourth place."""
    ranks = ranking.rank_positives(
        np.array([[1.0]]), np.array([[4.0], [3.0], [2.0], [1.0]]), Positives(np.array([0, 2]), np.array([1, 3]))
    )
    numbers = metrics.summarize(ranks, (1, 2))
    assert (numbers["recall@1"], numbers["recall@2"], numbers["mean_rank"], numbers["mrr"]) == (0, 1, 2, 0.5)
    assert numbers["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_random_embeddings_score_chance_within_the_interval():
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 600, 16)).astype(np.float32)
    positives = one_to_one(600)
    ranks = ranking.rank_positives(rows[0], rows[1], positives)
    sums, counts, _ = intervals.product_sums(metrics.query_values(ranks, (10,)), np.arange(600))
    low, high = intervals.bootstrap(sums, counts)["recall@10"]
    assert low <= metrics.chance(positives, 600, (10,))["recall@10"] <= high


def test_chance_is_that_of_a_random_order():
    """Three positives among 10, k = 4: 1 - C(7, 4) / C(10, 4)."""
    positives = Positives(np.array([0, 3]), np.array([0, 1, 2]))
    assert metrics.chance(positives, 10, (4,))["recall@4"] == pytest.approx(1 - math.comb(7, 4) / math.comb(10, 4))
    assert metrics.chance(positives, 10, (50,))["recall@50"] == 1


def test_k_beyond_the_gallery_finds_everything():
    queries, gallery, _ = random_case(5, queries=6, gallery=6)
    ranks = ranking.rank_positives(queries, gallery, one_to_one(6))
    assert metrics.summarize(ranks, (100,))["recall@100"] == 1


def test_a_query_without_positive_is_no_hit_and_not_counted():
    rows = np.eye(3, dtype=np.float32)
    positives = Positives(np.array([0, 1, 1, 2]), np.array([0, 2]))
    ranks = ranking.rank_positives(rows, rows, positives)
    assert ranks.best.tolist() == [1, ranking.NEVER, 1]
    assert metrics.summarize(ranks, (1,))["recall@1"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused(bad):
    rows = np.ones((3, 2), np.float32)
    rows[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranking.rank_positives(rows, np.ones((3, 2), np.float32), one_to_one(3))


def test_the_other_direction_has_the_same_pairs():
    _, _, positives = random_case(4)
    back = transposed(positives, 53)
    pairs = {(q, i) for q in range(37) for i in positives.items[positives.offsets[q] : positives.offsets[q + 1]]}
    assert pairs == {(q, i) for i in range(53) for q in back.items[back.offsets[i] : back.offsets[i + 1]]}


def test_the_best_items_come_first():
    queries, gallery, _ = random_case(6)
    items, scores = ranking.top_items(queries, gallery, 5, block_rows=4)
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
        ours = metrics.summarize(ranking.rank_positives(queries, gallery, one_to_one(200)), (1, 5, 10))
        for k in (1, 5, 10):
            assert ours[f"recall@{k}"] == pytest.approx(theirs[f"{name}_R@{k}"])
        assert ours["mean_rank"] == pytest.approx(theirs[f"{name}_mean_rank"])


def shared_texts(seed, texts=40, images=150, size=12, noise=1.5):
    """Images of a few distinct texts, from none to many each."""
    random = np.random.default_rng(seed)
    text_of = random.integers(0, texts, images)
    text_of[:20] = 0
    text_of[np.arange(20, 20 + texts)] = np.arange(texts)
    rows = torch.nn.functional.normalize(torch.tensor(random.normal(size=(texts, size))).float(), dim=1)
    pictures = rows[text_of] + noise * torch.tensor(random.normal(size=(images, size))).float() / size**0.5
    return torch.nn.functional.normalize(pictures, dim=1), rows, text_of


def test_pairs_that_share_texts_have_open_clips_numbers_in_expectation():
    """get_clip_metrics sorts equal texts as they come: its mean over random orders, by shifts too small to matter else."""
    train = pytest.importorskip("open_clip_train.train")
    images, texts, text_of = shared_texts(1)
    ours = pair_values(images, texts, text_of, (1, 5, 10))
    random, theirs = np.random.default_rng(2), []
    for _ in range(100):
        order = torch.tensor(random.permutation(len(images))).float()[:, None]
        gallery = torch.cat([texts[text_of].double(), 1e-9 * order.double()], 1)
        queries = torch.cat([images.double(), torch.ones(len(images), 1, dtype=torch.float64)], 1)
        theirs.append(train.get_clip_metrics(queries, gallery, torch.tensor(1.0)))
    for way in ("image_to_text", "text_to_image"):
        for name, key in (("R@1", "recall@1"), ("R@5", "recall@5"), ("R@10", "recall@10"), ("mean_rank", "mean_rank")):
            drawn = np.array([numbers[f"{way}_{name}"] for numbers in theirs])
            assert ours[way][key].mean() == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 100**0.5 + 1e-9)


def test_pairs_that_share_texts_by_the_definition():
    """Each sample's share of its group's ranks, from the whole matrix with ties of others ahead."""
    images, texts, text_of = shared_texts(3)
    images, texts = (images * 4).round() / 4, (texts * 4).round() / 4  # many exact ties
    for block_rows in (None, 1, 11):
        values = pair_values(
            images, texts, text_of, (1, 4), shape=block_rows and tiles.Shape(block_rows, 3 * block_rows)
        )
        scores = (texts[text_of] @ images.T).numpy()
        for way, matrix in (("text_to_image", scores), ("image_to_text", scores.T)):
            for query in range(0, len(images), 7):
                mine = text_of == text_of[query]
                own = np.sort(matrix[query, mine])[::-1]
                ranks = (matrix[query, ~mine] >= own[:, None]).sum(1) + np.arange(1, len(own) + 1)
                assert values[way]["recall@4"][query] == pytest.approx((ranks <= 4).mean())
                assert values[way]["mean_rank"][query] == pytest.approx(ranks.mean())
                assert values[way]["mrr"][query] == values[way]["map"][query] == pytest.approx((1 / ranks).mean())


def test_pairs_without_a_shared_text_are_ranked_one_to_one():
    queries, gallery, _ = random_case(9, queries=40, gallery=40, levels=2)
    values = pair_values(queries, gallery, np.arange(40), (1, 5))
    for way, rows, columns in (("image_to_text", queries, gallery), ("text_to_image", gallery, queries)):
        plain = metrics.query_values(ranking.rank_positives(rows, columns, one_to_one(40)), (1, 5))
        assert all((values[way][name] == plain[name]).all() for name in plain)


def test_equal_to_clip_benchmarks_recall_on_pairs_without_ties():
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    random = np.random.default_rng(8)
    texts = torch.tensor(random.normal(size=(150, 8)), dtype=torch.float32)
    images = texts + torch.tensor(random.normal(size=(150, 8))).float()
    ranks = ranking.rank_positives(texts, images, one_to_one(150))
    for k in (1, 5, 10):
        expected = theirs.recall_at_k(texts @ images.T, torch.eye(150, dtype=torch.bool), k).float().mean()
        assert metrics.summarize(ranks, (k,))[f"recall@{k}"] == pytest.approx(float(expected))
