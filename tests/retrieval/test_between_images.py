"""Images that ask for images: the one that asks is never in its own gallery, and the numbers are a naive reference's."""

import json

import numpy as np
import pytest

from clip_finetuning.retrieval import between_images, comparison, result_file, table
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue


def naive_ranks(embeddings, is_hit):
    """Pessimistic ranks of the hits of each image among all others, ascending, by the whole matrix."""
    images = embeddings.image_embeddings
    scores = images @ images.T
    found = []
    for query, row in enumerate(scores):
        hits = np.array([item for item in range(len(row)) if item != query and is_hit(query, item)], dtype=int)
        rivals = np.array([item for item in range(len(row)) if item != query and item not in hits], dtype=int)
        own = np.sort(row[hits])[::-1]
        found.append([place + 1 + int((row[rivals] >= score).sum()) for place, score in enumerate(own)])
    return found


@pytest.mark.parametrize(("protocol", "column"), [("image_to_image", "image_product"), ("same_category", "category")])
@pytest.mark.parametrize("most_pairs", [between_images.MOST_PAIRS, 7])  # all at once, or a few at a time
def test_ranks_are_those_of_a_naive_reference(monkeypatch, protocol, column, most_pairs):
    monkeypatch.setattr(between_images, "MOST_PAIRS", most_pairs)
    embeddings = embedded_catalogue(products=9, views=3, dimensions=4, noise=1.5)
    embeddings.image_product[:2] = "alone", "alone too"
    embeddings.category[5] = "OTHER"
    embeddings.category[20:22] = ""
    groups = getattr(embeddings, column)
    expected = naive_ranks(embeddings, lambda query, item: groups[query] and groups[query] == groups[item])
    asking = [ranks for ranks in expected if ranks]
    result = between_images.evaluate(embeddings, protocol, (1, 5), 0)
    numbers = result["image_to_image"]
    assert numbers["queries"] == len(asking) and numbers["without_positive"] == 27 - len(asking) > 0
    assert numbers["gallery"] == 26
    for k in (1, 5):
        assert numbers[f"recall@{k}"] == pytest.approx(np.mean([ranks[0] <= k for ranks in asking]))
    assert numbers["mrr"] == pytest.approx(np.mean([1 / ranks[0] for ranks in asking]))
    precision = [np.mean([(place + 1) / rank for place, rank in enumerate(ranks)]) for ranks in asking]
    assert numbers["map"] == pytest.approx(np.mean(precision))
    assert f"{27 - len(asking)} images, " in result["protocol"] and "have none and do not ask" in result["protocol"]


def test_views_that_are_alike_find_each_other_and_chance_counts_the_others():
    result = between_images.evaluate(embedded_catalogue(products=6, views=3), "image_to_image", (1, 2), 0)
    numbers = result["image_to_image"]
    assert numbers["recall@1"] == numbers["map"] == 1
    assert numbers["chance"]["recall@1"] == pytest.approx(2 / 17)
    assert result["protocol"] == "each of 18 images against all 17 others; a hit is another view of the same product"
    assert sum(numbers["by_product"]["queries"]) == 18 and set(numbers["categories"]) == {"SHOES", "TOPS"}


def test_a_picture_that_another_product_has_too_ties_against_the_model():
    embeddings = embedded_catalogue(products=2, views=2)
    embeddings.image_embeddings[:] = embeddings.image_embeddings[0]
    assert between_images.evaluate(embeddings, "image_to_image", (1, 3), 0)["image_to_image"]["recall@1"] == 0


def test_the_same_attributes_are_those_of_the_same_category_and_all_equal():
    """0 and 1 agree but for case; 2 is of another category, 3 lacks one, 4 says nothing, 5 has another value."""
    embeddings = embedded_catalogue(products=6, views=1)
    embeddings.category = np.array(["A", "A", "B", "A", "A", "A"], dtype=object)
    said = {"colour": "red", "material": "wool"}
    embeddings.attributes = [
        said,
        {"material": "Wool", "colour": "RED"},
        said,
        {"colour": "red"},
        {},
        said | {"colour": "blue"},
    ]
    result = between_images.evaluate(embeddings, "same_attributes", (5,), 0)
    assert result["image_to_image"]["queries"] == 2 and result["image_to_image"]["without_positive"] == 4
    assert result["image_to_image"]["chance"]["recall@5"] == 1
    assert "4 images, 4 whole products, have none" in result["protocol"]


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("image_to_image", "image_to_image: a hit is another view of the same product, .* every product has one view"),
        ("same_category", "same_category needs categories, and the data name none"),
        ("same_attributes", "same_attributes needs categories"),
    ],
)
def test_what_the_data_cannot_be_asked_is_a_line(protocol, words):
    embeddings = embedded_catalogue(products=4, views=1)
    embeddings.category[:] = ""
    with pytest.raises(ValueError, match=words):
        between_images.evaluate(embeddings, protocol, (1,), 0)


def test_attributes_that_nobody_names_are_a_line():
    with pytest.raises(ValueError, match="same_attributes needs attributes, and the data name none"):
        between_images.evaluate(embedded_catalogue(), "same_attributes", (1,), 0)


def test_one_category_makes_every_image_a_hit():
    embeddings = embedded_catalogue(products=5, views=2, noise=2.0)
    embeddings.category[:] = "ONE"
    numbers = between_images.evaluate(embeddings, "same_category", (1,), 0)["image_to_image"]
    assert numbers["recall@1"] == numbers["map"] == numbers["chance"]["recall@1"] == 1


def test_a_protocol_of_one_direction_goes_through_files_tables_and_comparisons(tmp_path):
    def results(noise):
        embeddings = embedded_catalogue(products=60, views=2, noise=noise)
        measured = measure_embeddings(embeddings, ["image_to_image", "same_category"], (1, 5, 10))
        return measured | {"data": {"fingerprint": embeddings.fingerprint()}}

    result_file.write(tmp_path / "a.json", results(2.0))
    result_file.write(tmp_path / "b.json", results(0.1))
    first, second = (result_file.read(tmp_path / name) for name in ("a.json", "b.json"))
    assert first["recall@5"] == {"image_to_image": first["protocols"]["image_to_image"]["image_to_image"]["recall@5"]}
    lines = table.render(first).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.strip() == "image->image" for line in lines) == 2
    text = comparison.compare(first, second)
    assert "image_to_image, image->image" in text and "same_category, image->image" in text
    assert text.count(" better") >= 3
    for spoil in ({"image_to_image": None}, {"image_to_image": {}}):
        spoiled = json.loads((tmp_path / "a.json").read_text())
        spoiled["protocols"]["image_to_image"] |= spoil
        with pytest.raises(ValueError, match="image_to_image"):
            result_file.check_results(spoiled)
