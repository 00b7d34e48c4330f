"""Pictures that look the same are found, all of them, and no others."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clip_finetuning.pictures import near_duplicates
from clip_finetuning.pictures.near_duplicates import close_hashes, close_pairs, fingerprint

pytest.importorskip("imagehash")


def garment(number, colour=None, size=128):
    """A shape on white that tells its number, in a colour of its own."""
    random = np.random.default_rng(number)
    colour = colour or tuple(random.integers(0, 200, 3).tolist())
    picture = Image.new("RGB", (size, size), "white")
    corners = [tuple(corner) for corner in random.integers(size // 16, size - size // 16, (9, 2)).tolist()]
    ImageDraw.Draw(picture).polygon(corners, fill=colour)
    return picture


def saved(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def pairs_of(pictures):
    return {
        (a, b)
        for pairs in close_pairs([fingerprint(picture) for picture in pictures])
        for a, b in zip(*(values.tolist() for values in pairs[:2]))
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: saved(picture, 90),
        lambda picture: saved(picture, 50),
        lambda picture: picture.resize((300, 300)),
        lambda picture: picture.resize((64, 64)),
        lambda picture: picture.crop((1, 1, 127, 127)),
    ],
    ids=["saved again", "saved badly", "enlarged", "made smaller", "cropped by a hair"],
)
def test_the_same_picture_changed_a_little(change):
    pictures = [garment(number) for number in range(12)]
    assert pairs_of([*pictures, *map(change, pictures)]) == {(number, number + 12) for number in range(12)}


def test_another_colour_is_another_product():
    assert not pairs_of([garment(3, "red"), garment(3, "blue"), garment(3, "black")])


def test_many_copies_are_each_paired_with_the_first():
    assert pairs_of([garment(1), garment(2), garment(1), garment(1)]) == {(0, 2), (0, 3)}


def test_nothing_to_compare():
    assert pairs_of([]) == pairs_of([garment(1)]) == set()


@pytest.mark.parametrize("compared", [1, 50, 1 << 22])
def test_close_hashes_are_those_of_the_full_matrix(monkeypatch, compared):
    monkeypatch.setattr(near_duplicates, "COMPARED", compared)
    random = np.random.default_rng(0)
    centres = random.integers(0, 2**64, 40, dtype=np.uint64)
    flips = np.packbits(random.random((400, 64)) < 0.05, axis=1).view(np.uint64).ravel()
    corners = np.array([0, 1, 2**64 - 1], dtype=np.uint64)
    hashes = np.concatenate([centres[random.integers(0, 40, 400)] ^ flips, corners])
    found = [(a, b, d) for part in close_hashes(hashes) for a, b, d in zip(*(values.tolist() for values in part))]
    bits = [int(value) for value in hashes]
    distance = {(a, b): (bits[a] ^ bits[b]).bit_count() for b in range(len(bits)) for a in range(b)}
    expected = [(a, b, d) for (a, b), d in distance.items() if d <= near_duplicates.MAX_DISTANCE]
    assert len(expected) > 100
    assert sorted(found) == sorted(expected)


def test_bits_are_counted_by_an_older_numpy_too(monkeypatch):
    values = np.array([[0, 1], [2**64 - 1, 7]], dtype=np.uint64)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert near_duplicates._bit_count(values).tolist() == [[0, 1], [64, 3]]
