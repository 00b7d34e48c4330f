"""Ranks, ties and near-duplicates against a naive full matrix, however the work is cut into tiles."""

import numpy as np
import pytest
import torch

from clip_finetuning.retrieval import positives as lists
from clip_finetuning.retrieval import ranking, tiles

SHAPES = [None, tiles.Shape(7, 100), tiles.Shape(5, 17), tiles.Shape(16, 64), tiles.Shape(1000, 9)]


def case(seed, queries=37, gallery=53, groups=9, levels=None, size=8):
    """(queries, gallery, positives), with many exact ties where there are few `levels` of values."""
    random = np.random.default_rng(seed)
    rows = [random.normal(size=(count, size)) for count in (queries, gallery)]
    if levels:
        rows = [np.round(part * levels) / levels for part in rows]
    positives = lists.by_group(random.integers(0, groups, queries), random.integers(0, groups, gallery))
    return *(part.astype(np.float32) for part in rows), positives


def some_alike(seed, positives, gallery):
    """For each query a few items; some of them are positives, which they must not be taken for."""
    random = np.random.default_rng(seed)
    count = len(positives.offsets) - 1
    return lists.from_pairs(random.integers(0, count, 3 * count), random.integers(0, gallery, 3 * count), count)


def scores_of(queries, gallery):
    return (torch.as_tensor(queries).float() @ torch.as_tensor(gallery).float().T).numpy()


def sorted_ranks(row, right, gone=frozenset()):
    """The ranks of the right items in one row of scores, ties against them, without the items that are gone."""
    order = sorted(set(range(len(row))) - gone, key=lambda item: (-row[item], item in right))
    return [rank for rank, item in enumerate(order, 1) if item in right]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("groups", "levels"), [(2, 1), (9, None), (9, 1), (60, 2)])
def test_ranks_ties_and_alike_items_are_those_of_the_full_matrix(shape, groups, levels):
    for seed in range(2):
        queries, gallery, positives = case(seed, groups=groups, levels=levels)
        alike = some_alike(seed, positives, len(gallery))
        found = ranking.rank_positives(queries, gallery, positives, alike=alike, shape=shape)
        plain = ranking.rank_positives(queries, gallery, positives, shape=shape)
        assert all(np.array_equal(a, b) for a, b in zip(plain, found) if a is not None)
        assert plain.best_tolerant is None and plain.top_items is None
        for query, row in enumerate(scores_of(queries, gallery)):
            right = set(positives.of(query).tolist())
            also = set(alike.of(query).tolist()) - right
            ranks = sorted_ranks(row, right)
            mine = slice(found.offsets[query], found.offsets[query + 1])
            assert found.ranks[mine].tolist() == ranks
            assert (np.diff(row[positives.items[found.order[mine]]]) <= 0).all()
            assert found.best_tolerant[query] == min(sorted_ranks(row, right | also), default=ranking.NEVER)
            assert found.best_without[query] == min(sorted_ranks(row, right, also), default=ranking.NEVER)
            if not right:
                counts = (0, 0, 0)
                assert found.best[query] == ranking.NEVER
            else:
                best = max(row[item] for item in right)
                tied = {item for item in range(len(row)) if row[item] == best}
                counts = ((row > best).sum(), len(tied - right), len(tied & right))
                assert found.best[query] == ranks[0]
            assert (found.above[query], found.tied_negatives[query], found.tied_positives[query]) == counts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [None, 1])
def test_the_best_items_come_on_the_way_and_equal_ones_by_number(shape, levels):
    queries, gallery, positives = case(3, levels=levels)
    found = ranking.rank_positives(queries, gallery, positives, top=10, shape=shape)
    scores = scores_of(queries, gallery)
    order = np.argsort(-scores, kind="stable", axis=1)[:, :10]
    assert np.allclose(found.top_scores, np.take_along_axis(scores, order, 1))
    assert (found.top_items == order).all()
    few = ranking.rank_positives(queries, gallery[:4], lists.by_group(np.arange(37), np.arange(4)), top=10)
    assert few.top_items.shape == (37, 4)


def test_more_positives_than_one_counts_for_are_sorted():
    """Some queries have hundreds of positives, others a few or none."""
    random = np.random.default_rng(0)
    queries, gallery, _ = case(4, queries=20, gallery=600, levels=1)
    positives = lists.by_group(np.arange(20) % 4, random.choice(5, 600, p=[0.6, 0.1, 0.02, 0, 0.28]))
    assert np.diff(positives.offsets).max() > 2 * tiles.MANY
    found = ranking.rank_positives(queries, gallery, positives, shape=tiles.Shape(8, 100))
    for query, row in enumerate(scores_of(queries, gallery)):
        ranks = found.ranks[found.offsets[query] : found.offsets[query + 1]]
        assert ranks.tolist() == sorted_ranks(row, set(positives.of(query).tolist()))


def test_ranks_do_not_depend_on_how_the_work_is_cut():
    """Copies of the positives tie with them to the last bit, in whatever tile they are scored."""
    random = np.random.default_rng(1)
    queries, _, _ = case(5, queries=150, size=96)
    gallery = np.concatenate([random.normal(size=(40, 96))] * 9).astype(np.float32)[random.permutation(360)]
    positives = lists.from_pairs(np.arange(150), random.integers(0, 360, 150), 150)
    whole = ranking.rank_positives(queries, gallery, positives, top=5)
    assert (whole.tied_negatives == 8).sum() == 150
    for shape in SHAPES[1:]:
        parts = ranking.rank_positives(queries, gallery, positives, top=5, shape=shape)
        assert all(np.array_equal(a, b) for a, b in zip(whole, parts) if a is not None)
    joined = ranking.concatenated(
        [
            ranking.rank_positives(queries[a:b], gallery, positives.window(a, b), top=5)
            for a, b in ((0, 3), (3, 100), (100, 150))
        ]
    )
    assert all(np.array_equal(a, b) for a, b in zip(whole, joined) if a is not None)


def test_an_absent_item_is_neither_a_rival_nor_alike():
    """The first of the gallery, nearest to every query, is in none of their galleries."""
    random = np.random.default_rng(0)
    queries, gallery = random.normal(size=(5, 8)), random.normal(size=(12, 8))
    gallery[0] = queries.mean(0) * 100
    mine, alike = lists.one_to_one(5), lists.from_pairs(np.arange(5), np.arange(5) + 6, 5)
    mine = lists.Positives(mine.offsets, mine.items + 1)
    absent = lists.Positives(np.arange(6), np.zeros(5, np.int64))
    with_it = lists.joined(alike, absent)
    found = ranking.rank_positives(queries, gallery, mine, alike=with_it, absent=absent)
    other = ranking.rank_positives(
        queries, gallery[1:], mine._replace(items=mine.items - 1), alike=alike._replace(items=alike.items - 1)
    )
    for name in ("ranks", "above", "tied_negatives", "best_tolerant", "best_without"):
        assert getattr(found, name).tolist() == getattr(other, name).tolist()
