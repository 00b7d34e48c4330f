"""The embeddings of a data set, and the `.npz` file that anybody's may come in."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_finetuning.runtime.atomic_write import atomic_write


@dataclass
class Embeddings:
    """N images and M texts of a data set; a text is a caption as one product has it."""

    image_embeddings: np.ndarray  # (N, D) float32, unit length
    text_embeddings: np.ndarray  # (M, D) float32, unit length
    image_product: np.ndarray  # (N,) product ids
    text_product: np.ndarray  # (M,)
    image_key: np.ndarray  # (N,) the samples' keys
    captions: np.ndarray  # (M,)
    category: np.ndarray  # (N,)
    subcategory: np.ndarray  # (N,)
    image_text: np.ndarray  # (N,) the number of each sample's own text

    def __post_init__(self):
        images, texts = len(self.image_embeddings), len(self.text_embeddings)
        for name in ("image_product", "image_key", "category", "subcategory", "image_text"):
            if len(getattr(self, name)) != images:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, but there are {images} images")
        for name in ("text_product", "captions"):
            if len(getattr(self, name)) != texts:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, but there are {texts} texts")
        if not images or not texts:
            raise ValueError(f"nothing to evaluate: {images} images and {texts} texts")
        if self.image_embeddings.shape[1:] != self.text_embeddings.shape[1:]:
            shapes = f"{self.image_embeddings.shape} and {self.text_embeddings.shape}"
            raise ValueError(f"image and text embeddings have shapes {shapes}: their second sizes must be equal")

    def fingerprint(self):
        """A hash of which samples these are, whatever the model: results of equal ones can be compared."""
        digest = hashlib.sha256()
        for column in (self.image_key, self.image_product, self.captions[self.image_text]):
            digest.update("\0".join(map(str, column)).encode("utf-8", "surrogatepass") + b"\1")
        return digest.hexdigest()[:16]


def load(path):
    """Embeddings from a `.npz` file. Raises FileNotFoundError, or ValueError naming the array that is missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"embeddings file {path} does not exist; write one with --save-embeddings")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # zip and npy errors have no common class
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error
    wanted = ("image_embeddings", "text_embeddings", "image_product", "text_product")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; an embeddings file needs {', '.join(wanted)}")
    _check_shapes(path, arrays)
    images, texts = len(arrays["image_embeddings"]), len(arrays["text_embeddings"])
    products, text_products = arrays["image_product"].astype(str), arrays["text_product"].astype(str)
    blank = np.full(images, "")
    numbers = np.array([f"text {number}" for number in range(texts)])
    first_text = {product: number for number, product in reversed(list(enumerate(text_products.tolist())))}
    return Embeddings(
        image_embeddings=_unit(arrays["image_embeddings"]),
        text_embeddings=_unit(arrays["text_embeddings"]),
        image_product=products,
        text_product=text_products,
        image_key=arrays.get("image_key", np.arange(images)).astype(str),
        captions=arrays.get("captions", numbers).astype(str),
        category=arrays.get("category", blank).astype(str),
        subcategory=arrays.get("subcategory", blank).astype(str),
        image_text=arrays.get("image_text", np.array([first_text.get(product, 0) for product in products.tolist()])),
    )


def _check_shapes(path, arrays):
    """ValueError naming the array that has another shape or type than `Embeddings` needs."""
    for name, array in arrays.items():
        wanted = 2 if name in ("image_embeddings", "text_embeddings") else 1
        if name in Embeddings.__dataclass_fields__ and array.ndim != wanted:
            raise ValueError(f"{path}: {name} has shape {array.shape}; it must have {wanted} dimensions")
        if wanted == 2 and (array.dtype.kind not in "fiu" or not array.shape[1]):
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}; it must be real numbers (rows, dimensions)"
            )
    numbers = arrays.get("image_text", np.zeros(0, dtype=int))
    if numbers.dtype.kind not in "iu" or (
        len(numbers)
        and not 0
        <= numbers.min()
        <= numbers.max()
        < len(arrays["captions" if "captions" in arrays else "text_product"])
    ):
        raise ValueError(f"{path}: image_text must be whole numbers of texts, from 0")


def _unit(rows):
    """Rows of unit length, so that anybody's embeddings are compared by cosine."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def save(path, embeddings):
    """Write the arrays of `Embeddings` to a `.npz` file."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **vars(embeddings))
