"""What is alike of different products, by pictures, captions and attributes, against a reference that compares all with all."""

import numpy as np
import pytest

from clip_finetuning.retrieval import alike, protocols
from clip_finetuning.retrieval.positives import Positives, by_group
from clip_finetuning.retrieval.wording import wording_key
from tests.helpers import embedded_catalogue


def look(number, colour=0):
    """A fingerprint: a hash and one colour all over."""
    return np.frombuffer(int(number).to_bytes(8, "big") + bytes([colour]) * 192, np.uint8)


def lists(pairs):
    return [sorted(pairs.of(query).tolist()) for query in range(len(pairs.offsets) - 1)]


def related(embeddings, protocol="product"):
    likeness = alike.likeness_of(embeddings)
    task = protocols.tasks(embeddings, protocol)["text_to_image"]
    return alike.related(likeness, task.positives, task.gallery_items, task.query_items)


def test_pictures_captions_and_attributes_each_find_their_pairs():
    """Five products of one view: 0 and 1 look alike, 2 and 3 are worded alike, 3 and 4 have the same attributes."""
    mine = embedded_catalogue(products=5, views=1, captions=["a", "b", "Navy coat, wool.", "wool; NAVY coat", "e"])
    mine.category[:] = "COATS"
    mine.looks = np.stack([look(0), look(0b111111, 4), look(2**64 - 1), look(2**32 - 1), look(0, 9)])
    red = {"colour": "Red", "size": "M"}
    mine.attributes = np.array(
        [{}, {"colour": "red"}, {"colour": "red", "size": "L"}, red, {"size": " m", "colour": "RED"}]
    )
    found = related(mine)
    assert lists(found.pairs) == [[1], [0], [3], [2, 4], [3]]
    assert found.counts() == {"pictures": 2, "captions": 2, "attributes": 2, "all": 6}
    assert alike.likeness_of(mine).incomplete == 2 and alike.likeness_of(mine).names == ("colour", "size")


def test_nothing_is_alike_where_nothing_is_known():
    found = related(embedded_catalogue())
    assert found.counts() == {"captions": 0, "all": 0} and not len(found.pairs.items)


def test_the_same_attributes_in_another_category_are_not_alike():
    mine = embedded_catalogue(products=3, views=1)  # SHOES, TOPS, SHOES
    mine.attributes = np.array([{"colour": "red"}] * 3)
    assert lists(related(mine).pairs) == [[2], [], [0]]


def test_one_view_knows_the_first_pictures_alone():
    mine = embedded_catalogue(products=2, views=2)
    mine.looks = np.stack([look(2**64 - 1), look(0), look(0xFFFF), look(0)])
    assert lists(related(mine).pairs) == [[3], [1]]
    assert lists(related(mine, "one_view").pairs) == [[], []]


def test_a_picture_that_stands_for_everything_is_one_line(monkeypatch):
    mine = embedded_catalogue(products=6, views=2)
    mine.looks = np.stack([look(0)] * 12)
    assert len(related(mine).pairs.items) == 6 * 10
    monkeypatch.setattr(alike, "MOST_PAIRS", 50)
    with pytest.raises(ValueError, match="^72 pairs .* name more attributes .*, or look for a picture"):
        related(mine)


def naive(likeness, own, images, texts):
    """Every query with every item."""
    found = []
    for query, text in enumerate(texts):
        mine = set(own.of(query).tolist())
        row = []
        for item, image in enumerate(images):
            near = any(likeness.look[image] in likeness.near.of(likeness.look[images[m]]) for m in mine)
            same = any(likeness.kind[image] == likeness.kind[images[m]] >= 0 for m in mine)
            worded = any(
                item in own.of(other) for other, t in enumerate(texts) if likeness.wording[t] == likeness.wording[text]
            )
            row += [item] if item not in mine and (near or same or worded) else []
        found.append(row)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_all_with_all(seed):
    random = np.random.default_rng(seed)
    looks, count, texts = 6, int(random.integers(1, 25)), int(random.integers(1, 12))
    close = np.eye(looks, dtype=bool) | (random.random((looks, looks)) < 0.1)
    close |= close.T
    likeness = alike.Likeness(
        wording=random.integers(0, 8, 30),
        look=random.integers(0, looks, 40),
        near=Positives(np.r_[0, close.sum(1).cumsum()], np.nonzero(close)[1]),
        kind=random.integers(-1, 9, 40),
    )
    images, asked = random.choice(40, count, replace=False), random.choice(30, texts, replace=False)
    own = by_group(random.integers(0, 10, texts), random.integers(0, 10, count))
    found = alike.related(likeness, own, images, asked)
    assert lists(found.pairs) == naive(likeness, own, images, asked)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Navy coat, wool; zip.", "navy  coat. Zip, wool"),
        ("V-neck shirt", "v neck SHIRT!"),
        ("women's top", "Women’s top"),
        ("Robe (soie)", "robe, soie"),
        ("ＡＢＣ　dress", "abc dress"),
        ("coat - wool", "wool, coat"),
        ("赤いコート。ウール", "ウール、赤いコート"),
    ],
)
def test_one_wording(one, other):
    assert wording_key(one) == wording_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("red dress with white dots", "white dress with red dots"),
        ("keycap: #", "keycap: *"),
        ("café", "cafe"),
        ("1.5 cm heel", "15 cm heel"),
        ("...", "!!"),
        ("size 40+", "size 40"),
        ("navy, navy coat", "navy coat"),
    ],
)
def test_another_wording(one, other):
    assert wording_key(one) != wording_key(other)
