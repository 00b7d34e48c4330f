"""Zero-shot classification on embeddings whose answer is known."""

import numpy as np
import pytest
import torch

from clip_finetuning.model.building import create_model
from clip_finetuning.retrieval import zero_shot
from tests.helpers import embedded_catalogue, write_config


@pytest.fixture
def names(monkeypatch):
    """Category names embed to the axes, in alphabetical order."""
    monkeypatch.setattr(
        zero_shot, "embed_names", lambda model, names, precision, prompts: np.eye(16, dtype=np.float32)[: len(names)]
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


def test_chance_and_majority_stand_beside_the_figure(names):
    """Always saying BAGS is right in 4 of 5 pictures, and that is no achievement."""
    result = zero_shot.classify(None, labelled(["BAGS"] * 4 + ["SHOES"], [1, 1, 1, 1, 1]), "fp32")
    assert result["chance"] == {"top1": 0.5, "top5": 1.0, "macro": 0.5}
    assert result["majority"] == {"top1": 0.8, "class": "BAGS"} and result["top1"] == 0.2
    assert result["weighted"] == result["top1"] and result["macro"] == 0.5
    assert result["f1"] == {"macro": pytest.approx((0 + 1 / 3) / 2), "weighted": pytest.approx(1 / 15)}


def test_what_has_no_category_is_counted(names):
    result = zero_shot.classify(None, labelled(["BAGS", "SHOES", ""], [0, 1, 1]), "fp32")
    assert (result["without_category"], result["without_embedding"], result["images"]) == (1, [], 2)


def test_spellings_that_the_prompts_make_equal_are_one_class(names):
    result = zero_shot.classify(None, labelled(["Bags", "SHOES", "bags", "Shoes "], [0, 1, 0, 1]), "fp32")
    assert (result["top1"], result["classes"], result["other_spellings"]) == (1.0, 2, 2)


# ------------------------------------------------------------------------------------------------- prompts


def test_prompts_of_a_file_are_asked_in_their_words(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffa photo of {}.\n\n  {0} or {{}} of {}  \r\n".encode())
    prompts = zero_shot.read_prompts(tmp_path / "p.txt")
    assert prompts == ["a photo of {}.", "{0} or {{}} of {}"]
    model = create_model(write_config(tmp_path), "", None, torch.device("cpu"), seed=7)
    asked = []
    tokenizer = model.tokenizer
    model.tokenizer = lambda texts: asked.extend(texts) or tokenizer(texts)
    rows = zero_shot.embed_names(model, ["BAGS"], "fp32", prompts)
    assert asked == ["a photo of bags.", "{0} or {bags} of bags"] and np.linalg.norm(rows[0]) == pytest.approx(
        1, abs=1e-5
    )
    assert not np.allclose(rows, zero_shot.embed_names(model, ["BAGS"], "fp32", prompts[:1]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a photo of {}\na photo\n", "p.txt, line 2: 'a photo' has no {}"),
        (b"a photo of {c}\n", "p.txt, line 1: 'a photo of {c}' has no {}"),
        (b" \n\n", "p.txt holds no prompt"),
        (b"a {}\nb {}\n a {}\n", "p.txt, line 3 says the same as line 1"),
        (b"\xff\xfe{}\n", "p.txt cannot be read as UTF-8 text"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused_by_line(tmp_path, content, words):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        zero_shot.read_prompts(tmp_path / "p.txt")
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_prompts_that_are_not_there_are_said_as_such(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.txt does not exist; write one prompt a line"):
        zero_shot.read_prompts(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="cannot be read"):
        zero_shot.read_prompts(tmp_path)
