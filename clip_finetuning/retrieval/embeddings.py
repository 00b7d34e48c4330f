"""The embeddings of a data set, and the `.npz` file that anybody's may come in."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clip_finetuning.pictures.near_duplicates import LOOK
from clip_finetuning.retrieval.stored_rows import BLOCK_ROWS, StoredRows, in_blocks, unit
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import attribute_text, caption_numbers, printable, text_of

TEXTS = ("image_product", "text_product", "image_key", "captions", "category", "subcategory")
ATTRIBUTES = "attributes"
LISTED = 20  # attributes that a message lists
SAME_POINT = 0.99  # cosine; half precision stays well above
log = logging.getLogger(__name__)


@dataclass
class Embeddings:
    """N images and M texts of a data set; a text is a caption as one product has it.

    Columns of text are arrays of Python's own strings: NumPy's would make every caption as wide as the longest.
    """

    image_embeddings: np.ndarray | StoredRows  # (N, D) float32, unit length
    text_embeddings: np.ndarray | StoredRows  # (M, D) float32, unit length
    image_product: np.ndarray  # (N,) product ids
    text_product: np.ndarray  # (M,)
    image_key: np.ndarray  # (N,) the samples' keys
    captions: np.ndarray  # (M,)
    category: np.ndarray  # (N,)
    subcategory: np.ndarray  # (N,)
    image_text: np.ndarray  # (N,) the number of each sample's own text
    attributes: np.ndarray | None = None  # (N,) {name: text} of each sample; None where no sample has any
    looks: np.ndarray | None = None  # (N, 200) uint8, the pictures' fingerprints (`looks.look_of`); None: not asked for

    def __post_init__(self):
        for name in TEXTS:
            setattr(self, name, texts(getattr(self, name)))
        if self.attributes is not None:
            self.attributes = texts(self.attributes) if any(self.attributes) else None
        images, captions = len(self.image_embeddings), len(self.text_embeddings)
        for name in ("image_product", "image_key", "category", "subcategory", "image_text"):
            if len(getattr(self, name)) != images:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, but there are {images} images")
        for name in ("attributes", "looks"):
            column = getattr(self, name)
            if column is not None and len(column) != images:
                raise ValueError(f"{name} has {len(column)} rows, but there are {images} images")
        for name in ("text_product", "captions"):
            if len(getattr(self, name)) != captions:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, but there are {captions} texts")
        if not images or not captions:
            raise ValueError(f"nothing to evaluate: {images} images and {captions} texts")
        if self.image_embeddings.shape[1:] != self.text_embeddings.shape[1:]:
            shapes = f"{self.image_embeddings.shape} and {self.text_embeddings.shape}"
            raise ValueError(f"image and text embeddings have shapes {shapes}: their second sizes must be equal")

    def fingerprint(self) -> str:
        """A hash of which samples these are, whatever the model: results of equal ones can be compared."""
        return fingerprint_of(self.image_key, self.image_product, self.captions[self.image_text])

    def keys_of(self, images: Sequence[int]) -> dict[int, str]:
        """{image: the key of its sample}, by which shards have its picture; a key of several samples names none."""
        counts = Counter(self.image_key)
        return {image: key for image in images if counts[key := str(self.image_key[image])] == 1}

    def keep_attributes(self, names: Sequence[str]) -> None:
        """Leave out all attributes but these; no names: keep all. Raises ValueError for one that no sample has."""
        there = dict.fromkeys(name for said in (() if self.attributes is None else self.attributes) for name in said)
        for name in names:
            if name not in there:
                known = ", ".join(map(printable, list(there)[:LISTED])) or "none"
                raise ValueError(
                    f"--attributes {printable(name)}: no sample of the embeddings file has it; there are {known}"
                )
        if names and self.attributes is not None:
            kept = [{name: said[name] for name in names if name in said} for said in self.attributes]
            self.attributes = texts(kept)


def fingerprint_of(keys: Iterable[str], products: Iterable[str], captions: Iterable[str]) -> str:
    """`Embeddings.fingerprint` of samples by their keys, products and captions, (N,) each."""
    digest = hashlib.sha256()
    for column in (keys, products, captions):
        digest.update("\0".join(column).encode("utf-8", "surrogatepass") + b"\1")
    return digest.hexdigest()[:16]


def texts(values: Iterable) -> np.ndarray:
    """(N,) of Python strings, as dtype object."""
    rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column


def numbered(names: np.ndarray) -> np.ndarray:
    """(N,) numbers of names, -1 for a blank one."""
    return np.where(names == "", -1, np.unique(names, return_inverse=True)[1])


def unlike_captions(embeddings: Embeddings) -> int:
    """How many texts are embedded otherwise than the first one with the same caption, which stands for them all."""
    numbers, first = caption_numbers(embeddings.captions)
    rows = embeddings.text_embeddings
    repeated = np.flatnonzero(np.bincount(numbers)[numbers] > 1)
    stand_for = np.array(first)[numbers]
    parts = (repeated[start : start + BLOCK_ROWS] for start in range(0, len(repeated), BLOCK_ROWS))
    return sum(int(((rows[part] * rows[stand_for[part]]).sum(1) < SAME_POINT).sum()) for part in parts)


# -------------------------------------------------------------------------------------------------- the file


def save(path: str | os.PathLike, embeddings: Embeddings, more: Mapping[str, np.ndarray] | None = None) -> None:
    """Write the arrays of `Embeddings`, and `more`, to a `.npz` file; its columns of text are `packed`, as `json_columns` says.

    To a path that ends in a slash, or is a folder: each to a `.npy` file of its name there, which `load` need not hold in memory.
    """
    arrays = {field.name: getattr(embeddings, field.name) for field in fields(embeddings)}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    columns = [name for name in (*TEXTS, ATTRIBUTES) if name in arrays]
    arrays |= {name: packed(arrays[name]) for name in columns}
    arrays |= {**(more or {}), "json_columns": np.array(columns)}
    if is_folder(path):
        for name in {ATTRIBUTES, "looks"} - {*arrays}:  # those of other embeddings that were there
            (Path(path) / f"{name}.npy").unlink(missing_ok=True)
        for name, array in arrays.items():
            with atomic_write(Path(path) / f"{name}.npy") as temporary:
                _save_rows(temporary, array)
        return
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        held: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(file, **held)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether embeddings of this path are a folder of `.npy` files."""
    return str(path).endswith(("/", os.sep)) or Path(path).is_dir()


def _save_rows(path, array):
    if array.ndim < 2:
        with open(path, "wb") as file:
            np.save(file, array)
        return
    written = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
    for first, rows in in_blocks(array):
        written[first : first + len(rows)] = rows
    written.flush()


def packed(column: np.ndarray) -> np.ndarray:
    """Strings as the bytes of a JSON list, (bytes,) uint8: as long as all of them together, and read without pickle.

    `json.loads(file[name].tobytes())` unpacks them.
    """
    return np.frombuffer(json.dumps(column.tolist()).encode(), dtype=np.uint8)


def unpacked(column: np.ndarray) -> np.ndarray:
    """The strings of a `packed` column."""
    return texts(map(str, json.loads(column.tobytes())))


def load(path: str | os.PathLike) -> Embeddings:
    """Embeddings from a `.npz` file, or from a folder of `.npy` files, whose embeddings stay there.

    Raises FileNotFoundError, or ValueError naming the array that is missing or wrong.
    """
    arrays = _read(path)
    as_rows = StoredRows if is_folder(path) else unit
    _check_shapes(path, arrays)
    images, count = len(arrays["image_embeddings"]), len(arrays["text_embeddings"])
    captions = [f"text {n}" for n in range(count)]
    if "captions" in arrays:
        captions = list(map(str, _strings(arrays["captions"])))
    image_products, text_products = _products(path, arrays, captions)
    blank = np.full(images, "")
    return Embeddings(
        image_embeddings=as_rows(arrays["image_embeddings"]),
        text_embeddings=as_rows(arrays["text_embeddings"]),
        image_product=texts(image_products),
        text_product=texts(text_products),
        image_key=texts(map(str, _strings(arrays.get("image_key", np.arange(images))))),
        captions=texts(captions),
        category=texts(map(text_of, _strings(arrays.get("category", blank)))),
        subcategory=texts(map(text_of, _strings(arrays.get("subcategory", blank)))),
        image_text=arrays["image_text"] if "image_text" in arrays else _own_texts(path, image_products, text_products),
        attributes=_attributes(path, arrays[ATTRIBUTES]) if ATTRIBUTES in arrays else None,
        looks=arrays.get("looks"),
    )


def _read(path):
    """{name: array} of the file or folder, columns of text unpacked."""
    files = sorted(Path(path).glob("*.npy")) if is_folder(path) else []
    if not (files or (not is_folder(path) and Path(path).is_file())):
        raise FileNotFoundError(f"embeddings file {path} does not exist; write one with --save-embeddings")
    try:
        if files:
            arrays = {file.stem: _array(path, file.stem, partial(_mapped, file)) for file in files}
        else:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: _array(path, name, partial(file.__getitem__, name)) for name in file}
        for name in {*arrays.pop("json_columns", np.array([])).tolist()} & {*TEXTS, ATTRIBUTES} & {*arrays}:
            arrays[name] = texts(json.loads(arrays[name].tobytes())) if name == ATTRIBUTES else unpacked(arrays[name])
    except ObjectArray:
        raise
    except Exception as error:  # zip, npy and JSON errors have no common class
        kind = "folder of .npy files" if files else ".npz file"
        raise ValueError(f"{path} is no {kind} of plain arrays: {error}") from error
    wanted = ("image_embeddings", "text_embeddings", "image_product", "text_product")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; an embeddings file needs {', '.join(wanted)}")
    return arrays


class ObjectArray(ValueError):
    """An array of Python objects, which only pickle reads."""


def _array(path, name, read):
    """An array as `read()` gives it. Raises ObjectArray."""
    try:
        return read()
    except ValueError as error:
        if "pickle" not in str(error) and "Python objects" not in str(error):
            raise
    how = "dtype=numpy.float32" if name.endswith("embeddings") else "dtype=str, or a dtype of whole numbers"
    raise ObjectArray(
        f"{path}: {name} is an array of Python objects, which is not read, since that could run code; "
        f"write it with numpy.array(..., {how})"
    )


def _mapped(file):
    # A copy on writing, of which there is none: torch warns of arrays that may not be written.
    array = np.load(file, mmap_mode="c", allow_pickle=False)
    return array if array.ndim == 2 else np.array(array)


def _strings(array):
    """A column's values, text of whatever kind as Python strings, numbers as they are."""
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    return (array if array.dtype.kind in "OUfiu" else array.astype(str)).tolist()


def _attributes(path, column):
    """(N,) {name: text} of a column of objects, or of texts that are JSON objects, as others can write them."""
    found = []
    for row, value in enumerate(_strings(column)):
        try:
            value = json.loads(value or "{}") if isinstance(value, str) else value
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f'{path}: row {row} of {ATTRIBUTES} is no JSON object, such as {{"colour": "red"}}')
        said = {text_of(name): attribute_text(one) for name, one in value.items()}
        found.append({name: text for name, text in said.items() if name and text})
    return texts(found)


def _products(path, arrays, captions):
    """(of the images, of the texts): the products' ids as text; without an id, equal captions are one product."""
    of_texts = [text_of(value) for value in _strings(arrays["text_product"])]
    of_images = [text_of(value) for value in _strings(arrays["image_product"])]
    if "captions" in arrays and len(captions) == len(of_texts):
        of_texts = [product or caption for product, caption in zip(of_texts, captions)]
        if "image_text" in arrays and len(arrays["image_text"]) == len(of_images):
            of_images = [product or captions[text] for product, text in zip(of_images, arrays["image_text"].tolist())]
    for name, column in (("image_product", of_images), ("text_product", of_texts)):
        if "" in column:
            raise ValueError(
                f"{path}: {column.count('')} rows of {name} are blank or no number; name a product in each, or bring "
                "captions and image_text, by which equal captions are one product"
            )
    return of_images, of_texts


def _own_texts(path, image_products, text_products):
    """(N,) the number of each image's text, where the file does not say: the first one of its product."""
    first = {product: number for number, product in reversed(list(enumerate(text_products)))}
    alone = sum(product not in first for product in image_products)
    if alone:
        log.warning(
            "%s: %d images have no text of their product; only the product protocol leaves them out", path, alone
        )
    return np.array([first.get(product, 0) for product in image_products])


def _check_shapes(path, arrays):
    """ValueError naming the array that has another shape, type or value than `Embeddings` needs."""
    for name, array in arrays.items():
        wanted = 2 if name in ("image_embeddings", "text_embeddings", "looks") else 1  # dimensions
        if name in Embeddings.__dataclass_fields__ and array.ndim != wanted:
            raise ValueError(f"{path}: {name} has shape {array.shape}; it must have {wanted} dimensions")
        if wanted == 2 and (array.dtype.kind not in "fiu" or not array.shape[1]):
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}; it must be real numbers (rows, dimensions)"
            )
        if wanted == 2:
            _check_finite(path, name, array)
    looks = arrays.get("looks")
    if looks is not None and (looks.dtype != np.uint8 or looks.shape[1] != LOOK):
        raise ValueError(f"{path}: looks is {looks.dtype} {looks.shape}; it must be uint8 (images, {LOOK})")
    numbers = arrays.get("image_text", np.zeros(0, dtype=int))
    texts_named = len(arrays["captions" if "captions" in arrays else "text_product"])
    if numbers.dtype.kind not in "iu" or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < texts_named):
        raise ValueError(f"{path}: image_text must be whole numbers of texts, from 0")


def _check_finite(path, name, array):
    broken = np.concatenate(
        [first + np.flatnonzero(~np.isfinite(rows).all(1)) for first, rows in in_blocks(array)] or [[]]
    )
    if len(broken):
        raise ValueError(
            f"{path}: {len(broken)} rows of {name} hold NaN or infinity, first of all row {broken[0]:.0f}; leave them out"
        )
