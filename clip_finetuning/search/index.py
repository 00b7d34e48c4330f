"""A finished index: products in the order of their best picture's cosine with a query.

Approximate by default: candidates of the graph, scored exactly in float32. `exact=True` ranks every picture as the
evaluator does (`metrics.top_items`), to the last place; equal scores come in the order of the source.
"""

import difflib
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import metrics
from clip_finetuning.search import folder as files
from clip_finetuning.search import graph as graphs
from clip_finetuning.search.database import open_database

SCANNED = 20_000  # pictures of a category that are scored one by one; in more of them the graph looks
FARTHEST = 16  # a search that would reach for more than 1/16 of all pictures scores all of them instead


class Hit(NamedTuple):
    """A product, or one of its pictures, that answers a query."""

    product_id: str
    score: float  # cosine of the query and the product's best picture
    image_key: str  # of that picture
    caption: str
    category: str


class Index:
    """An open index. `about`: what index.json says - model, source, counts, graph. Safe to use from several threads."""

    def __init__(self, folder: Path, about: dict[str, Any], with_graph: bool = True) -> None:
        place = files.generation(folder, about)
        self.folder, self.about = folder, about
        self.vectors = _array(place / files.VECTORS, 2, np.float32)  # (N, D)
        self.caption_vectors = _array(place / files.CAPTIONS, 2, np.float32)  # (M, D)
        rows = _array(place / files.ROWS, 2, np.int64)
        if rows.shape != (len(self.vectors), 4) or not len(rows):
            raise ValueError(f"{place / files.ROWS} has shape {rows.shape}, not that of the vectors; {files.AGAIN}")
        self.content, self.product, self.category, self.caption = np.ascontiguousarray(rows.T)
        self._by_content = np.argsort(self.content.view(np.uint64), kind="stable")
        self._contents = self.content.view(np.uint64)[self._by_content]
        self._items = open_database(place / files.ITEMS)
        self._pictures = open_database(folder / files.PICTURES)
        self._lock = threading.Lock()
        names = self._all("SELECT name, number FROM categories ORDER BY name")
        self._categories: dict[str, int] = dict(names)
        ends = ((self.category, 0, len(names)), (self.caption, -1, len(self.caption_vectors)))
        if any(column.min() < first or column.max() >= end for column, first, end in ends):
            raise ValueError(f"{place / files.ROWS} names categories or captions that are not there; {files.AGAIN}")
        self.graph, self.reach = None, 0
        if with_graph and files.GRAPH in about["files"]:
            self.reach = _reach(about)
            self.graph = graphs.load(place / files.GRAPH, self.vectors.shape[1])
            self.graph.expansion_search = self.reach

    @classmethod
    def open(cls, folder: str | os.PathLike, with_graph: bool = True) -> "Index":
        """The index of a folder; without its graph, every search scores every picture.

        Raises FileNotFoundError, or ValueError for one that is damaged or cut short.
        """
        about = files.read_about(folder)
        try:
            return cls(Path(folder), about, with_graph)
        except ValueError:
            if files.read_about(folder)["generation"] == about["generation"]:
                raise
        return cls(Path(folder), files.read_about(folder), with_graph)  # a run has put a new state in place meanwhile

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
        rows, scores = (found[0] for found in metrics.top_items(query[None], self.vectors, len(self)))
        return self._chosen(rows, scores, top, category, views)

    def _approximate(
        self, query: np.ndarray, top: int, category: int | None, views: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reach farther until there are `top` products; then, or for a small category, score whatever may answer."""
        admitted = None if category is None else np.flatnonzero(self.category == category)
        if self.graph is not None and (admitted is None or len(admitted) > SCANNED):
            share = 1.0 if admitted is None else len(admitted) / len(self)
            reach = max(self.reach, int(8 * top / share))
            while reach <= len(self) // FARTHEST:
                rows = self.rows_of(graphs.nearest(self.graph, query, reach))
                rows, scores = self._chosen(*self._scored(query, rows), top, category, views)
                if len(rows) == top:
                    return rows, scores
                reach *= 4
        return self._chosen(*self._scored(query, admitted), top, category, views)

    def rows_of(self, contents: np.ndarray) -> np.ndarray:
        """All pictures of these contents, ascending: one content may stand in the catalogue more than once."""
        first = np.searchsorted(self._contents, contents, side="left")
        last = np.searchsorted(self._contents, contents, side="right")
        if (last - first).max(initial=0) > 1:
            return np.sort(np.concatenate([self._by_content[a:b] for a, b in zip(first, last)]))
        return np.sort(self._by_content[first[last > first]])

    def _scored(self, query: np.ndarray, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (None: all) and their cosines, best first, equal ones in their order."""
        scores = self.vectors @ query if rows is None else self.vectors[rows] @ query
        order = np.argsort(-scores, kind="stable")
        return (order if rows is None else rows[order]), scores[order]

    def _chosen(
        self, rows: np.ndarray, scores: np.ndarray, top: int, category: int | None, views: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of ranked rows those of the category, each product once unless `views`, and of these the first `top`."""
        if category is not None:
            inside = self.category[rows] == category
            rows, scores = rows[inside], scores[inside]
        if views:
            return rows[:top], scores[:top]
        taken, met = [], set()
        for place, product in enumerate(self.product[rows].tolist()):
            if product not in met:
                met.add(product)
                taken.append(place)
                if len(taken) == top:
                    break
        return rows[taken], scores[taken]

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
    """How many candidates of the graph a query looks at, as was measured. Raises ValueError if the index does not say."""
    graph = about.get("graph")
    reach = graph.get("reach") if isinstance(graph, dict) else None
    if type(reach) is not int or not 1 <= reach <= max(graphs.REACHES):
        raise ValueError(f"{files.ABOUT} does not say how far a query reaches in the graph; {files.AGAIN}")
    return reach


def _array(path: Path, dimensions: int, dtype: type) -> np.ndarray:
    """An array of a file, mapped. Raises ValueError for anything but a plain array of that kind."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:  # what numpy makes of a damaged header
        raise ValueError(f"{path} cannot be read ({error}); {files.AGAIN}") from None
    if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype != dtype:
        raise ValueError(f"{path} does not hold {np.dtype(dtype)} of {dimensions} dimensions; {files.AGAIN}")
    return array.view(np.ndarray)
