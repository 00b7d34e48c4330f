"""The four protocols on hand-made embeddings: what is queried, what is a hit, and the frozen lists of sampled101."""

import itertools

import numpy as np
import pytest

from clip_finetuning.retrieval import protocols
from tests.helpers import embedded_catalogue


def recalls(result, k=1):
    return [result[direction][f"recall@{k}"] for direction in protocols.DIRECTIONS]


def test_product_counts_any_view_as_a_hit():
    result = protocols.evaluate(embedded_catalogue(), "product", (1, 5))
    assert recalls(result) == [1, 1]
    assert result["text_to_image"]["queries"] == 6
    assert result["image_to_text"]["queries"] == 18
    assert result["text_to_image"]["gallery"] == 18
    assert result["image_to_text"]["gallery"] == 6
    assert "6 distinct captions against all 18 images" in result["protocol"]


def test_pair_counts_the_sample_alone_and_shares_ranks_among_equal_texts():
    """The three views of a product have one text: each of them is the first answer one time in three."""
    result = protocols.evaluate(embedded_catalogue(), "pair", (1, 2, 3))
    assert [recalls(result, k) for k in (1, 2, 3)] == [[pytest.approx(k / 3)] * 2 for k in (1, 2, 3)]
    assert "18 samples whose caption others have too share their expected rank" in result["protocol"]
    assert result["sharing_caption"] == 18
    for direction in protocols.DIRECTIONS:
        assert result[direction]["mean_rank"] == result[direction]["median_rank"] == 2
        assert result[direction]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
        assert result[direction]["chance"]["recall@1"] == pytest.approx(1 / 18)


def test_pair_of_views_that_look_alike_but_have_other_texts_ties_against_the_model():
    embeddings = embedded_catalogue(products=6, views=1)
    embeddings.image_embeddings[:2] = embeddings.image_embeddings[0]
    embeddings.text_embeddings[:2] = embeddings.text_embeddings[0]
    assert recalls(protocols.evaluate(embeddings, "pair", (1,))) == [pytest.approx(4 / 6)] * 2


@pytest.mark.parametrize("protocol", ["product", "one_view", "sampled101"])
@pytest.mark.parametrize("captions", ["same words", "Same  Words"])
def test_a_perfect_model_is_perfect_where_products_share_a_caption(protocol, captions):
    """Equal texts are one point, and so are the images that they describe."""
    shared = ["same words", captions, captions] + [f"caption {number}" for number in range(3, 120)]
    embeddings = embedded_catalogue(products=120, views=2, captions=shared)
    embeddings.text_embeddings[:3] = embeddings.text_embeddings[0]
    embeddings.image_embeddings[:6] = embeddings.text_embeddings[0]
    result = protocols.evaluate(embeddings, protocol, (1,))
    assert recalls(result) == [1, 1]
    assert "the same caption is never a negative" in result["protocol"]
    if protocol == "one_view":
        assert result["text_to_image"]["chance"]["recall@1"] == pytest.approx((117 * 1 + 3 * 3) / 120 / 120)


def test_no_caption_of_a_product_is_among_its_negatives():
    """Product 0 has two captions, one of them with product 2, the other with product 4, in other letters."""
    captions = [f"caption {number}" for number in range(120)] + ["CAPTION  4"]
    embeddings = embedded_catalogue(products=120, views=2)
    captions[0] = captions[2]
    embeddings.captions = np.array(captions, dtype=object)
    embeddings.text_embeddings = np.concatenate([embeddings.text_embeddings, embeddings.text_embeddings[:1]])
    embeddings.text_product = np.append(embeddings.text_product, "P0")
    embeddings.image_text = embeddings.image_text.copy()
    embeddings.image_text[1] = 120
    lists, _ = protocols.draw_candidates(embeddings)
    rows = np.concatenate([lists[way].reshape(-1, 101) for way in protocols.DIRECTIONS])
    met = {
        product: set(embeddings.image_product[rows[rows[:, 0] // 2 == product][:, 1:]].ravel()) for product in (0, 2, 4)
    }
    assert not met[0] & {"P2", "P4"} and not met[2] & {"P0"} and not met[4] & {"P0"}
    assert "P4" in met[2]


def test_lists_from_elsewhere_lose_the_negatives_that_share_a_caption():
    captions = ["same"] * 3 + [f"caption {number}" for number in range(3, 120)]
    lists, _ = protocols.draw_candidates(
        embedded_catalogue(products=120, views=2)
    )  # drawn as if no caption were shared
    embeddings = embedded_catalogue(products=120, views=2, captions=captions)
    embeddings.text_embeddings[:3] = embeddings.text_embeddings[0]
    embeddings.image_embeddings[:6] = embeddings.text_embeddings[0]
    result = protocols.evaluate(embeddings, "sampled101", (1,), candidates=(lists, 0))
    assert recalls(result) == [1, 1]
    assert "candidates of these lists were left out" in result["protocol"] and result["fewest_negatives"] == 98


def test_one_view_has_one_image_and_one_caption_for_each_product():
    result = protocols.evaluate(embedded_catalogue(noise=0.05), "one_view", (1,))
    assert recalls(result) == [1, 1]
    assert result["text_to_image"]["queries"] == result["image_to_text"]["queries"] == 6


def test_a_caption_that_products_share_is_one_query_with_all_their_images():
    embeddings = embedded_catalogue(products=3, captions=["same", "same", "other"])
    task = protocols.tasks(embeddings, "product")["text_to_image"]
    assert len(task.queries) == 2
    assert np.diff(task.positives.offsets).tolist() == [6, 3]
    back = protocols.tasks(embeddings, "product")["image_to_text"]
    assert back.positives.items.tolist() == [0] * 6 + [1] * 3


def test_categories_add_up_and_carry_intervals():
    result = protocols.evaluate(embedded_catalogue(noise=1.0), "product", (1, 5, 10))["text_to_image"]
    assert sum(part["queries"] for part in result["categories"].values()) == result["queries"] == 6
    for name in ("recall@1", "mrr", "map", "median_rank", "mean_rank"):
        low, high = result["intervals"][name]
        assert low <= result[name] <= high
        for part in result["categories"].values():
            assert part["intervals"][name][0] <= part[name] <= part["intervals"][name][1]


def test_k_beyond_the_gallery_is_one():
    assert recalls(protocols.evaluate(embedded_catalogue(noise=3.0), "product", (1, 500)), 500) == [1, 1]


def test_products_without_a_counterpart_are_left_out_and_counted():
    embeddings = embedded_catalogue()
    embeddings.text_product = np.array(["P0", "P1", "P2", "P3", "P4", "elsewhere"])
    result = protocols.evaluate(embeddings, "product", (1,))
    assert result["text_to_image"]["without_positive"] == 1
    assert result["image_to_text"]["without_positive"] == 3


def test_nothing_in_common_is_an_error():
    embeddings = embedded_catalogue()
    embeddings.text_product = np.array([f"Q{number}" for number in range(6)])
    with pytest.raises(ValueError, match="nothing in common"):
        protocols.evaluate(embeddings, "product", (1,))


# ---------------------------------------------------------------------------------------------- sampled101


def test_negatives_are_distinct_products_of_the_subcategory():
    embeddings = embedded_catalogue(products=300, views=2, noise=0.1, subcategories=2)
    lists, topped_up = protocols.draw_candidates(embeddings, seed=1)
    assert topped_up == 0
    for direction, draw in itertools.product(protocols.DIRECTIONS, range(5)):
        rows = lists[direction][draw]
        assert rows.shape == (600, 101)
        assert len(set(rows[:, 0].tolist())) == 600  # every image asks once
        products, kinds = embeddings.image_product[rows], embeddings.subcategory[rows]
        assert (kinds == kinds[:, :1]).all()
        assert all(len(set(row)) == 101 for row in products.tolist())


def test_small_subcategories_are_topped_up_from_the_category_then_from_any():
    embeddings = embedded_catalogue(products=240, views=1, subcategories=12)  # 20 of a kind, 120 of a category
    lists, topped_up = protocols.draw_candidates(embeddings)
    rows = lists["text_to_image"][0]
    assert topped_up == 2 * 5 * 240
    assert (embeddings.category[rows] == embeddings.category[rows[:, :1]]).all()
    same = embeddings.subcategory[rows] == embeddings.subcategory[rows[:, :1]]
    assert (same.sum(1) == 20).all()


def test_fewer_products_than_candidates_leave_places_empty():
    embeddings = embedded_catalogue(products=30, views=2, noise=0.1)
    result = protocols.evaluate(embeddings, "sampled101", (1, 5))
    assert result["fewest_negatives"] == 29
    assert "29 to 100 negatives" in result["protocol"]
    assert result["text_to_image"]["chance"]["recall@5"] == pytest.approx(5 / 30)
    assert recalls(result)[0] > 0.9


def test_the_lists_are_the_same_everywhere():
    """Made of PCG64's raw numbers: these values must never change."""
    lists, _ = protocols.draw_candidates(embedded_catalogue(products=150, views=2), seed=0)
    assert lists["text_to_image"].shape == (5, 300, 101)
    again, _ = protocols.draw_candidates(embedded_catalogue(products=150, views=2, seed=9), seed=0)  # other embeddings
    assert all((lists[way] == again[way]).all() for way in protocols.DIRECTIONS)
    other, _ = protocols.draw_candidates(embedded_catalogue(products=150, views=2), seed=1)
    assert (lists["text_to_image"] != other["text_to_image"]).any()
    assert lists["text_to_image"][0, :3, :4].tolist() == [[269, 44, 257, 20], [11, 286, 231, 154], [196, 297, 172, 261]]


def test_perfect_and_constant_models_in_sampled101():
    assert recalls(protocols.evaluate(embedded_catalogue(products=120, views=2), "sampled101", (1,))) == [1, 1]
    constant = embedded_catalogue(products=120, views=2)
    constant.image_embeddings[:] = constant.image_embeddings[0]
    constant.text_embeddings[:] = constant.image_embeddings[0]
    assert recalls(protocols.evaluate(constant, "sampled101", (1,))) == [0, 0]
    for name in ("product", "pair", "one_view"):
        assert recalls(protocols.evaluate(constant, name, (1,))) == [0, 0]
