"""Readers of raw catalogues: each yields rows of plain strings, or the reason why a row is no good."""

import io
import pickle
from pathlib import Path
from typing import NamedTuple

REQUIRED = ("product_id", "img_name", "super_cls_name", "captions")


class Row(NamedTuple):
    """One picture of a catalogue."""

    image_path: str
    image_name: str
    captions: tuple
    category: str
    subcategory: str
    product_id: str


class RowError(ValueError):
    """A row that cannot be used; `.reason` is one of a few fixed wordings, for counting."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


class Inert:
    """Stands in for any class or function that a pickle names: takes everything, does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return self

    def __setstate__(self, _):
        pass

    def __setitem__(self, *_):
        pass

    def append(self, *_):
        pass

    def extend(self, *_):
        pass

    def add(self, *_):
        pass

    def update(self, *_):
        pass


class PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers only: a pickle from the internet must never run code."""

    def find_class(self, module, name):
        return Inert

    def persistent_load(self, _):
        return Inert()


def pai_rows(data_dir, split):
    """Yield a Row or a (file name, RowError) for each pickle of `full_{split}_info_PAI`, sorted by file name.

    Raises FileNotFoundError if a folder is missing.
    """
    data_dir = Path(data_dir)
    pickles, images = data_dir / f"full_{split}_info_PAI", data_dir / f"extracted_{split}_images"
    for folder in (pickles, images):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist: --data-dir must hold {pickles.name}/ (pickles) and {images.name}/ (PNGs)"
            )
    present = {path.name for path in images.iterdir()}
    for path in sorted(pickles.glob("*.pkl"), key=lambda p: natural_key(p.name)):
        try:
            yield _pai_row(read_pickle(path), images, present)
        except RowError as error:
            yield path.name, error


def natural_key(name):
    """Sort 9_1 before 10_1: digits by value, the rest as text."""
    import re

    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)], name


def read_pickle(path):
    """The plain data of a pickle file; anything else in it is an `Inert`. Raises RowError."""
    try:
        return PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise RowError("unreadable pickle") from error


def _pai_row(record, images, present):
    if not isinstance(record, dict):
        raise RowError("unreadable pickle")
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise RowError(f"missing key {missing[0]}")
    captions = record["captions"]
    captions = [one_line(c) for c in (captions if isinstance(captions, (list, tuple)) else [captions])]
    captions = tuple(dict.fromkeys(c for c in captions if c))
    if not captions:
        raise RowError("blank caption")
    name = one_line(record["img_name"])
    if name not in present or "/" in name or "\\" in name:
        raise RowError("missing image")
    return Row(
        image_path=(images / name).as_posix(),
        image_name=name,
        captions=captions,
        category=one_line(record["super_cls_name"]),
        subcategory=one_line(record.get("sub_cls_name", "")),
        product_id=one_line(record["product_id"]),
    )


def one_line(value):
    """Text without control characters and line breaks; numbers as text, anything else blank."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())
