"""The rows of a raw catalogue, whatever it is made of, and the reason for each row that is skipped."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.pictures.decode import lies_in
from clip_finetuning.runtime.text import hash_of, text_of

Attributes = tuple[tuple[str, str], ...]  # (name, value), none of them blank


class Row(NamedTuple):
    """One picture of a catalogue. `captions` are wordings of the same description, at least one.

    `languages` are those of the captions, one each, or nothing: `de`, or `de en` of a text that is both.
    """

    image_path: str
    image_name: str
    captions: tuple[str, ...]
    category: str
    subcategory: str
    product_id: str
    attributes: Attributes = ()
    languages: tuple[str, ...] = ()


class Skipped(NamedTuple):
    """A row that cannot be used; `reason` is one of a few fixed wordings, for counting."""

    name: str
    reason: str


class Source(NamedTuple):
    """An opened catalogue: its name, how many rows it has (None: unknown), and the rows themselves.

    `remarks`, called when all rows are read, says what was guessed on the way, a line each.
    """

    name: str
    total: int | None
    rows: Iterator[Row | Skipped]
    remarks: Callable[[], list[str]] = list


class RowError(ValueError):
    """Raised while a row is read; becomes a `Skipped` with this reason."""


def picture_in_folder(folder: str | os.PathLike, name: str, allow_outside: bool = False) -> tuple[str, str]:
    """(path, file name) of a picture in a folder. Raises RowError if there is none, or if it lies elsewhere.

    The path is posix and begins with `folder` as it was given, so that the same call gives the same path anywhere.
    """
    if not name:
        raise RowError("no image name")
    path = os.path.join(folder, name)
    if not allow_outside and not lies_in(folder, path):
        raise RowError("image outside its folder (--allow-outside takes it)")
    if not os.path.isfile(path):
        raise RowError("missing image")
    return Path(path).as_posix(), Path(path).name


def make_row(
    image_path: str,
    image_name: str,
    captions: object,
    category: object,
    subcategory: object,
    product_id: object,
    attributes: Attributes = (),
    languages: Sequence[str] = (),
) -> Row:
    """A Row of values as a catalogue holds them. Raises RowError for a blank caption or product id.

    `languages`: those of the captions, one each, or none.
    """
    captions = captions if isinstance(captions, list | tuple) else [captions]
    spoken: dict[str, list[str]] = {}
    for place, text in enumerate(map(text_of, captions)):
        spoken.setdefault(text, []).extend(languages[place : place + 1])
    spoken.pop("", None)
    captions = tuple(spoken)
    if not captions:
        raise RowError("blank caption")
    product_id = text_of(product_id)
    if not product_id:
        raise RowError("blank product_id")
    named = tuple(" ".join(dict.fromkeys(codes)) for codes in spoken.values()) if languages else ()
    texts = captions, text_of(category), text_of(subcategory), product_id
    return Row(image_path, image_name, *texts, attributes, named)


def caption_id(caption: str) -> str:
    """The product id of a row that has none, made of its caption: equal captions are one product."""
    return f"caption-{hash_of(caption):016x}" if caption else ""


def is_caption_id(product_id: str) -> bool:
    """Whether `caption_id` made it."""
    return re.fullmatch("caption-[0-9a-f]{16}", product_id) is not None
