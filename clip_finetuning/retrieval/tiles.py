"""Queries times gallery, tile by tile, on whatever device: what is counted of the scores, and never the scores.

Ranks are compared to the last bit, so a score must not depend on how the work is cut. On a CPU all products of some
size give the same bits; those here are filled up with zeros to multiples of FILL. Other devices' libraries choose a kernel
by the shape: there every product has the shape of a whole tile.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from clip_finetuning.retrieval.positives import Positives

Rows = np.ndarray | torch.Tensor  # (n, D) embeddings of any float type, in memory or mapped from a file

FILL = 64
CHUNK_BYTES = 128 * 2**20  # of a gallery in float32 that is held at a time
MANY = 128  # thresholds of a query from which sorting its scores is faster than counting again and again


class Tile(NamedTuple):
    """How many queries meet how many gallery items at once: small enough that the scores stay in a CPU's cache."""

    rows: int = 512
    columns: int = 2048


class Thresholds(NamedTuple):
    """For each query the scores to count from: `scores[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray  # (Q + 1,) int64
    scores: np.ndarray  # float32


class Source:
    """(n, D) embeddings, read some rows at a time as finite float32 on a device."""

    def __init__(self, values: Rows, what: str, device: torch.device) -> None:
        self.values, self.what, self.device = values, what, device

    def __len__(self) -> int:
        return len(self.values)

    def read(self, chosen: slice | np.ndarray) -> torch.Tensor:
        """Some rows. Raises ValueError for embeddings that are not finite."""
        part = self.values[chosen]
        if not isinstance(part, torch.Tensor):
            part = np.asarray(part, dtype=np.float32)
            part = torch.from_numpy(part if part.flags.writeable else part.copy())
        part = part.detach().to(self.device, torch.float32)
        if not torch.isfinite(part).all():
            raise ValueError(
                f"the {self.what} embeddings hold NaN or infinity: the model is broken, look at its training log"
            )
        return part


def score_pairs(queries: Source, gallery: Source, pairs: Positives, tile: Tile) -> np.ndarray:
    """The score of each (query, item) pair of ragged lists -> float32, to the bit that of `count_at_least`'s tiles."""
    found = np.empty(len(pairs.items), np.float32)
    rows = FILL if queries.device.type == "cpu" else tile.rows
    multiply = Product(tile, queries.device)
    for start in range(0, len(queries), rows):
        mine = pairs.window(start, min(start + rows, len(queries)))
        items, place = np.unique(mine.items, return_inverse=True)
        block = queries.read(slice(start, start + rows)) if len(items) else None
        scores = np.empty(len(place), np.float32)
        for first in range(0, len(items), tile.columns):
            part = items[first : first + tile.columns]
            product = multiply(block, gallery.read(part))
            inside = np.flatnonzero((place >= first) & (place < first + len(part)))
            at = _tensor(mine.queries()[inside], product), _tensor(place[inside] - first, product)
            scores[inside] = product[at].cpu().numpy()
        found[pairs.offsets[start] : pairs.offsets[start] + len(scores)] = scores
    return found


def count_at_least(
    queries: Source,
    gallery: Source,
    thresholds: Thresholds,
    left_out: Positives,
    tile: Tile,
    weights: np.ndarray | None = None,
    best: "Best | None" = None,
) -> np.ndarray:
    """How many gallery items score at least as much as each threshold of each query -> int64, one a threshold.

    `left_out`: for each query the items that do not count. An item counts `weights[item]` times, where they are given.
    `best` collects the best items of all, left out or not, on the way.
    """
    counts = np.zeros(len(thresholds.scores), np.int64)
    multiply = Product(tile, queries.device)
    for first, chunk in _chunks(gallery):
        for start in range(0, len(queries), tile.rows):
            last = min(start + tile.rows, len(queries))
            block = _Block(start, last, thresholds, left_out, first, len(chunk), queries.device)
            rows = queries.read(slice(start, last))[block.order]
            for column in range(0, len(chunk), tile.columns):
                scores = multiply(rows, chunk[column : column + tile.columns])
                if best is not None:
                    best.add(start + block.order.cpu(), first + column, scores)
                block.leave_out(scores, column)
                block.count(scores, None if weights is None else weights[first + column :][: scores.shape[1]])
            counts[thresholds.offsets[start] : thresholds.offsets[last]] += block.counts()
    return counts


def _chunks(gallery: Source) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of its first row, rows) of the parts of a gallery."""
    step = max(1, CHUNK_BYTES // (4 * max(1, gallery.values.shape[1])))
    for first in range(0, len(gallery), step):
        yield first, gallery.read(slice(first, first + step))


class Product:
    """Multiplies rows by rows, up to a tile of them, into the same memory again and again."""

    def __init__(self, tile: Tile, device: torch.device) -> None:
        self.fill = Tile(FILL, FILL) if device.type == "cpu" else tile
        self._out = torch.empty(0, device=device)

    def __call__(self, queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """(r, D) and (c, D) -> (r, c) scores, good until the next call."""
        a, b = _filled(queries, self.fill.rows), _filled(gallery, self.fill.columns)
        if self._out.shape != (len(a), len(b)):
            self._out = torch.empty(len(a), len(b), device=a.device)
        return torch.mm(a, b.T, out=self._out)[: len(queries), : len(gallery)]


def _filled(rows, multiple):
    lacking = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(lacking, rows.shape[1])]) if lacking else rows


class _Block:
    """A block of queries against a chunk of the gallery: the queries with most thresholds first, so that the p-th
    threshold concerns the first rows alone."""

    def __init__(self, start, last, thresholds, left_out, first_item, items, device):
        self.offsets = thresholds.offsets[start : last + 1] - thresholds.offsets[start]
        mine = thresholds.scores[thresholds.offsets[start] : thresholds.offsets[last]]
        numbers = np.diff(self.offsets)
        order = np.argsort(-numbers, kind="stable")
        place = np.argsort(order)  # of each query in the block
        self.row = np.repeat(place, numbers)
        self.slot = np.arange(len(mine)) - np.repeat(self.offsets[:-1], numbers)
        values = np.full((len(order), numbers.max(initial=0)), np.inf, np.float32)
        values[self.row, self.slot] = mine
        self.values = torch.from_numpy(values).to(device)
        self.found = torch.zeros(values.shape, dtype=torch.int64, device=device)
        self.order = torch.from_numpy(order).to(device)
        self.lengths = np.searchsorted(-numbers[order], -np.arange(values.shape[1]), side="left").tolist()
        pairs = left_out.window(start, last)
        inside = (pairs.items >= first_item) & (pairs.items < first_item + items)
        columns = pairs.items[inside] - first_item
        by_column = np.argsort(columns, kind="stable")
        self.out_columns, self.out_rows = columns[by_column], place[pairs.queries()[inside]][by_column]
        self.scratch = torch.empty(0)

    def leave_out(self, scores, column):
        """Let the items that do not count score less than any threshold."""
        first, last = np.searchsorted(self.out_columns, [column, column + scores.shape[1]])
        if first < last:
            columns = _tensor(self.out_columns[first:last] - column, scores)
            scores[_tensor(self.out_rows[first:last], scores), columns] = -torch.inf

    def count(self, scores, weights):
        """Add what a tile of scores (r, c) has at or above each threshold."""
        done = 0
        if weights is None and self.values.shape[1] > MANY:
            done = self.lengths[MANY]
            ascending = scores[:done].sort(dim=1).values
            self.found[:done] += scores.shape[1] - torch.searchsorted(ascending, self.values[:done])
        if self.scratch.shape != scores.shape:
            self.scratch = torch.empty(scores.shape, device=scores.device)
        # Whole numbers, of which float32 adds up 16 million without an error.
        factors = None if weights is None else _tensor(weights, scores).float()
        for slot, length in enumerate(self.lengths):
            if length > done:
                is_at_least = torch.ge(
                    scores[done:length], self.values[done:length, slot, None], out=self.scratch[done:length]
                )
                total = is_at_least.sum(1) if factors is None else is_at_least @ factors
                self.found[done:length, slot] += total.long()

    def counts(self):
        """What was found for each threshold, in their order."""
        return self.found.cpu().numpy()[self.row, self.slot]


def _tensor(numbers, like):
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device)


class Best:
    """The best `count` items of each query so far: their numbers and scores, equal scores by number."""

    def __init__(self, queries: int, count: int) -> None:
        self.items = torch.full((queries, count), -1)
        self.scores = torch.full((queries, count), -torch.inf)

    def add(self, numbers: torch.Tensor, first_item: int, scores: torch.Tensor) -> None:
        """Take in the scores (r, c) of the queries of these numbers with items from `first_item` on."""
        count = self.items.shape[1]
        items, values = best_of(scores, min(count, scores.shape[1]))
        items = torch.cat([self.items[numbers], items.cpu() + first_item], 1)
        values = torch.cat([self.scores[numbers], values.cpu()], 1)
        kept = values.sort(dim=1, descending=True, stable=True).indices[:, :count]  # earlier items come first
        self.items[numbers], self.scores[numbers] = items.gather(1, kept), values.gather(1, kept)


def best_of(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best columns of each row and their scores -> (r, count) each, best first, equal ones by number.

    torch.topk takes any of equal ones, so rows whose last place several share are sorted whole.
    """
    values, columns = scores.topk(count, dim=1)
    columns, by_number = columns.sort(dim=1)
    values, by_score = values.gather(1, by_number).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, by_score)
    shared = ((scores >= values[:, -1:]).sum(1) > count).nonzero()[:, 0]
    if len(shared):
        ordered = scores[shared].sort(dim=1, descending=True, stable=True)
        values[shared], columns[shared] = ordered.values[:, :count], ordered.indices[:, :count]
    return columns, values
