"""The tables of the console: every number of both directions, within 80 columns."""

import pytest

from clip_finetuning.retrieval import table
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue


@pytest.fixture(scope="module")
def results():
    embeddings = embedded_catalogue(products=30, views=2, noise=0.5)
    return measure_embeddings(embeddings, ["product", "pair", "one_view", "sampled101"], (1, 5, 10))


def test_a_line_has_a_number_of_both_directions(results):
    lines = table.render(results).splitlines()
    numbers = results["protocols"]["product"]
    recall, median = (
        next(line for line in lines if line.startswith(f"  {label} ")) for label in ("Recall@5", "median rank")
    )
    for way in ("text_to_image", "image_to_text"):
        low, high = numbers[way]["intervals"]["recall@5"]
        chance = numbers[way]["chance"]["recall@5"]
        assert f"{numbers[way]['recall@5']:.4f} [{low:.3f}, {high:.3f}] ({chance:.3f})" in recall
        assert f" {numbers[way]['median_rank']:.4g}" in median
    assert [line.split(":")[0] for line in lines if line.startswith(tuple(results["protocols"]))] == [
        *results["protocols"]
    ]


def test_all_fits_eighty_columns(results):
    about = {
        "model": {"name": "ViT-B-32-with-a-long-name", "weights": "/a/folder/" + "w" * 80, "precision": "bf16"},
        "data": {
            "skipped": {"truncated or damaged image": 12, "picture without a finite embedding": 3, "no caption": 1},
            "again_in_fp32": {"images": 5, "captions": 0},
        },
        "warnings": ["a long sentence " * 10],
        "zero_shot": {
            "classes": 121,
            "images": 5000,
            "prompts": ["{}"] * 5,
            "top1": 1 / 3,
            "top5": 0.5,
            "macro": 0.25,
            "f1": {"macro": 0.2, "weighted": 0.3},
            "chance": {"top1": 1 / 121, "top5": 5 / 121, "macro": 1 / 121},
            "majority": {"top1": 0.29, "class": "SYMBOLS"},
            "without_category": 7,
            "without_embedding": ["BAGS"] * 30,
            "intervals": {"top1": [0.3, 0.36], "top5": [0.4, 0.6], "macro": [0.2, 0.3]},
            "confusion": {
                "top": [{"class": "TROUSERS AND JEANS" * 2, "taken_for": "SHORTS", "images": 3, "share": 0.3}] * 9
            },
        },
    }
    text = table.render(results | about)
    assert max(map(len, text.splitlines())) <= 80
    assert "left out: 12 truncated or damaged image, 3 picture without" in text
    assert "overflowed, embedded again in fp32: 5 images\n" in text
    assert "always saying\n  'SYMBOLS', the largest, gives top-1 0.2900" in text
    assert "  top-1" + 12 * " " + "0.3333 [0.300, 0.360] (0.008)\n" in text and "macro 0.2000, weighted 0.3000" in text
    assert "left out: 7 images without a category" in text and text.count("for SHORTS") == 5
    assert "since the name's embedding is not finite: BAGS, BAGS" in text
