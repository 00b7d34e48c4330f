"""Which queries a page shows: drawn by the data alone, with what they should have found and what was found before."""

import dataclasses

import numpy as np
import pytest

from clip_finetuning.retrieval import examples, protocols, ranking, truth
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.names import DIRECTIONS
from tests.helpers import embedded_catalogue


def catalogue(noise, **changes):
    return embedded_catalogue(products=60, views=2, noise=noise, **changes)


@pytest.fixture(scope="module")
def embeddings():
    """Of a model whose queries succeed and fail."""
    return catalogue(noise=1.8)


@pytest.fixture(scope="module")
def picked(embeddings):
    return examples.pick(embeddings)


def test_what_was_ranked_is_not_ranked_again(embeddings, picked, monkeypatch):
    kept = {}
    protocols.evaluate(embeddings, "product", (1,), truth=truth.truth_of(embeddings, "all"), kept=kept)
    monkeypatch.setattr(ranking, "rank_positives", lambda *_, **__: pytest.fail("ranked again"))
    assert examples.pick(embeddings, truth.truth_of(embeddings, "all"), kept=kept) == picked


def names_of(embeddings, picked, direction):
    return [examples.name_of(embeddings, e.direction, e.query) for e in picked if e.direction == direction]


def with_other_text_order(embeddings):
    """The same data whose texts come in another order: as somebody else's file may have them."""
    order = np.random.default_rng(5).permutation(len(embeddings.captions))
    return dataclasses.replace(
        embeddings,
        text_embeddings=embeddings.text_embeddings[order],
        text_product=embeddings.text_product[order],
        captions=embeddings.captions[order],
        image_text=np.argsort(order)[embeddings.image_text],
    )


def test_what_is_shown_is_what_was_asked_for(embeddings, picked):
    assert len(picked.sample) == 40
    assert 0 < len(picked.worst) <= 20
    for example in picked.sample + picked.worst:
        asked, answered = embeddings.text_product, embeddings.image_product
        if example.direction == "image_to_text":
            asked, answered = answered, asked
        assert len(example.answers) == 5
        assert (example.rank <= 5) == any(example.hits) == (not example.is_failed)
        assert example.hits == [answered[answer.item] == asked[example.query] for answer in example.answers]
        assert [answer.score for answer in example.answers] == sorted((a.score for a in example.answers), reverse=True)
    ranks = [example.rank for example in picked.worst if example.direction == "image_to_text"]
    assert ranks == sorted(ranks, reverse=True) and min(ranks) > 1


def test_the_sample_is_that_of_the_data_whatever_the_model_and_the_order_of_texts(embeddings, picked):
    other = examples.pick(with_other_text_order(catalogue(noise=0.5, seed=9)))
    renamed = catalogue(noise=1.8)
    renamed.image_key = texts(f"other {key}" for key in renamed.image_key)
    for way in DIRECTIONS:
        mine = names_of(embeddings, picked.sample, way)
        assert len(set(mine)) == 20
        assert mine == names_of(with_other_text_order(embeddings), other.sample, way)
        theirs = [name.removeprefix("other ") for name in names_of(renamed, examples.pick(renamed).sample, way)]
        assert set(mine) != set(theirs)


def test_what_is_wanted_is_the_best_of_the_right_answers(embeddings, picked):
    failed = [example for example in picked.worst if example.is_failed]
    assert {example.direction for example in failed} == set(DIRECTIONS)
    for example in picked.sample + picked.worst:
        scores = embeddings.image_embeddings @ embeddings.text_embeddings.T
        if example.direction == "text_to_image":
            own, scores = embeddings.image_product == embeddings.text_product[example.query], scores[:, example.query]
        else:
            own, scores = embeddings.text_product == embeddings.image_product[example.query], scores[example.query]
        assert own[example.wanted.item]
        assert example.wanted.score == pytest.approx(scores[own].max(), abs=1e-6)
        assert (scores > example.wanted.score + 1e-6).sum() < example.rank


def test_a_key_of_two_samples_stands_for_no_picture(embeddings, picked):
    twice = catalogue(noise=1.8)
    first = picked.images(embeddings)[0]
    twice.image_key[first] = twice.image_key[first - 1]
    assert set(picked.keys(twice)) == {*picked.images(embeddings)} - {first, first - 1}


def test_confused_categories_come_by_their_share():
    """All pictures of SHOES lie where the captions of TOPS do, and one of TOPS where one of SHOES does."""
    confused = embedded_catalogue(products=6, views=2)
    for product in (0, 2, 4):
        confused.image_embeddings[2 * product : 2 * product + 2] = confused.text_embeddings[product + 1]
    confused.image_embeddings[2] = confused.text_embeddings[0]
    assert examples.pick(confused).confusions == [
        ("SHOES", "TOPS", 6, 1.0, 3),
        ("TOPS", "SHOES", 1, pytest.approx(1 / 6), 3),
    ]


def test_a_result_file_knows_of_its_sample_what_the_embeddings_know(embeddings, picked):
    """Both give the answers before by name, whatever order the texts of the model before have."""
    base = with_other_text_order(catalogue(noise=4.0))
    by_file = examples.record(base)
    by_embeddings = examples.before(base, None, picked, embeddings)
    for way in DIRECTIONS:
        sample, everything = (
            names_of(embeddings, picked.sample, way),
            names_of(embeddings, picked.sample + picked.worst, way),
        )
        assert [entry["query"] for entry in by_file[way]] == sample
        assert {entry["query"] for entry in by_embeddings[way]} == set(everything) > set(sample)
        known = {entry["query"]: entry for entry in by_embeddings[way]}
        assert all(known[entry["query"]] == entry for entry in by_file[way])


def test_answers_before_are_those_of_the_model_before(embeddings, picked):
    base = catalogue(noise=4.0)
    before = examples.before(base, None, picked, embeddings)["text_to_image"]
    for entry in before:
        (query,) = np.flatnonzero(texts(c.lower() for c in base.captions) == entry["query"])
        scores = base.image_embeddings @ base.text_embeddings[query]
        order = np.argsort(-scores)[:5]
        right = base.image_product == base.text_product[query]
        assert [answer["name"] for answer in entry["answers"]] == base.image_key[order].tolist()
        assert [answer["hit"] for answer in entry["answers"]] == right[order].tolist()
        assert entry["rank"] == 1 + (scores[~right] >= scores[right].max()).sum()


def test_pictures_that_were_answers_before_are_looked_up_too(embeddings, picked):
    base = catalogue(noise=4.0)
    now = dataclasses.replace(picked, before=examples.before(base, None, picked, embeddings))
    shown = {answer["name"] for entry in now.before["text_to_image"] for answer in entry["answers"]}
    assert shown <= set(now.keys(embeddings).values()) and not shown <= set(picked.keys(embeddings).values())
