"""The approximate index: usearch's HNSW graph over 8-bit vectors, whose candidates are scored exactly afterwards.

Graphs find nearly all near neighbours where vectors have neighbourhoods, as pictures of a catalogue do, and few where
they have none (random directions in 512 dimensions). So nothing is assumed: `tuned` measures, on queries of the
catalogue's own, how far a search must reach for 99 % of the true first ten, or that no reach within reason does.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from usearch.index import Index as Graph

CONNECTIVITY, EXPANSION_ADD = 16, 128
REACHES = (256, 512, 1024, 2048)  # candidates of a query that are tried
DEEPEST = 10  # the recall is that of the first ten
WANTED = 0.99
ADDED = 10_000  # vectors added between two reports of progress
ROUNDING = 1e-6  # two products of the same vectors may differ by so much


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


def filled(keys: np.ndarray, vectors: np.ndarray) -> Graph:
    """A new graph of these vectors: keys (n,) uint64, vectors (n, D)."""
    graph = empty(vectors.shape[1])
    change(graph, keys, vectors, keys[:0])
    return graph


def change(graph: Graph, keys: np.ndarray, vectors: np.ndarray, gone: np.ndarray) -> None:
    """Remove the keys `gone`, add `keys` (n,) uint64 with `vectors` (n, D)."""
    if len(gone):
        graph.remove(gone)
    with tqdm(total=len(keys), unit=" pictures", desc="graph", disable=None) as bar:
        for start in range(0, len(keys), ADDED):
            part = slice(start, start + ADDED)
            graph.add(keys[part], vectors[part])
            bar.update(len(keys[part]))


def save(graph: Graph, path: Path) -> None:
    """Write a graph by write calls of our own: the library's errors do not tell a full disk from others."""
    with open(path, "wb") as file:
        file.write(graph.save() or b"")


def nearest(graph: Graph, query: np.ndarray, count: int) -> np.ndarray:
    """The keys of about the `count` nearest vectors, (n,) uint64."""
    return graph.search(query, count).keys


def tuned(graph: Graph, keys: np.ndarray, vectors: np.ndarray, queries: np.ndarray) -> Tuning:
    """The least reach of REACHES with a recall of WANTED on these queries; keys (n,) ascending, vectors (n, D)."""
    lowest = _lowest_wanted(queries, vectors)
    wanted = min(DEEPEST, len(keys))
    recall = 0.0
    for reach in REACHES:
        graph.expansion_search = reach
        found = 0
        for query, least in zip(queries, lowest):
            rows = np.searchsorted(keys, nearest(graph, query, reach))
            found += min(wanted, int((vectors[rows] @ query >= least - ROUNDING).sum()))
        recall = found / (wanted * len(queries))
        if recall >= WANTED:
            return Tuning(reach, recall, len(queries))
    return Tuning(None, recall, len(queries))


def _lowest_wanted(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The score of the last of each query's true first ten, (Q,)."""
    count = min(DEEPEST, len(vectors))
    blocks = [np.partition(block @ vectors.T, -count, axis=1)[:, -count] for block in np.array_split(queries, 8)]
    return np.concatenate(blocks)
