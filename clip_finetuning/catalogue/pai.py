"""Rows of Fashion-Gen's PAI pickles, one file a picture: `full_{split}_info_PAI/*.pkl`, `extracted_{split}_images/`."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from clip_finetuning.catalogue.attributes import counted, with_text
from clip_finetuning.catalogue.rows import RowError, Skipped, Source, make_row, picture_in_folder
from clip_finetuning.runtime import safe_pickle
from clip_finetuning.runtime.text import attribute_text, text_of

FIELDS = ("product_id", "img_name", "super_cls_name", "captions")
# Below this, starting processes takes longer than they save.
PARALLEL_FROM = 5_000
LOOKED_AT = 20  # pickles whose keys tell which there are


def open_pai(
    data_dir: str | os.PathLike,
    split: str,
    num_workers: int = 0,
    allow_outside: bool = False,
    attributes: Sequence[str] = (),
) -> Source:
    """The PAI pickles of one split, sorted by file name; `attributes` are keys of theirs.

    Raises FileNotFoundError if a folder is missing, ValueError for attributes that the first pickles do not have.
    """
    pickles, images = Path(data_dir, f"full_{split}_info_PAI"), Path(data_dir, f"extracted_{split}_images")
    for folder in (pickles, images):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist: --data-dir must hold {pickles.name}/ (pickles) and {images.name}/ (pictures)"
            )
    names = sorted(entry.name for entry in os.scandir(pickles) if entry.name.endswith(".pkl"))
    if not names:
        raise FileNotFoundError(f"{pickles} holds no .pkl file; it must hold one pickle for each picture")
    _check_keys(pickles, names[:LOOKED_AT], attributes)
    read = partial(_row, pickles, images, allow_outside, attributes)
    return counted(Source(str(pickles), len(names), _mapped(read, names, num_workers)), tuple(attributes))


def _check_keys(pickles, names, attributes):
    """ValueError with the keys that are there, if none of these pickles has one that was named."""
    keys: dict[str, None] = {}
    for name in names if attributes else ():
        try:
            keys |= dict.fromkeys(map(str, _read_pickle(pickles / name)))
        except RowError:
            continue  # it will be counted
    for name in attributes if keys else ():
        if name not in keys:
            raise ValueError(
                f"{pickles}: no pickle has the key {name} that --attributes names; they have {', '.join(keys)}"
            )


def _mapped(read, names, num_workers):
    """Yield read(name) for each name, in order, by several processes where it pays."""
    if num_workers < 2 or len(names) < PARALLEL_FROM:
        yield from map(read, names)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield from pool.map(read, names, chunksize=256)


def _row(pickles, images, allow_outside, attributes, name):
    try:
        record = _read_pickle(pickles / name)
        missing = [field for field in FIELDS if field not in record]
        if missing:
            raise RowError(f"missing key {missing[0]}")
        return make_row(
            *picture_in_folder(images, text_of(record["img_name"]), allow_outside),
            captions=record["captions"],
            category=record["super_cls_name"],
            subcategory=record.get("sub_cls_name"),
            product_id=record["product_id"],
            attributes=with_text((key, attribute_text(record.get(key))) for key in attributes),
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
