"""Rows of the official Fashion-Gen files, `fashiongen_256_256_train.h5`. The pictures stay where they are.

`input_image` is (N, 256, 256, 3) uint8 RGB, all other fields (N, 1): text in ISO-8859-1, `input_productID` int32. A row's
image_path is `FILE#ROW`, which create_webdataset.py reads, so nothing is unpacked.
"""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from clip_finetuning.catalogue.attributes import counted, with_text
from clip_finetuning.catalogue.caption_template import fill_template
from clip_finetuning.catalogue.rows import RowError, Skipped, Source, caption_id, make_row
from clip_finetuning.runtime.text import text_of

IMAGES = "input_image"
DESCRIPTION = "input_description"
PRODUCT, CATEGORY, SUBCATEGORY = "input_productID", "input_category", "input_subcategory"
BLOCK = 4096  # rows whose text is read at a time


def open_hdf5(
    path: str | os.PathLike, caption_fields: Sequence[str] = (DESCRIPTION,), attributes: Sequence[str] = ()
) -> Source:
    """The rows of a file, in its order. The caption joins `caption_fields` ("name" or "input_name") as sentences.

    `attributes` are fields too, kept under the names given.

    Raises FileNotFoundError, and ValueError without h5py, for a file that is no HDF5, and for missing or uneven fields.
    Products without an id are told apart by their captions.
    """
    path = Path(path).as_posix()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; --hdf5 takes a file such as fashiongen_256_256_train.h5")
    if not path.endswith((".h5", ".hdf5")):
        raise ValueError(f"{path} must be named *.h5 or *.hdf5, as its rows will be named {path}#0; rename it")
    with _opened(path) as file:
        shapes = {name: (field.shape, str(field.dtype)) for name, field in file.items() if hasattr(field, "dtype")}
    caption_fields = [_field(shapes, name, path) for name in caption_fields]
    shape, kind = shapes[_field(shapes, IMAGES, path)]
    if len(shape) != 4 or shape[3] != 3 or kind != "uint8":
        raise ValueError(f"{path}: {IMAGES} is {kind} {shape}; it must be uint8 RGB, (N, height, width, 3)")
    attribute_fields = {name: _field(shapes, name, path) for name in attributes}
    wanted = [*caption_fields, PRODUCT, CATEGORY, SUBCATEGORY, *attribute_fields.values()]
    fields = [name for name in dict.fromkeys(wanted) if name in shapes]
    for name in fields:
        if shapes[name][0] not in ((shape[0],), (shape[0], 1)):
            raise ValueError(f"{path}: {name} is {shapes[name][0]}; it must have {shape[0]:,} rows, as {IMAGES} has")
    rows = _rows(path, shape[0], fields, caption_fields, attribute_fields)
    return counted(Source(path, shape[0], rows), tuple(attributes))


def split_of_file(path: str | os.PathLike) -> str | None:
    """The split that a file's name tells, or None."""
    name = Path(path).stem.lower()
    return next((split for split in ("train", "valid") if split in name), None)


@contextmanager
def _opened(path):
    """The open file. Whatever h5py makes of a damaged one, it is a ValueError that names it."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"--hdf5 {path} needs h5py, which is not installed: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}); copy it anew") from error


def _field(shapes, name, path):
    """The full name of a field, which may be given without `input_`."""
    for candidate in (name, f"input_{name}"):
        if candidate in shapes:
            return candidate
    raise ValueError(f"{path} has no field {name}; it has {', '.join(sorted(map(str, shapes))) or 'none'}")


def _rows(path, total, fields, caption_fields, attribute_fields):
    template = ". ".join(f"{{{name}}}" for name in caption_fields)
    views = Counter()
    for start in range(0, total, BLOCK):
        with _opened(path) as file:
            block = {name: _texts(file[name], start) for name in fields}
        for offset in range(min(BLOCK, total - start)):
            record = {name: block[name][offset] for name in fields}
            yield _row(path, start + offset, record, template, views, attribute_fields)


def _row(path, number, record, template, views, attribute_fields):
    caption = fill_template(template, record)
    product_id = record.get(PRODUCT) or caption_id(caption)
    views[product_id] += 1
    try:
        return make_row(
            image_path=f"{path}#{number}",
            image_name=f"{product_id}_{views[product_id]}.png",
            captions=caption,
            category=record.get(CATEGORY),
            subcategory=record.get(SUBCATEGORY),
            product_id=product_id,
            attributes=with_text((name, record[field]) for name, field in attribute_fields.items()),
        )
    except RowError as error:
        return Skipped(f"{path}#{number}", str(error))


def _texts(field, start):
    """Texts of a block of rows: ISO-8859-1, except where the file itself says UTF-8."""
    values = field[start : start + BLOCK].reshape(-1).tolist()
    kind = field.id.get_type()
    if getattr(kind, "get_cset", int)() == 0:  # h5py.h5t.CSET_ASCII
        values = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
    return [text_of(value) for value in values]
