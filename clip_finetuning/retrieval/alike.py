"""Which pictures and captions of other products could as well be right: what the truth of a catalogue leaves out.

A catalogue names one product as right where five look alike (Chun et al. 2022 found 3.6 to 8.5 times as many right answers
in COCO as it lists). A caption and a picture of another product are alike if

pictures    the picture is a near-duplicate of one of the caption's own, within the limits of the audit
captions    the picture's own caption is the same wording (`wording.wording_key`)
attributes  category and all attributes of the two products are equal, and none is blank

Where pictures ask for pictures, those of one product, or category, stand for the caption's own, and their captions for it.
None of it asks a model, so no model is judged by its own opinion.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clip_finetuning.pictures.near_duplicates import close_pairs, unpacked
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.positives import Positives, by_group, distinct, from_keys, not_among, pair_keys
from clip_finetuning.retrieval.wording import wording_key
from clip_finetuning.runtime.text import same_caption_key

REASONS = ("pictures", "captions", "attributes")
NONE = np.empty(0, np.int64)
MOST_PAIRS = 100_000_000  # 800 MB a list


@dataclass(frozen=True)
class Likeness:
    """What is alike in a data set, before a protocol says who asks whom. Samples with equal numbers are alike."""

    wording: np.ndarray  # (M,) of each text
    look: np.ndarray | None = None  # (N,) of each image; None: nobody looked
    near: Positives | None = None  # the looks that are near each look, itself one of them
    kind: np.ndarray | None = (
        None  # (N,) of each sample's category and attributes, -1 where one is blank; None: no attributes
    )
    names: tuple[str, ...] = ()  # of the attributes
    incomplete: int = 0  # samples that lack an attribute which others of their category have


class Alike(NamedTuple):
    """For each query the gallery items of other products that are alike, together and by reason."""

    pairs: Positives
    keys: dict[str, np.ndarray]  # {reason: pairs as numbers `query * G + item`}; a pair may have several

    def counts(self) -> dict[str, int]:
        """How many pairs each reason concerns, and `all`, in which each counts once."""
        return {reason: len(keys) for reason, keys in self.keys.items()} | {"all": len(self.pairs.items)}


def likeness_of(embeddings: Embeddings) -> Likeness:
    """What is alike in a data set, as far as its pictures were looked at and it has attributes."""
    e = embeddings
    likeness: dict = {"wording": wordings_of(e.captions)}
    if e.looks is not None:
        likeness |= _looks(e.looks)
    if e.attributes is not None:
        likeness |= _kinds(e)
    return Likeness(**likeness)


def wordings_of(captions: np.ndarray) -> np.ndarray:
    """(M,) equal numbers for texts of one wording."""
    return _numbered(list(map(wording_key, captions)))


def related(
    likeness: Likeness, own: Positives, images: np.ndarray, texts: np.ndarray, judged: np.ndarray = NONE
) -> Alike:
    """What is alike for each query with `own`, all items of its own products, in a gallery of images.

    `images` (G,) are the numbers of the gallery's images, `texts` (Q,) that of each query's text. `judged` are pairs that
    are not asked about, as ascending numbers `query * G + item`. Raises ValueError where so much is alike that nothing is
    told apart.
    """
    width = len(images)
    mine = distinct(np.concatenate([pair_keys(own.queries(), own.items, width), judged]))
    return _related(likeness, own, images, mine, _of_wordings(likeness.wording[texts], own, width))


def related_to_groups(likeness: Likeness, own: Positives, image_text: np.ndarray) -> Alike:
    """The same for groups of images with `own`, their members: all other images that are alike to one of these.

    `image_text` (N,) is the number of each image's own text.
    """
    images = np.arange(len(image_text))
    mine = distinct(pair_keys(own.queries(), own.items, len(images)))
    return _related(likeness, own, images, mine, _of_classes(likeness.wording[image_text], None, own, len(images)))


def _related(likeness, own, images, mine, by_wording):
    width = len(images)
    found = {"captions": by_wording}
    if likeness.look is not None and likeness.near is not None:
        found["pictures"] = _of_classes(likeness.look[images], likeness.near, own, width)
    if likeness.kind is not None:
        found["attributes"] = _of_classes(likeness.kind[images], None, own, width)
    keys = {reason: not_among(found[reason], mine) for reason in REASONS if reason in found}
    together = distinct(np.concatenate(list(keys.values())))
    return Alike(from_keys(together, len(own.offsets) - 1, width), keys)


# ------------------------------------------------------------------------------------------- what is alike


def _looks(looks):
    known: dict[bytes, int] = {}
    look = np.array([known.setdefault(row, len(known)) for row in map(bytes, looks)], dtype=np.int64)
    unique = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
    pairs = [(first, second) for first, second, _ in close_pairs(unpacked(unique))]
    itself = np.arange(len(unique))
    first = np.concatenate([itself, *(column for pair in pairs for column in pair)])
    second = np.concatenate([itself, *(column for pair in pairs for column in reversed(pair))])
    order = np.argsort(first, kind="stable")
    offsets = np.searchsorted(first[order], np.arange(len(unique) + 1))
    return {"look": look, "near": Positives(offsets, second[order])}


def _kinds(e):
    """Category and attributes as one number; a sample that lacks what others of its category have is like none."""
    categories = [same_caption_key(category) for category in e.category]
    names: dict[str, set[str]] = defaultdict(set)
    for category, said in zip(categories, e.attributes):
        names[category].update(said)
    rows = [
        (category, *sorted((name, same_caption_key(text)) for name, text in said.items()))
        if said and len(said) == len(names[category])
        else None
        for category, said in zip(categories, e.attributes)
    ]
    is_complete = np.array([row is not None for row in rows])
    kind = np.where(is_complete, _numbered(rows), -1)
    every = tuple(sorted(set().union(*names.values())))
    return {"kind": kind, "names": every, "incomplete": int((~is_complete).sum())}


def _numbered(values):
    """(N,) equal numbers for equal values."""
    known: dict = {}
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)


# ------------------------------------------------------------------------------------------ who is whose


def _of_classes(classes, near, own, width):
    """Keys of the images in a class of one of the query's own images, or in one that is near: distinct ones."""
    count = int(classes.max(initial=-1)) + 1
    mine = distinct(pair_keys(own.queries(), classes[own.items], count)[classes[own.items] >= 0])
    queries, numbers = np.divmod(mine, max(count, 1))
    if near is not None:
        near_queries, near_numbers = _through(queries, numbers, near)
        inside = near_numbers < count
        queries, numbers = np.divmod(
            distinct(pair_keys(near_queries[inside], near_numbers[inside], count)), max(count, 1)
        )
    return pair_keys(*_through(queries, numbers, by_group(np.arange(count), classes)), width)


def _of_wordings(wordings, own, width):
    """Keys of the own images of the other queries with the same wording."""
    mates = by_group(wordings, wordings)
    several = np.flatnonzero(np.diff(mates.offsets) > 1)
    queries, others = _through(several, several, mates)
    return distinct(pair_keys(*_through(queries, others, own), width))


def _through(queries, numbers, relation):
    """(query, item) for each item that a relation has for each query's number."""
    counts = np.diff(relation.offsets)[numbers]
    total = int(counts.sum())
    if total > MOST_PAIRS:
        raise ValueError(
            f"{total:,} pairs of captions and pictures of different products are alike: that tells nothing apart; name more "
            "attributes with --attributes, or look for a picture that stands for many products"
        )
    starts = np.repeat(relation.offsets[numbers] - (np.cumsum(counts) - counts), counts)
    return np.repeat(queries, counts), relation.items[starts + np.arange(total)]
