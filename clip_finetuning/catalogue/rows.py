"""The rows of raw catalogues, in a fixed order, and the reason for each row that is skipped; the reader of PAI pickles.

The other readers are catalogue_hdf5.py and catalogue_table.py.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue import safe_pickle
from clip_finetuning.pictures.decode import lies_in

# Line breaks, control characters and lone surrogates end up as spaces. Joiners stay: emoji are made with them.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")
PAI_FIELDS = ("product_id", "img_name", "super_cls_name", "captions")
# Below this, starting processes takes longer than they save.
PARALLEL_FROM = 5_000


class Row(NamedTuple):
    """One picture of a catalogue. `captions` are wordings of the same description, at least one."""

    image_path: str
    image_name: str
    captions: tuple[str, ...]
    category: str
    subcategory: str
    product_id: str


class Skipped(NamedTuple):
    """A row that cannot be used; `reason` is one of a few fixed wordings, for counting."""

    name: str
    reason: str


class Source(NamedTuple):
    """An opened catalogue: its name, how many rows it has (None: unknown), and the rows themselves."""

    name: str
    total: int | None
    rows: Iterator[Row | Skipped]


class RowError(ValueError):
    """Raised while a row is read; becomes a `Skipped` with this reason."""


def open_pai(data_dir, split, num_workers=0, allow_outside=False):
    """The PAI pickles of one split, sorted by file name. Raises FileNotFoundError if a folder is missing."""
    pickles, images = Path(data_dir, f"full_{split}_info_PAI"), Path(data_dir, f"extracted_{split}_images")
    for folder in (pickles, images):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist: --data-dir must hold {pickles.name}/ (pickles) and {images.name}/ (pictures)"
            )
    names = sorted(entry.name for entry in os.scandir(pickles) if entry.name.endswith(".pkl"))
    if not names:
        raise FileNotFoundError(f"{pickles} holds no .pkl file; it must hold one pickle for each picture")
    read = partial(_pai_row, pickles, images, allow_outside)
    return Source(str(pickles), len(names), _mapped(read, names, num_workers))


def _mapped(read, names, num_workers):
    """Yield read(name) for each name, in order, by several processes where it pays."""
    if num_workers < 2 or len(names) < PARALLEL_FROM:
        yield from map(read, names)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield from pool.map(read, names, chunksize=256)


def _pai_row(pickles, images, allow_outside, name):
    try:
        record = _read_pickle(pickles / name)
        missing = [field for field in PAI_FIELDS if field not in record]
        if missing:
            raise RowError(f"missing key {missing[0]}")
        return make_row(
            *image_in_folder(images, text_of(record["img_name"]), allow_outside),
            captions=record["captions"],
            category=record["super_cls_name"],
            subcategory=record.get("sub_cls_name"),
            product_id=record["product_id"],
        )
    except RowError as error:
        return Skipped(name, str(error))


def _read_pickle(path):
    try:
        record = safe_pickle.load(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RowError("unreadable pickle") from error
    if not isinstance(record, dict):
        raise RowError("pickle without a record")
    return record


def image_in_folder(folder, name, allow_outside=False):
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


def make_row(image_path, image_name, captions, category, subcategory, product_id):
    """A Row of values as a catalogue holds them. Raises RowError for a blank caption or product id."""
    captions = captions if isinstance(captions, list | tuple) else [captions]
    captions = tuple(dict.fromkeys(filter(None, map(text_of, captions))))
    if not captions:
        raise RowError("blank caption")
    product_id = text_of(product_id)
    if not product_id:
        raise RowError("blank product_id")
    return Row(image_path, image_name, captions, text_of(category), text_of(subcategory), product_id)


def caption_id(caption):
    """A product id made of a caption: where there are no ids, equal captions are one product."""
    return f"caption-{hashlib.sha256(caption.encode()).hexdigest()[:16]}" if caption else ""


def text_of(value):
    """A value as one line of text: numbers as digits, bytes as UTF-8 or else Windows-1252; blank for anything else."""
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # ids that went through pandas
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18:
        value = str(value)
    return " ".join(UNPRINTABLE.sub(" ", value).split()) if isinstance(value, str) else ""


def _decoded(data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")  # what web pages that say Latin-1 mean
