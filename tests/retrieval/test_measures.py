"""The measures made of ranks against naive ones on the whole matrix, scikit-learn and every order of ties."""

import itertools

import numpy as np
import pytest
import torch

from clip_finetuning.retrieval import metrics, protocols, ranking
from clip_finetuning.retrieval import positives as lists
from clip_finetuning.retrieval.names import DIRECTIONS_OF, STANDARD
from clip_finetuning.retrieval.pairs import pair_values
from tests.helpers import embedded_catalogue
from tests.retrieval.test_ranking import case, scores_of

KS = (1, 3, 10)


def naive(row, gains, ks):
    """The measures of one query by their definitions: the gallery sorted, of equal scores the least right ones first."""
    order = sorted(range(len(row)), key=lambda item: (-row[item], gains.get(item, 0)))
    gain = np.array([gains.get(item, 0) for item in order], float)
    ideal, right = np.sort(gain)[::-1], gain > 0
    count = int(right.sum())
    precision = np.cumsum(right) / np.arange(1, len(row) + 1)
    discount = 1 / np.log2(np.arange(2, len(row) + 2))
    found = {f"ndcg@{k}": (gain * discount)[:k].sum() / (ideal * discount)[:k].sum() for k in ks}
    found["r_precision"] = right[:count].mean()
    found["map_at_r"] = (precision * right)[:count].sum() / count
    found["map"] = (precision * right).sum() / count
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("groups", "levels"), [(3, None), (9, 1), (40, 2)])
def test_measures_by_their_definitions(dtype, groups, levels):
    """Ragged positives, none at all, exact ties, half precision."""
    queries, gallery, positives = case(2, groups=groups, levels=levels)
    queries, gallery = torch.tensor(queries).to(dtype), torch.tensor(gallery).to(dtype)
    found = metrics.query_values(ranking.rank_positives(queries, gallery, positives), KS)
    rows = [
        naive(row, dict.fromkeys(positives.of(query).tolist(), 1), KS)
        for query, row in enumerate(scores_of(queries, gallery))
        if len(positives.of(query))
    ]
    for name in rows[0]:
        assert found[name] == pytest.approx([row[name] for row in rows]), name


def test_graded_ndcg_by_its_definition_and_by_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    for levels in (None, 1):
        queries, gallery, positives = case(5, groups=4, levels=levels)
        grades = np.random.default_rng(0).integers(0, 4, len(positives.items))
        found = ranking.rank_positives(queries, gallery, positives, grades=grades)
        scores = scores_of(queries, gallery)
        for k in KS:
            ours = metrics.ndcg(found, k, grades)
            for query, row in enumerate(scores):
                mine = slice(positives.offsets[query], positives.offsets[query + 1])
                gains = dict(zip(positives.items[mine].tolist(), grades[mine].tolist()))
                if not sum(gains.values()):
                    assert ours[query] == 0
                    continue
                assert ours[query] == pytest.approx(naive(row, gains, (k,))[f"ndcg@{k}"])
                if levels is None:  # of equal scores scikit-learn takes the mean
                    relevance = np.zeros(len(row))
                    relevance[list(gains)] = list(gains.values())
                    assert ours[query] == pytest.approx(sklearn.ndcg_score(relevance[None], row[None], k=k))


def test_the_expected_recall_is_the_mean_over_all_orders_of_equal_scores():
    queries, gallery, positives = case(7, queries=30, gallery=6, groups=3, levels=1, size=2)
    found = ranking.rank_positives(queries, gallery, positives)
    for k in (1, 2, 4, 6):
        ours = metrics.expected_hits(found, k)
        for query, row in enumerate(scores_of(queries, gallery)):
            right = set(positives.of(query).tolist())
            hits = [
                bool(right & set(sorted(order, key=lambda item: -row[item])[:k]))
                for order in itertools.permutations(range(6))
            ]
            assert ours[query] == pytest.approx(np.mean(hits))
            assert ours[query] >= (found.best[query] <= k)


def test_the_expected_recall_of_pairs_is_that_of_random_orders():
    """Each sample alone, its text's copies among the rivals, by adding noise too small to matter but among equals."""
    random = np.random.default_rng(3)
    texts, text_of = random.integers(-1, 2, (5, 3)), np.array([0, 0, 0, 1, 1, 2, 3, 4])
    images = random.integers(-1, 2, (8, 3))
    images[1] = images[0]
    values = pair_values(images, texts, text_of, (1, 2, 4))
    scores = (texts[text_of] @ images.T).astype(float)
    for way, matrix in (("text_to_image", scores), ("image_to_text", scores.T)):
        drawn = matrix + 1e-6 * random.random((4000, *matrix.shape))
        ranks = 1 + (drawn > np.einsum("nii->ni", drawn)[..., None]).sum(2)
        for k in (1, 2, 4):
            hits = (ranks <= k).mean(0)
            same = np.array([hits[text_of == text].mean() for text in text_of])  # nothing tells them apart
            expected = same if way == "text_to_image" else hits
            assert values[way][f"expected_recall@{k}"] == pytest.approx(expected, abs=0.03)
            assert (values[way][f"expected_recall@{k}"] >= values[way][f"recall@{k}"] - 1e-12).all()


@pytest.mark.parametrize("protocol", [*STANDARD, "image_to_image", "same_category"])
def test_a_model_that_maps_everything_to_one_point_is_expected_to_be_chance(protocol):
    constant = embedded_catalogue(products=120, views=2)
    constant.image_embeddings[:] = constant.image_embeddings[0]
    constant.text_embeddings[:] = constant.image_embeddings[0]
    result = protocols.evaluate(constant, protocol, (1, 10))
    for way in DIRECTIONS_OF[protocol]:
        numbers = result[way]
        assert numbers["expected_recall@10"] == pytest.approx(numbers["chance"]["recall@10"])
        low, high = numbers["intervals"]["expected_recall@10"]
        assert low <= numbers["expected_recall@10"] <= high
        assert numbers["ndcg@10"] == numbers["r_precision"] == numbers["map_at_r"] == 0 or protocol == "pair"


def test_chance_is_that_of_random_orders():
    random = np.random.default_rng(4)
    positives = lists.from_pairs(np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 5, 3, 4]), 4)
    drawn = []
    for _ in range(1500):
        order = random.permutation(9).astype(np.float32)
        found = ranking.rank_positives(np.ones((4, 1)), order[:, None], positives)
        drawn.append(metrics.summarize(found, (1, 4)))
    chance = metrics.chance(positives, 9, (1, 4))
    for name, value in chance.items():
        numbers = [numbers[name] for numbers in drawn]
        assert value == pytest.approx(np.mean(numbers), abs=4 * np.std(numbers) / 1500**0.5), name
