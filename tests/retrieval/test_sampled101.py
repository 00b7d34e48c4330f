"""The frozen lists of sampled101: what is drawn, what is left out, and lists that come in a file."""

import itertools

import numpy as np
import pytest

from clip_finetuning.retrieval import protocols, sampled101
from clip_finetuning.retrieval.names import DIRECTIONS
from tests.helpers import embedded_catalogue


def recalls(result, k=1):
    return [result[direction][f"recall@{k}"] for direction in DIRECTIONS]


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
    lists, _ = sampled101.draw_candidates(embeddings)
    rows = np.concatenate([lists[way].reshape(-1, 101) for way in DIRECTIONS])
    met = {
        product: set(embeddings.image_product[rows[rows[:, 0] // 2 == product][:, 1:]].ravel()) for product in (0, 2, 4)
    }
    assert not met[0] & {"P2", "P4"} and not met[2] & {"P0"} and not met[4] & {"P0"}
    assert "P4" in met[2]


def test_lists_from_elsewhere_lose_the_negatives_that_share_a_caption():
    captions = ["same"] * 3 + [f"caption {number}" for number in range(3, 120)]
    lists, _ = sampled101.draw_candidates(
        embedded_catalogue(products=120, views=2)
    )  # drawn as if no caption were shared
    embeddings = embedded_catalogue(products=120, views=2, captions=captions)
    embeddings.text_embeddings[:3] = embeddings.text_embeddings[0]
    embeddings.image_embeddings[:6] = embeddings.text_embeddings[0]
    result = protocols.evaluate(embeddings, "sampled101", (1,), candidates=sampled101.Candidates(lists, 0))
    assert recalls(result) == [1, 1]
    shared = np.repeat([0, 0, 0, *range(3, 120)], 2)  # the caption of each image
    left_out = sum(int((shared[rows[:, :, 1:]] == shared[rows[:, :, :1]]).sum()) for rows in lists.values())
    assert f"for which {left_out:,} candidates of these lists were left out" in result["protocol"] and left_out > 0
    assert result["fewest_negatives"] == 98


def test_negatives_are_distinct_products_of_the_subcategory():
    embeddings = embedded_catalogue(products=300, views=2, noise=0.1, subcategories=2)
    lists, topped_up = sampled101.draw_candidates(embeddings, seed=1)
    assert topped_up == 0
    for direction, draw in itertools.product(DIRECTIONS, range(5)):
        rows = lists[direction][draw]
        assert rows.shape == (600, 101)
        assert len(set(rows[:, 0].tolist())) == 600  # every image asks once
        products, kinds = embeddings.image_product[rows], embeddings.subcategory[rows]
        assert (kinds == kinds[:, :1]).all()
        assert all(len(set(row)) == 101 for row in products.tolist())


def test_small_subcategories_are_topped_up_from_the_category_then_from_any():
    embeddings = embedded_catalogue(products=240, views=1, subcategories=12)  # 20 of a kind, 120 of a category
    lists, topped_up = sampled101.draw_candidates(embeddings)
    rows = lists["text_to_image"][0]
    assert topped_up == 2 * 5 * 240
    assert (embeddings.category[rows] == embeddings.category[rows[:, :1]]).all()
    same = embeddings.subcategory[rows] == embeddings.subcategory[rows[:, :1]]
    assert (same.sum(1) == 20).all()


def test_fewer_products_than_candidates_leave_places_empty():
    embeddings = embedded_catalogue(products=30, views=2, noise=0.1)
    result = protocols.evaluate(embeddings, "sampled101", (1, 5))
    assert result["fewest_negatives"] == 29
    assert "its positive and 29 negatives" in result["protocol"]
    assert "600 of 600 lists topped up" in result["protocol"] and result["topped_up"] == 2 * 5 * 60
    assert protocols.evaluate(embeddings, "sampled101", (1, 500))["text_to_image"]["chance"]["recall@500"] == 1
    assert result["text_to_image"]["chance"]["recall@5"] == pytest.approx(5 / 30)
    assert recalls(result)[0] > 0.9


def test_places_that_are_empty_are_no_rivals_of_a_query_without_an_embedding():
    embeddings = embedded_catalogue(products=6, views=1)
    embeddings.image_embeddings[2] = embeddings.text_embeddings[3] = 0
    result = protocols.evaluate(embeddings, "sampled101", (6, 7))
    for direction in ("text_to_image", "image_to_text"):
        assert result[direction]["recall@6"] == 1 and result[direction]["mean_rank"] <= 6


def test_the_lists_are_the_same_everywhere():
    """Made of PCG64's raw numbers: these values must never change."""
    lists, _ = sampled101.draw_candidates(embedded_catalogue(products=150, views=2), seed=0)
    assert lists["text_to_image"].shape == (5, 300, 101)
    again, _ = sampled101.draw_candidates(embedded_catalogue(products=150, views=2, seed=9), seed=0)  # other embeddings
    assert all((lists[way] == again[way]).all() for way in DIRECTIONS)
    other, _ = sampled101.draw_candidates(embedded_catalogue(products=150, views=2), seed=1)
    assert (lists["text_to_image"] != other["text_to_image"]).any()
    assert lists["text_to_image"][0, :3, :4].tolist() == [[269, 44, 257, 20], [11, 286, 231, 154], [196, 297, 172, 261]]


# ------------------------------------------------------------------------------------------------ the file


@pytest.fixture(scope="module")
def six():
    """Three products of two images."""
    return embedded_catalogue(products=3, views=2)


def write_lists(path, embeddings, **changes):
    """A file of lists of six images; `None` leaves an array out."""
    good = np.zeros((5, 6, 4), int)
    lists = {"text_to_image": good, "image_to_text": good, "topped_up": np.array(0)}
    lists = {key: value for key, value in (lists | changes).items() if value is not None}
    np.savez(path, fingerprint=embeddings.fingerprint(), **lists)
    return path


def test_lists_are_drawn_once_and_read_again(tmp_path):
    mine = embedded_catalogue(products=30)
    drawn = sampled101.read_or_draw(tmp_path / "c.npz", mine, seed=1)
    written = (tmp_path / "c.npz").read_bytes()
    again = sampled101.read_or_draw(tmp_path / "c.npz", mine, seed=2)
    assert (tmp_path / "c.npz").read_bytes() == written and again.topped_up == drawn.topped_up
    assert all((again.lists[way] == drawn.lists[way]).all() for way in DIRECTIONS)
    with pytest.raises(ValueError, match=r"c\.npz holds candidate lists of other data"):
        sampled101.read_or_draw(tmp_path / "c.npz", embedded_catalogue(products=31), seed=1)


@pytest.mark.parametrize(
    "change",
    [
        {"text_to_image": np.zeros((2, 3))},
        {"text_to_image": np.zeros((5, 6, 4))},
        {"text_to_image": np.full((5, 6, 4), 6)},
        {"text_to_image": np.full((5, 6, 4), -2)},
        {"text_to_image": np.full((5, 6, 4), -1)},
        {"text_to_image": np.zeros((5, 0, 4), int)},
        {"text_to_image": np.zeros((5, 7, 4), int)},
        {"topped_up": np.array("x\x1b")},
        {"topped_up": np.zeros(3, int)},
        {"topped_up": None},
        {"image_to_text": None},
    ],
)
def test_candidate_lists_name_images_that_are_there(six, tmp_path, change):
    path = write_lists(tmp_path / "theirs.npz", six)
    assert sampled101.read_or_draw(path, six, seed=0).lists["text_to_image"].shape == (5, 6, 4)
    write_lists(path, six, **change)
    with pytest.raises(ValueError, match=r"theirs\.npz holds damaged candidate lists: .*; name another file"):
        sampled101.read_or_draw(path, six, seed=0)


def test_a_file_may_leave_places_empty(six, tmp_path):
    rows = np.array([[[0, 5, -1], [1, -1, -1]]])
    path = write_lists(tmp_path / "c.npz", six, text_to_image=rows, image_to_text=rows)
    assert (sampled101.read_or_draw(path, six, seed=0).lists["text_to_image"] == rows).all()


def test_a_file_without_lists_is_told(six, tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match="holds no candidate lists"):
            sampled101.read_or_draw(tmp_path / name, six, seed=0)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_lists_are_whole_numbers_of_any_size(tmp_path, kind):
    """A place that holds no image is -1, which unsigned numbers do not have."""
    captions = ["same", "same", "other"]
    mine = embedded_catalogue(products=3, views=2, captions=captions)
    rows = np.array([[[0, 2, 4]]], dtype=kind)  # 2 has the caption of 0
    path = write_lists(tmp_path / "c.npz", mine, text_to_image=rows, image_to_text=rows)
    result = protocols.evaluate(mine, "sampled101", (1,), candidates=sampled101.read_or_draw(path, mine, seed=0))
    assert result["fewest_negatives"] == 1 and recalls(result) == [1, 1]
