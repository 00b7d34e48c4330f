"""The four protocols on hand-made embeddings: what is queried, what is a hit."""

import numpy as np
import pytest

from clip_finetuning.retrieval import protocols
from clip_finetuning.retrieval.names import DIRECTIONS
from tests.helpers import embedded_catalogue


def recalls(result, k=1):
    return [result[direction][f"recall@{k}"] for direction in DIRECTIONS]


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
    for direction in DIRECTIONS:
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


def test_perfect_and_constant_models():
    assert recalls(protocols.evaluate(embedded_catalogue(products=120, views=2), "sampled101", (1,))) == [1, 1]
    constant = embedded_catalogue(products=120, views=2)
    constant.image_embeddings[:] = constant.image_embeddings[0]
    constant.text_embeddings[:] = constant.image_embeddings[0]
    assert recalls(protocols.evaluate(constant, "sampled101", (1,))) == [0, 0]
    for name in ("product", "pair", "one_view"):
        assert recalls(protocols.evaluate(constant, name, (1,))) == [0, 0]
