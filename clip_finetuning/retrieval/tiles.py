"""Queries times gallery, block by block, on whatever device: what is counted of the scores, and never all scores.

Ranks are compared to the last bit, so a score must not depend on how the work is cut. On a CPU all products of some
size give the same bits; those here are filled up with zeros to multiples of FILL. Other devices' libraries choose a kernel
by the shape: there every product has the shape of a whole block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from clip_finetuning.retrieval.positives import Positives
from clip_finetuning.retrieval.stored_rows import StoredRows
from clip_finetuning.runtime.device import free_bytes

Rows = np.ndarray | torch.Tensor | StoredRows  # (n, D) embeddings of any float type, in memory or in a file

FILL = 64
BLOCK_BYTES = 40 * 2**20  # a block of scores on a CPU
MOST_ROWS, MOST_COLUMNS = 1024, 32768  # of a block on a CPU: a gallery of more items is streamed
DEVICE_BYTES, DEVICE_ROWS = 2 * 2**30, 4096  # the same elsewhere, if an eighth of the free memory is as much
CACHED = 1024  # columns in which a block is counted, so that they stay in a CPU's cache
SEVERAL = 4  # thresholds of a query from which it pays to look first which scores reach the lowest of them
MANY = 128  # thresholds of a query from which sorting its scores is faster than counting again and again


class Shape(NamedTuple):
    """How many queries meet how many gallery items at once."""

    rows: int
    columns: int


class Thresholds(NamedTuple):
    """For each query the scores to count from: `scores[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray  # (Q + 1,) int64
    scores: np.ndarray  # float32


class Counted(NamedTuple):
    """What was found of a block of queries."""

    at_least: np.ndarray  # for each threshold, how many items score at least as much
    items: np.ndarray  # (Q, top) int64: each query's best items, of all, equal scores by number
    scores: np.ndarray  # (Q, top) float32


def shape_for(gallery: "Source") -> Shape:
    """The block of scores that suits a gallery and the memory of its device."""
    size, most, rows = BLOCK_BYTES, MOST_COLUMNS, MOST_ROWS
    if gallery.device.type != "cpu":
        # The scores, what is counted of them and the items lie there together.
        size, rows = min(DEVICE_BYTES, (free_bytes(gallery.device) or BLOCK_BYTES * 8) // 8), DEVICE_ROWS
        most = size // (4 * max(1, gallery.values.shape[1]))
    columns = max(1, min(len(gallery), most))
    return Shape(max(1, min(rows, size // (4 * columns))), columns)


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
        if not torch.isfinite(part.sum()) and not torch.isfinite(part).all():  # the sum alone is much faster
            raise ValueError(
                f"the {self.what} embeddings hold NaN or infinity: the model is broken, look at its training log"
            )
        return part


class Product:
    """Multiplies rows by rows, up to a block of them, into the same memory again and again."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.fill = Shape(FILL, FILL) if device.type == "cpu" else shape
        self._out = self._gallery = torch.empty(0, device=device)
        self._columns = 0

    def of(self, gallery: torch.Tensor) -> "Product":
        """Itself, from now on with this gallery (c, D), which is filled up once for all queries."""
        self._gallery, self._columns = _filled(gallery, self.fill.columns), len(gallery)
        return self

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        """(r, D) -> (r, c) scores, good until the next call."""
        rows = _filled(queries, self.fill.rows)
        if self._out.shape != (len(rows), len(self._gallery)):
            self._out = torch.empty(len(rows), len(self._gallery), device=rows.device)
        return torch.mm(rows, self._gallery.T, out=self._out)[: len(queries), : self._columns]


def _filled(rows, multiple):
    lacking = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(lacking, rows.shape[1])]) if lacking else rows


# --------------------------------------------------------------------------------------------- blocks of queries


def blocks(queries: Source, gallery: Source, shape: Shape, first: int, last: int) -> Iterator["Held | Streamed"]:
    """The queries from `first` to before `last`: some at a time if their scores with the whole gallery make a block,
    else all at once. What a block says is good until the next one.
    """
    if len(gallery) > shape.columns:
        yield Streamed(first, last, queries, gallery, shape)
        return
    multiply = Product(shape, queries.device).of(gallery.read(slice(None)))
    for start in range(first, last, shape.rows):
        end = min(start + shape.rows, last)
        yield Held(start, end, multiply(queries.read(slice(start, end))))


class Held:
    """The queries from `first` to before `last`, of which all scores are there."""

    def __init__(self, first: int, last: int, scores: torch.Tensor) -> None:
        self.first, self.last, self._scores = first, last, scores

    def scores(self, pairs: Positives) -> np.ndarray:
        """The score of each (query, item) pair of ragged lists."""
        return self._scores[_tensor(pairs.queries(), self._scores), _tensor(pairs.items, self._scores)].cpu().numpy()

    def count(
        self, thresholds: Thresholds, left_out: Positives, weights: np.ndarray | None = None, top: int = 0
    ) -> Counted:
        """How many items reach each threshold, but for those left out, as their weights; the best `top` items of all."""
        counter = _Counter(thresholds, self._scores.device)
        best = _best_of(self._scores, top) if top else _no_best(len(self._scores))
        counter.add(self._scores, left_out, weights)
        return Counted(counter.counts(), *(column.cpu().numpy() for column in best))


class Streamed:
    """The queries from `first` to before `last`, of a gallery that is read once from its beginning to its end."""

    def __init__(self, first: int, last: int, queries: Source, gallery: Source, shape: Shape) -> None:
        self.first, self.last = first, last
        self._queries, self._gallery, self._shape = queries, gallery, shape

    def _rows(self, start, end):
        return self._queries.read(slice(self.first + start, self.first + end))

    def scores(self, pairs: Positives) -> np.ndarray:
        """As `Held.scores`: only the pairs' items are read, for few queries at a time."""
        found = np.empty(len(pairs.items), np.float32)
        step = FILL if self._queries.device.type == "cpu" else self._shape.rows
        multiply = Product(self._shape, self._queries.device)
        for start in range(0, self.last - self.first, step):
            end = min(start + step, self.last - self.first)
            mine = pairs.window(start, end)
            items, place = np.unique(mine.items, return_inverse=True)
            scores = found[pairs.offsets[start] : pairs.offsets[end]]
            for column in range(0, len(items), self._shape.columns):
                part = items[column : column + self._shape.columns]
                product = multiply.of(self._gallery.read(part))(self._rows(start, end))
                inside = np.flatnonzero((place >= column) & (place < column + len(part)))
                at = _tensor(mine.queries()[inside], product), _tensor(place[inside] - column, product)
                scores[inside] = product[at].cpu().numpy()
        return found

    def count(
        self, thresholds: Thresholds, left_out: Positives, weights: np.ndarray | None = None, top: int = 0
    ) -> Counted:
        """As `Held.count`."""
        device, queries, step = self._queries.device, self.last - self.first, self._shape.columns
        counts = np.zeros(len(thresholds.scores), np.int64)
        items, scores = torch.full((queries, top), -1), torch.full((queries, top), -torch.inf)
        multiply = Product(self._shape, device)
        for column in range(0, len(self._gallery), step):
            chunk = self._gallery.read(slice(column, column + step))
            multiply.of(chunk)
            part = None if weights is None else weights[column : column + len(chunk)]
            for start in range(0, queries, self._shape.rows):
                end = min(start + self._shape.rows, queries)
                product = multiply(self._rows(start, end))
                if top:
                    best = _best_of(product, min(top, len(chunk)))
                    best = _better((items[start:end], scores[start:end]), (best[0].cpu() + column, best[1].cpu()))
                    items[start:end], scores[start:end] = best
                mine = slice(thresholds.offsets[start], thresholds.offsets[end])
                offsets = thresholds.offsets[start : end + 1] - thresholds.offsets[start]
                counter = _Counter(Thresholds(offsets, thresholds.scores[mine]), device)
                counter.add(product, _inside(left_out.window(start, end), column, column + len(chunk)), part)
                counts[mine] += counter.counts()
        return Counted(counts, items.numpy(), scores.numpy())


def _inside(pairs, first, last):
    """The pairs whose items lie in a part of the gallery, numbered in it."""
    kept = (pairs.items >= first) & (pairs.items < last)
    return Positives(np.concatenate([[0], np.cumsum(kept)])[pairs.offsets], pairs.items[kept] - first)


# ---------------------------------------------------------------------------------------------------- of scores


class _Counter:
    """How many of some scores reach each threshold of their query."""

    def __init__(self, thresholds, device):
        numbers = np.diff(thresholds.offsets)
        # The queries with most thresholds first, so that the p-th threshold concerns the first rows alone.
        order = np.argsort(-numbers, kind="stable")
        self.place = np.argsort(order)  # of each query
        self.row = np.repeat(self.place, numbers)
        self.slot = np.arange(len(thresholds.scores)) - np.repeat(thresholds.offsets[:-1], numbers)
        values = np.full((len(order), numbers.max(initial=0)), np.inf, np.float32)
        values[self.row, self.slot] = thresholds.scores
        self.rows_of_slot = np.searchsorted(-numbers[order], -np.arange(values.shape[1]), side="left").tolist()
        self.in_order = bool((np.diff(order) > 0).all())
        self.order = torch.from_numpy(order).to(device)
        self.values = torch.from_numpy(values).to(device)
        self.found = torch.zeros(values.shape, dtype=torch.int64, device=device)
        self.lowest = values.min(axis=1) if device.type == "cpu" and values.shape[1] >= SEVERAL else None

    def add(self, scores, left_out, weights):
        """Count some scores (Q, c), which are changed: items that are left out score less than any threshold."""
        scores[_tensor(left_out.queries(), scores), _tensor(left_out.items, scores)] = -torch.inf
        width = CACHED if scores.device.type == "cpu" else scores.shape[1]
        for first in range(0, scores.shape[1], width):
            part = scores[:, first : first + width]
            part = part if self.in_order else part[self.order]
            self._add(part, None if weights is None else _tensor(weights[first : first + width], scores).float())

    def _add(self, scores, weights):
        if self.lowest is not None and self._add_few(scores, weights, self.lowest):
            return
        done = 0
        if weights is None and self.values.shape[1] > MANY:
            done = self.rows_of_slot[MANY]
            ascending = scores[:done].sort(dim=1).values
            self.found[:done] += scores.shape[1] - torch.searchsorted(ascending, self.values[:done])
        scratch = torch.empty_like(scores)
        for slot, rows in enumerate(self.rows_of_slot):
            if rows > done:
                reached = torch.ge(scores[done:rows], self.values[done:rows, slot, None], out=scratch[done:rows])
                # Whole numbers, of which float32 adds up 16 million without an error.
                self.found[done:rows, slot] += (reached.sum(1) if weights is None else reached @ weights).long()

    def _add_few(self, scores, weights, lowest):
        """Compare the scores that reach their query's lowest threshold, if these are few, as they are of a good model."""
        reached = scores.numpy() >= lowest[:, None]
        if SEVERAL * np.count_nonzero(reached) * self.values.shape[1] > reached.size:
            return False
        row, column = map(torch.from_numpy, np.divmod(np.flatnonzero(reached), scores.shape[1]))
        passed = (scores[row, column, None] >= self.values[row]).long()
        self.found.index_add_(0, row, passed if weights is None else passed * weights[column, None].long())
        return True

    def counts(self):
        """What was found for each threshold, in their order."""
        return self.found.cpu().numpy()[self.row, self.slot]


def _tensor(numbers, like):
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device)


def _no_best(rows):
    return torch.empty(rows, 0, dtype=torch.int64), torch.empty(rows, 0)


def _best_of(scores, count):
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


def _better(before, after):
    """The best of two lists of best (items, scores), as many as the first has; those before come first among equals."""
    items, scores = (torch.cat(column, 1) for column in zip(before, after))
    kept = scores.sort(dim=1, descending=True, stable=True).indices[:, : before[0].shape[1]]
    return items.gather(1, kept), scores.gather(1, kept)
