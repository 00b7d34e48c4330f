"""A finished index: products in the order of their best picture's cosine with a query.

Approximate by default: candidates of a scan of codes, scored exactly in float32. `exact=True` ranks every picture as the
evaluator does (`ranking.top_items`), to the last place; equal scores come in the order of the source.
"""

import difflib
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import ranking
from clip_finetuning.search import folder as files
from clip_finetuning.search import scan as scans
from clip_finetuning.search.database import open_database

SCORED = 2000  # pictures of a category that are scored one by one; of more the codes are scanned


class Hit(NamedTuple):
    """A product, or one of its pictures, that answers a query."""

    product_id: str
    score: float  # cosine of the query and the product's best picture
    image_key: str  # of that picture
    caption: str
    category: str


class Index:
    """An open index. `about`: what index.json says - model, source, counts, scan. Safe to use from several threads."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        place = files.generation(folder, about)
        self.folder, self.about = folder, about
        self.vectors = _array(place / files.VECTORS, 2, np.float32)  # (N, D)
        self.caption_vectors = _array(place / files.CAPTIONS, 2, np.float32)  # (M, D)
        rows = _array(place / files.ROWS, 2, np.int64)
        if rows.shape != (len(self.vectors), 5) or not len(rows):
            raise ValueError(f"{place / files.ROWS} has shape {rows.shape}, not that of the vectors; {files.AGAIN}")
        self.content, self.product, self.category, self.caption, code_of = np.ascontiguousarray(rows.T)
        self._items = open_database(place / files.ITEMS)
        self._pictures = open_database(folder / files.PICTURES)
        self._lock = threading.Lock()
        names = self._all("SELECT name, number FROM categories ORDER BY name")
        self._categories: dict[str, int] = dict(names)
        ends = ((self.category, 0, len(names)), (self.caption, -1, len(self.caption_vectors)))
        if any(column.min() < first or column.max() >= end for column, first, end in ends):
            raise ValueError(f"{place / files.ROWS} names categories or captions that are not there; {files.AGAIN}")
        self.scan, self.reach = None, 0
        if files.CODES in about["files"]:
            self.reach, self.scan = _reach(about), _scan(place, code_of, self.vectors.shape[1])
        self._scans: dict[int, scans.Scan] = {}  # of categories, made when they are first asked for

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Index":
        """The index of a folder. Raises FileNotFoundError, or ValueError for one that is damaged or cut short."""
        about = files.read_about(folder)
        try:
            return cls(Path(folder), about)
        except ValueError:
            if files.read_about(folder)["generation"] == about["generation"]:
                raise
        return cls(Path(folder), files.read_about(folder))  # a run has put a new state in place meanwhile

    def __len__(self) -> int:
        """How many pictures it holds."""
        return len(self.vectors)

    def categories(self) -> list[str]:
        """The categories of its products, in alphabetical order."""
        return [name for name in self._categories if name]

    def category_names(self) -> list[str]:
        """The names of the numbers in `category`; one is blank, of products without."""
        return sorted(self._categories, key=self._categories.__getitem__)

    def picture(self, image_key: str) -> bytes:
        """The thumbnail of a picture, a JPEG made by this suite, white where it was transparent. Raises KeyError."""
        found = self._all("SELECT content FROM items WHERE image_key = ?", image_key)
        if found:
            found = self._all("SELECT jpeg FROM thumbnails WHERE content = ?", found[0][0], of=self._pictures)
        if not found:
            raise KeyError(image_key)
        return found[0][0]

    # --------------------------------------------------------------------------------------------------- search

    def search(
        self, vectors: np.ndarray, top: int, category: str | None = None, exact: bool = False, views: bool = False
    ) -> list[list[Hit]]:
        """The `top` best products of each query, best first: vectors (Q, D) float32 of unit length -> Q lists of Hit.

        Each product comes once, by its best picture; with `views` every picture counts for itself. `category` admits
        only that one. Raises ValueError for vectors of another model's size or without a direction, `top` below 1, and
        a category that the index does not have.
        """
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries have shape {queries.shape}, the index holds vectors of {self.vectors.shape[1]} numbers: "
                "another model's query"
            )
        if not np.isfinite(queries).all():
            raise ValueError("a query holds NaN or infinity: it has no direction")
        if top < 1:
            raise ValueError(f"top={top} is not allowed: it takes a whole number >= 1")
        number = None if category is None else self._number_of(category)
        answer = self._exact if exact else self._approximate
        return [self._hits(*answer(query, top, number, views)) for query in queries]

    def _number_of(self, category: str) -> int:
        if category in self._categories:
            return self._categories[category]
        near, names = difflib.get_close_matches(category, self.categories(), 3, 0.4), self.categories()
        hint = f"near ones: {', '.join(near)}" if near else f"it has {', '.join(names[:5]) or 'none'}"
        raise ValueError(f"the index has no category {category!r}; {hint}{' ...' if len(names) > 5 else ''}")

    def _exact(self, query: np.ndarray, top: int, category: int | None, views: bool) -> tuple[np.ndarray, np.ndarray]:
        scores = ranking.all_scores(query[None], self.vectors)[0]
        if category is None:
            return self._chosen(None, scores, top, views)
        admitted = np.flatnonzero(self.category == category)
        return self._chosen(admitted, scores[admitted], top, views)

    def _approximate(
        self, query: np.ndarray, top: int, category: int | None, views: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reach farther until there are `top` products; then, or for few pictures, score whatever may answer."""
        admitted = None if category is None else np.flatnonzero(self.category == category)
        scan = self._scan_of(category, admitted)
        reach = -(-self.reach * max(top, scans.DEEPEST) // scans.DEEPEST)
        while scan is not None and reach <= len(scan) // scans.FARTHEST:
            rows = scan.nearest(query, reach)
            rows, scores = self._chosen(rows, self._scored(query, rows), top, views)
            if len(rows) == top:
                return rows, scores
            reach *= 4
        return self._chosen(admitted, self._scored(query, admitted), top, views)

    def _scan_of(self, category: int | None, admitted: np.ndarray | None) -> scans.Scan | None:
        """The scan of all pictures, or of a category's; None where scoring each of them is as fast."""
        if self.scan is None or category is None or admitted is None:
            return self.scan
        if len(admitted) <= SCORED:
            return None
        with self._lock:
            if category not in self._scans:
                self._scans[category] = self.scan.within(admitted)
            return self._scans[category]

    def _scored(self, query: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """The cosines of rows (None: all)."""
        return self.vectors @ query if rows is None else scans.cosines(self.vectors, rows, query)

    def _chosen(
        self, rows: np.ndarray | None, scores: np.ndarray, top: int, views: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of rows in their order (None: all) and their scores the `top` best, each product once unless `views`."""
        looked_at = top if views else 8 * top
        while True:
            places = ranking.first_places(scores, looked_at)
            found = places if rows is None else rows[places]
            if not views:
                first = np.sort(np.unique(self.product[found], return_index=True)[1])
                places, found = places[first], found[first]
            if len(places) >= top or looked_at >= len(scores):
                return found[:top], scores[places[:top]]
            looked_at *= 8

    def _hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        return [
            Hit(item["product_id"], score, item["image_key"], item["caption"], item["category"])
            for item, score in zip(self.items(rows.tolist()), scores.tolist())
        ]

    def captions(self) -> list[str]:
        """The distinct captions of `caption_vectors`, in their order."""
        return [text for (text,) in self._all("SELECT text FROM captions ORDER BY number")][: len(self.caption_vectors)]

    def contents_by_key(self) -> list[tuple[str, int]]:
        """(image key, content) of every picture, in order."""
        return self._all("SELECT image_key, content FROM items ORDER BY row")

    def items(self, rows: Iterable[int]) -> list[dict[str, str]]:
        """The texts of some pictures: image_key, product_id, caption, category, subcategory."""
        names = ("image_key", "product_id", "caption", "category", "subcategory")
        query = (
            "SELECT image_key, product_id, coalesce(text, ''), category, subcategory"
            " FROM items LEFT JOIN captions ON captions.number = items.caption WHERE row = ?"
        )
        return [dict(zip(names, self._all(query, row)[0])) for row in rows]

    def _all(self, query: str, *values: Any, of: sqlite3.Connection | None = None) -> list[tuple]:
        try:
            with self._lock:
                return (of or self._items).execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ValueError(f"the index in {self.folder} cannot be read ({error}); {files.AGAIN}") from None


def _reach(about: dict[str, Any]) -> int:
    """How many candidates a query picks, as was measured. Raises ValueError if the index does not say."""
    scan = about.get("scan")
    reach, fresh = (scan.get("reach"), scan.get("fresh")) if isinstance(scan, dict) else (None, None)
    if type(reach) is not int or not 1 <= reach <= max(scans.REACHES) or type(fresh) is not int:
        raise ValueError(f"{files.ABOUT} does not say how many candidates a query picks; {files.AGAIN}")
    return reach


def _scan(place: Path, code_of: np.ndarray, dimensions: int) -> scans.Scan:
    """The scan of a generation's files. Raises ValueError for arrays that do not fit."""
    quantizer, codes = _array(place / files.QUANTIZER, 2, np.float32), _array(place / files.CODES, 2, np.uint8)
    try:
        scans.check(quantizer, codes, code_of, dimensions)
    except ValueError as error:
        raise ValueError(f"{place / files.CODES} does not fit the index ({error}); {files.AGAIN}") from None
    return scans.Scan(quantizer, codes, code_of)


def _array(path: Path, dimensions: int, dtype: type) -> np.ndarray:
    """An array of a file, mapped. Raises ValueError for anything but a plain array of that kind."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:  # what numpy makes of a damaged header
        raise ValueError(f"{path} cannot be read ({error}); {files.AGAIN}") from None
    if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype != dtype:
        raise ValueError(f"{path} does not hold {np.dtype(dtype)} of {dimensions} dimensions; {files.AGAIN}")
    return array.view(np.ndarray)
