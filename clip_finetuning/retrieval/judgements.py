"""What people decided of (caption, picture) pairs whose truth the catalogue leaves open: files that `disputed` writes.

A judged pair is told by its caption and the key of its picture, in whichever direction it was disputed. Right ones are
positives from then on, wrong ones are never alike.
"""

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.positives import Positives, from_keys, keys_of
from clip_finetuning.runtime import spreadsheet
from clip_finetuning.runtime.text import printable, same_caption_key

RIGHT, WRONG = "right", "wrong"
NEEDED = ("caption", "image_key", "verdict")
WHAT = "a CSV that --disputed wrote, with right or wrong in its column verdict"


@dataclass(frozen=True)
class Judgements:
    """The verdicts on pairs of a data set: (n,) numbers of texts, the first of their caption, and of images."""

    right: tuple[np.ndarray, np.ndarray]
    wrong: tuple[np.ndarray, np.ndarray]
    blank: int  # pairs without a verdict
    unknown: int  # pairs whose caption or picture is not in this data
    fingerprint: str  # of the verdicts that are used

    def as_result(self) -> dict[str, int | str]:
        """What the result file says of them."""
        counts = {
            "right": len(self.right[0]),
            "wrong": len(self.wrong[0]),
            "blank": self.blank,
            "unknown": self.unknown,
        }
        return {**counts, "fingerprint": self.fingerprint, "sentence": self.sentence()}

    def sentence(self) -> str:
        """What became of them, in words."""
        left_out = [
            (self.blank, "without a verdict"),
            (self.unknown, "of captions or pictures that are not in this data"),
        ]
        rest = ", ".join(f"{count:,} {why}" for count, why in left_out if count)
        return (
            f"{len(self.right[0]):,} judged pairs count as hits, {len(self.wrong[0]):,} are misses in every truth"
            + (f"; not used: {rest}" if rest else "")
        )


def check(paths: Sequence[str | os.PathLike]) -> None:
    """Raise what `read` does, as far as the files tell it without the data: before a model runs."""
    verdicts = _Verdicts()
    for where, row in _rows(paths):
        verdicts.add((same_caption_key(row["caption"]), row["image_key"], row.get("image_product")), row, where)


def read(paths: Sequence[str | os.PathLike], embeddings: Embeddings) -> Judgements:
    """The verdicts of files on the pairs of a data set.

    Raises FileNotFoundError, and ValueError for a file without the columns, a verdict that is none, verdicts that
    contradict each other, and files of which no pair is in this data.
    """
    find, verdicts = _Pairs(embeddings), _Verdicts()
    blank, judged, unknown = 0, 0, 0
    for where, row in _rows(paths):
        if not row["verdict"]:
            blank += 1
            continue
        judged += 1
        found = find(row)
        unknown += not found
        for pair in found:
            verdicts.add(pair, row, where)
    if judged and unknown == judged:
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names}: none of the {judged:,} judged captions and pictures are in this data")
    said = verdicts.said.items()
    right, wrong = (_columns(pair for pair, verdict in said if verdict == kind) for kind in (RIGHT, WRONG))
    digest = hashlib.sha256(repr([column.tolist() for column in (*right, *wrong)]).encode()).hexdigest()[:16]
    return Judgements(right, wrong, blank, unknown, digest)


def _rows(paths: Sequence[str | os.PathLike]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where it stands, row) of files, the verdict in small letters, which is right, wrong or blank."""
    for path in paths:
        for line, row in spreadsheet.read(path, NEEDED, WHAT):
            where, verdict = f"{path}:{line}", row["verdict"].strip().lower()
            if verdict not in (RIGHT, WRONG, ""):
                raise ValueError(
                    f"{where}: the verdict {printable(verdict)!r} is none; it takes right, wrong or nothing"
                )
            yield where, {**row, "verdict": verdict}


class _Verdicts:
    """What was said of each pair, whatever stands for it."""

    def __init__(self) -> None:
        self.said: dict[Any, str] = {}
        self.places: dict[Any, str] = {}

    def add(self, pair: Hashable, row: dict[str, str], where: str) -> None:
        """Remember a row's verdict; ValueError if another row says the opposite."""
        verdict = row["verdict"]
        if not verdict:
            return
        place = self.places.setdefault(pair, where)
        if self.said.setdefault(pair, verdict) != verdict:
            raise ValueError(
                f"{where} says {verdict} of the picture {printable(row['image_key'])} for "
                f"{printable(row['caption'])[:60]!r}, {place} says {self.said[pair]}; leave one of them"
            )


class _Pairs:
    """Finds the (text, image) numbers of a row: a caption's first text, and the pictures of its key."""

    def __init__(self, e: Embeddings) -> None:
        self.products = e.image_product
        self.texts: dict[str, int] = {}
        for text, caption in enumerate(e.captions):
            self.texts.setdefault(same_caption_key(caption), text)
        self.images: dict[str, list[int]] = {}
        for image, key in enumerate(e.image_key):
            self.images.setdefault(key, []).append(image)

    def __call__(self, row: dict[str, str]) -> list[tuple[int, int]]:
        text, found = self.texts.get(same_caption_key(row["caption"])), self.images.get(row["image_key"], [])
        if len(found) > 1:  # other shards may have the same keys
            found = [image for image in found if self.products[image] == row.get("image_product")]
        return [] if text is None else [(text, image) for image in found]


def _columns(pairs: Iterable[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    columns = np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


# ------------------------------------------------------------------------------------- in a protocol's terms


def keys_in(
    pairs: tuple[np.ndarray, np.ndarray], wordings: np.ndarray, texts: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """The pairs as ascending numbers `query * width + item`, as far as they are in a protocol.

    `wordings` (M,): the number of each text's caption; `texts` (Q,) and `images` (G,): what the protocol asks and has.
    """
    places: dict[int, list[int]] = {}
    for query, text in enumerate(wordings[texts].tolist()):
        places.setdefault(text, []).append(query)
    item_of = {image: item for item, image in enumerate(images.tolist())}
    found = [
        query * len(images) + item_of[image]
        for text, image in zip(wordings[pairs[0]].tolist(), pairs[1].tolist())
        if image in item_of
        for query in places.get(text, [])
    ]
    return np.unique(np.array(found, dtype=np.int64))


def with_judged(positives: Positives, right: np.ndarray, width: int) -> Positives:
    """The positives and those of these keys that are none yet."""
    queries = len(positives.offsets) - 1
    return from_keys(np.union1d(keys_of(positives, width), right), queries, width) if len(right) else positives
