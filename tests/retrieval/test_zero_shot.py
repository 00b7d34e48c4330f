"""Zero-shot classification on embeddings whose answer is known."""

import numpy as np
import pytest

from clip_finetuning.retrieval import zero_shot
from tests.helpers import embedded_catalogue


@pytest.fixture
def names(monkeypatch):
    """Category names embed to the axes, in alphabetical order."""
    monkeypatch.setattr(
        zero_shot, "embed_names", lambda model, names, precision: np.eye(16, dtype=np.float32)[: len(names)]
    )


def labelled(categories, answers):
    embeddings = embedded_catalogue(products=len(categories), views=1)
    embeddings.category = np.array(categories)
    embeddings.image_embeddings = np.eye(16, dtype=np.float32)[answers]
    return embeddings


def test_top_1_and_macro(names):
    """Three of four BAGS and no SHOES right: 3 / 5 of the pictures, (3 / 4 + 0) / 2 of the categories."""
    result = zero_shot.classify(None, labelled(["BAGS"] * 4 + ["SHOES"], [0, 0, 0, 1, 0]), "fp32")
    assert result["top1"] == pytest.approx(0.6)
    assert result["macro"] == pytest.approx(0.375)
    assert result["top5"] == 1
    assert (result["classes"], result["images"]) == (2, 5)


def test_a_tie_is_no_hit(names):
    embeddings = labelled(["BAGS", "SHOES"], [0, 1])
    embeddings.image_embeddings[:] = 1 / 4
    assert zero_shot.classify(None, embeddings, "fp32")["top1"] == 0


def test_pictures_without_a_category_are_left_out(names):
    assert zero_shot.classify(None, labelled(["BAGS", "SHOES", ""], [0, 1, 1]), "fp32")["images"] == 2


def test_one_category_is_nothing_to_tell_apart(names):
    with pytest.raises(ValueError, match="at least 2 categories, the shards name 1"):
        zero_shot.classify(None, labelled(["BAGS", "BAGS"], [0, 1]), "fp32")
