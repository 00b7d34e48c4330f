"""The approximate index: every picture as a code of D / 2 half bytes, all of which a query looks through.

A product quantiser (faiss's fast scan: Andre et al., Cache locality is not enough, 2015): two numbers of a vector
become the nearest of 16 centres. Before that the vectors are turned to their principal axes, the strongest axis paired
with the weakest (the allocation of Ge et al., Optimized product quantization, 2013): queries of another cone than the
pictures', and a few numbers that outweigh all others, then cost little. A scan only picks candidates, which are scored
exactly. How many it must pick is measured (`tuned`).

The files are plain arrays whose sizes are checked; faiss's own reader, which trusts its file, is not used. Pictures of
one code are one entry, so that copies do not crowd out others.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np

from clip_finetuning.retrieval import ranking

CENTRES, BITS = 16, 4  # of a pair of numbers
TRAINED_ON = 256 * CENTRES  # vectors: as many as faiss looks at
SPREAD_ON = 4 * TRAINED_ON  # vectors whose principal axes are taken
ENCODED = 16_384  # vectors at a time
REACHES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
FARTHEST = 16  # a search that would reach for more than 1/16 of all pictures scores all of them instead
DEEPEST = 10  # the recall is that of the first ten
WANTED = 0.995  # on the queries that are measured, so that it is .99 on others
MOST_VIEWS = 200  # pictures of a product, on average over the first ten, by which these ten are surely known
MEASURED_AT_ONCE = 25  # queries, whose scores of all pictures are held
ROUNDING = 1e-6  # two products of the same vectors may differ by so much


class Tuning(NamedTuple):
    """How many candidates a query must pick, and what share of the true first ten it then finds."""

    reach: int | None  # None: the scan is no use for these vectors
    recall: float  # of that reach, or of the farthest; the lower one of pictures and of products
    queries: int  # on which this was measured


# ----------------------------------------------------------------------------------------------------- quantiser


def trained(vectors: np.ndarray) -> np.ndarray:
    """A quantiser of vectors (n, D) -> (D + 17, E) float32, E = D, made even: rotation (D, E), mean, 16 centres."""
    random = np.random.default_rng(0)
    sample = vectors[np.sort(random.permutation(len(vectors))[:SPREAD_ON])]
    middle = sample.mean(0, dtype=np.float64)
    spread = sample - middle
    axes = np.linalg.eigh(spread.T @ spread)[1][:, ::-1]  # the strongest first
    axes = np.pad(axes, ((0, 0), (0, axes.shape[1] % 2)))
    last = axes.shape[1] - 1
    rotation = axes[:, [place for first in range((last + 1) // 2) for place in (first, last - first)]]
    rotated = np.ascontiguousarray(spread[random.permutation(len(spread))[:TRAINED_ON]] @ rotation, dtype=np.float32)
    quantizer = faiss.ProductQuantizer(rotated.shape[1], rotated.shape[1] // 2, BITS)
    quantizer.cp.min_points_per_centroid = 1  # few vectors are no reason for a warning
    with _one_thread():
        quantizer.train(rotated)
    centres = faiss.vector_to_array(quantizer.centroids).reshape(-1, CENTRES, 2)
    return np.vstack([rotation, middle @ rotation, centres.swapaxes(0, 1).reshape(CENTRES, -1)]).astype(np.float32)


def encoded(quantizer: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The codes of vectors (n, D) -> (n, B) uint8, two pairs of numbers a byte."""
    index, rotation, middle = _empty(quantizer), *_turn(quantizer)
    codes = np.empty((len(vectors), index.sa_code_size()), np.uint8)
    for start in range(0, len(vectors), ENCODED):
        part = slice(start, start + ENCODED)
        codes[part] = index.sa_encode(np.ascontiguousarray(vectors[part] @ rotation - middle))
    return codes


def distinct(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct codes (K, B), the number (n,) int64 of each one's code)."""
    found, numbers = np.unique(codes.view(f"V{codes.shape[1]}").reshape(-1), return_inverse=True)
    return found.view(np.uint8).reshape(len(found), codes.shape[1]), numbers.reshape(-1).astype(np.int64)


def check(quantizer: np.ndarray, codes: np.ndarray, code_of: np.ndarray, dimensions: int) -> None:
    """Raise ValueError unless the arrays of somebody's file fit each other and vectors of that size."""
    size = dimensions + dimensions % 2
    if quantizer.shape != (dimensions + 1 + CENTRES, size) or not np.isfinite(quantizer).all():
        raise ValueError(
            f"a quantiser has shape {quantizer.shape}, or holds NaN; the vectors have {dimensions} numbers"
        )
    if codes.shape[1] != (size // 2 + 1) // 2:
        raise ValueError(
            f"codes have {codes.shape[1]} bytes; those of {dimensions} numbers have {(size // 2 + 1) // 2}"
        )
    if code_of.min(initial=0) < 0 or code_of.max(initial=-1) >= len(codes):
        raise ValueError("pictures name codes that are not there")


def _turn(quantizer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rotation (D, E), mean (E,))."""
    return quantizer[: -CENTRES - 1], quantizer[-CENTRES - 1]


def _empty(quantizer: np.ndarray) -> faiss.IndexPQ:
    """faiss's own form of a quantiser."""
    size = quantizer.shape[1]
    index = faiss.IndexPQ(size, size // 2, BITS, faiss.METRIC_INNER_PRODUCT)
    centres = quantizer[-CENTRES:].reshape(CENTRES, -1, 2).swapaxes(0, 1)
    faiss.copy_array_to_vector(np.ascontiguousarray(centres).reshape(-1), index.pq.centroids)
    index.is_trained = True
    return index


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let faiss use this thread alone: steps of microseconds, between which its threads would wait for each other."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # counts for the calling thread
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------- scan


class Scan:
    """The codes of some pictures, packed to be scanned; safe to use from several threads."""

    def __init__(
        self, quantizer: np.ndarray, codes: np.ndarray, code_of: np.ndarray, rows: np.ndarray | None = None
    ) -> None:
        """Distinct codes (K, B), and of pictures the number (n,) of each one's code; `rows` (n,): what they are called."""
        self.quantizer, self.codes, self.code_of = quantizer, codes, code_of
        self._rotation = _turn(quantizer)[0]
        order = np.argsort(code_of, kind="stable")
        self._members = order if rows is None else rows[order]
        self._starts = np.searchsorted(code_of[order], np.arange(len(codes) + 1))
        flat: Any = _empty(quantizer)  # faiss's hints know one constructor of what follows
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), flat.codes)
        flat.ntotal = len(codes)
        self._packed = faiss.IndexPQFastScan(flat)

    def __len__(self) -> int:
        """How many distinct codes it holds."""
        return len(self.codes)

    def within(self, rows: np.ndarray) -> "Scan":
        """The scan of some of the pictures alone, of a scan of all."""
        numbers, code_of = np.unique(self.code_of[rows], return_inverse=True)
        return Scan(self.quantizer, self.codes[numbers], code_of.reshape(-1), rows)

    def nearest(self, query: np.ndarray, reach: int) -> np.ndarray:
        """The pictures of about the `reach` best codes for a query (D,), ascending."""
        with _one_thread():
            return self._found(query[None], reach)[0]

    def nearest_of_each(self, queries: np.ndarray, reach: int) -> list[np.ndarray]:
        """The same of many queries (Q, D), by all cores."""
        return self._found(queries, reach)

    def _found(self, queries: np.ndarray, reach: int) -> list[np.ndarray]:
        if reach >= len(self):  # faiss leaves out what scores lowest
            return [np.sort(self._members)] * len(queries)
        found = self._packed.search(np.ascontiguousarray(queries @ self._rotation), reach)[1]
        return [self._rows_of(numbers) for numbers in found]

    def _rows_of(self, numbers: np.ndarray) -> np.ndarray:
        numbers = numbers[numbers >= 0]  # -1 fills up
        first, counts = self._starts[numbers], self._starts[numbers + 1] - self._starts[numbers]
        if len(numbers) != counts.sum():
            first = np.repeat(first - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        return np.sort(self._members[first])


def cosines(vectors: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The scores of some rows, (n,), by this thread alone: waking others takes longer, and equal vectors score the same."""
    return np.einsum("nd,d->n", vectors[rows], query)


# -------------------------------------------------------------------------------------------------------- tuning


def tuned(scan: Scan, vectors: np.ndarray, products: np.ndarray, queries: np.ndarray) -> Tuning:
    """The least reach with a recall of WANTED on these queries (Q, D); vectors (n, D) and products (n,) of all pictures."""
    truth = []
    for block in np.array_split(queries, -(-len(queries) // MEASURED_AT_ONCE)):
        truth += [_first_ten(scores, products) for scores in block @ vectors.T]
    recall = 0.0
    for reach in REACHES:
        if reach > max(len(scan) // FARTHEST, REACHES[0]):
            break
        found = np.zeros(2)
        for query, rows, wanted in zip(queries, scan.nearest_of_each(queries, reach), truth):
            got = _first_ten(cosines(vectors, rows, query), products[rows])
            found += [(have >= want[-1] - ROUNDING).sum() / len(want) for have, want in zip(got, wanted)]
        recall = float(found.min() / len(queries))
        if recall >= WANTED:
            return Tuning(reach, recall, len(queries))
    return Tuning(None, recall, len(queries))


def _first_ten(scores: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the first ten pictures, and of the first ten products, each by its best picture."""
    best = ranking.first_places(scores, DEEPEST * MOST_VIEWS)
    places = np.sort(np.unique(products[best], return_index=True)[1])[:DEEPEST]
    return scores[best[:DEEPEST]], scores[best[places]]
