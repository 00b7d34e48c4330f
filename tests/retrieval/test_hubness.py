"""Hubness of hand-made lists, and of models with and without a hub."""

import numpy as np
import pytest

from clip_finetuning.retrieval import hubness, protocols, table
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue


def test_skewness_is_the_third_standardized_moment():
    assert hubness.skewness(np.array([4, 4, 4])) == 0
    assert hubness.skewness(np.array([0, 2])) == 0
    # of 0, 0, 0, 4: mean 1, variance 3, third moment (3 * -1 + 27) / 4 = 6
    assert hubness.skewness(np.array([0, 0, 0, 4])) == pytest.approx(6 / 3**1.5)


def test_a_product_is_met_where_any_of_its_items_is():
    embeddings = embedded_catalogue(products=3, views=2, captions=["one", "both", "Both"])
    images = hubness.of_lists(np.array([[0, 5], [0, 1]]), embeddings, "text_to_image")
    assert images["never_in_top_10"] == pytest.approx(1 / 3)  # P1's images are 2 and 3
    assert images["skew_at_10"] == pytest.approx(hubness.skewness(np.array([2, 1, 0, 0, 0, 1])))
    texts = hubness.of_lists(np.array([[1]] * 6), embeddings, "image_to_text")  # a caption of P1 and P2
    assert texts == {"skew_at_10": hubness.skewness(np.array([0, 6])), "never_in_top_10": pytest.approx(1 / 3)}


def test_a_hub_is_seen_in_both_directions():
    even = embedded_catalogue(products=40, views=2, noise=0.1)
    hub = embedded_catalogue(products=40, views=2, noise=0.1)
    for rows in (hub.image_embeddings, hub.text_embeddings):
        rows *= 0.1
    hub.image_embeddings[:2] = hub.text_embeddings[0] = 1.0
    for direction in ("text_to_image", "image_to_text"):
        found = [protocols.evaluate(e, "product", (1,), kept={})[direction]["hubness"] for e in (even, hub)]
        assert found[1]["skew_at_10"] > found[0]["skew_at_10"]
        assert 0 <= found[0]["never_in_top_10"] < 0.2
    assert "hubness" not in protocols.evaluate(even, "product", (1,))["text_to_image"]  # costs time; a trainer has none


def test_all_queries_tied_and_a_gallery_below_ten_are_sane():
    embeddings = embedded_catalogue(products=40, views=1)
    embeddings.image_embeddings[:] = embeddings.text_embeddings[:] = embeddings.image_embeddings[0]
    tied = protocols.evaluate(embeddings, "product", (1,), kept={})["text_to_image"]["hubness"]
    assert tied["never_in_top_10"] == pytest.approx(30 / 40)
    small = protocols.evaluate(embedded_catalogue(products=3, views=1), "product", (1,), kept={})
    assert small["text_to_image"]["hubness"] == {"skew_at_10": 0, "never_in_top_10": 0}


def test_the_table_says_it_in_a_sentence():
    results = measure_embeddings(embedded_catalogue(products=30, noise=1.0), ["product"], (1, 10), kept={})
    shown = " ".join(table.render(results).split())
    numbers = results["protocols"]["product"]["image_to_text"]["hubness"]
    assert f"image->text skew {numbers['skew_at_10']:.2f}, {numbers['never_in_top_10']:.1%} of products never" in shown
    assert max(map(len, table.render(results).splitlines())) <= 80
