"""The approximate index: usearch's HNSW graph over 8-bit vectors, whose candidates are scored exactly afterwards.

Graphs find nearly all near neighbours where vectors have neighbourhoods, as pictures of a catalogue do, and few where
they have none (random directions in 512 dimensions). So nothing is assumed: `tuned` measures, on queries of the
catalogue's own, how far a search must reach for 99 % of the true first ten, or that no reach within reason does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from usearch.index import Index as Graph

CONNECTIVITY, EXPANSION_ADD = 16, 128
REACHES = (256, 512, 1024, 2048)  # candidates of a query that are tried
DEEPEST = 10  # the recall is that of the first ten
WANTED = 0.99
ADDED = 10_000  # vectors added between two reports of progress


class Tuning(NamedTuple):
    """How far a query must reach, and what share of the true first ten it then finds."""

    reach: int | None  # candidates; None: the graph is no use for these vectors
    recall: float  # of that reach, or of the farthest
    queries: int  # on which this was measured


def empty(dimensions: int) -> Graph:
    """A graph without vectors, by cosine, in 8 bits a number."""
    return Graph(ndim=dimensions, metric="cos", dtype="i8", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD)


def load(path: Path, dimensions: int, view: bool = True) -> Graph:
    """The graph of a file: mapped for reading alone (`view`), or in memory to be changed. Raises ValueError."""
    graph = empty(dimensions)
    try:
        graph.view(str(path)) if view else graph.load(str(path))
    except Exception as error:  # usearch raises RuntimeError and others
        raise ValueError(f"{path} cannot be read as a graph: {str(error).splitlines()[0]}") from None
    return graph


def change(
    graph: Graph, keys: np.ndarray, vectors: np.ndarray, gone: np.ndarray, tell: Callable[[int], object]
) -> None:
    """Remove the keys `gone`, add `keys` (n,) uint64 with `vectors` (n, D); `tell(n)` hears of every n added."""
    if len(gone):
        graph.remove(gone)
    for start in range(0, len(keys), ADDED):
        part = slice(start, start + ADDED)
        graph.add(keys[part], vectors[part])
        tell(len(keys[part]))


def nearest(graph: Graph, query: np.ndarray, count: int) -> np.ndarray:
    """The keys of about the `count` nearest vectors, (n,) uint64."""
    return graph.search(query, count).keys


def tuned(graph: Graph, keys: np.ndarray, vectors: np.ndarray, queries: np.ndarray) -> Tuning:
    """The least reach of REACHES with a recall of WANTED on these queries; keys (n,) ascending, vectors (n, D)."""
    truth = [_first(vectors @ query, np.arange(len(keys))) for query in queries]
    recall = 0.0
    for reach in REACHES:
        graph.expansion_search = reach
        found = 0
        for query, (lowest, wanted) in zip(queries, truth):
            rows = np.searchsorted(keys, nearest(graph, query, reach))
            found += int((vectors[rows] @ query >= lowest - 1e-6).sum().clip(max=wanted))
        recall = found / sum(wanted for _, wanted in truth)
        if recall >= WANTED:
            return Tuning(reach, recall, len(queries))
    return Tuning(None, recall, len(queries))


def _first(scores: np.ndarray, rows: np.ndarray) -> tuple[float, int]:
    """(score of the last of the true first ten, how many these are)."""
    count = min(DEEPEST, len(rows))
    return float(np.partition(scores, -count)[-count]), count
