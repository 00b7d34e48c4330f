"""Embeddings that stay in their file: rows are read, converted and brought to unit length when somebody asks for them."""

from collections.abc import Iterator

import numpy as np

BLOCK_ROWS = 16384


class StoredRows:
    """(N, D) rows of an array that may be larger than memory, or some of them; indexing gives float32 of unit length."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self._rows, self._chosen = rows, chosen

    def __len__(self) -> int:
        return len(self._rows if self._chosen is None else self._chosen)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self._rows.shape[1]

    def __getitem__(self, wanted: slice | np.ndarray) -> np.ndarray:
        return unit(self._rows[wanted if self._chosen is None else self._chosen[wanted]])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def of(self, chosen: np.ndarray) -> "StoredRows":
        """Rows of these numbers, still in their file."""
        return StoredRows(self._rows, chosen if self._chosen is None else self._chosen[chosen])


def selected(rows: np.ndarray | StoredRows, chosen: np.ndarray) -> np.ndarray | StoredRows:
    """The rows of these numbers, which are not copied if they are all of them in their order, or stored."""
    if np.array_equal(chosen, np.arange(len(rows))):
        return rows
    return rows.of(chosen) if isinstance(rows, StoredRows) else rows[chosen]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, so that anybody's embeddings are compared by cosine."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def in_blocks(rows: np.ndarray | StoredRows) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first row, rows) of some rows at a time."""
    for first in range(0, len(rows), BLOCK_ROWS):
        yield first, rows[first : first + BLOCK_ROWS]
