"""Which gallery items are right for which query: ragged lists of them, made from groups, pairs or the other direction."""

from typing import NamedTuple

import numpy as np


class Positives(NamedTuple):
    """For each query its positives in the gallery: `items[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray  # (Q + 1,) int64
    items: np.ndarray  # int64 gallery numbers

    def of(self, query: int) -> np.ndarray:
        """The gallery numbers of one query's positives."""
        return self.items[self.offsets[query] : self.offsets[query + 1]]

    def queries(self) -> np.ndarray:
        """The query of each item."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def window(self, first: int, last: int) -> "Positives":
        """Those of the queries from `first` to before `last`, as the only ones."""
        offsets = self.offsets[first : last + 1]
        return Positives(offsets - offsets[0], self.items[offsets[0] : offsets[-1]])


def one_to_one(count: int) -> Positives:
    """Query i's positive is gallery item i."""
    return Positives(np.arange(count + 1), np.arange(count))


def by_group(query_groups: np.ndarray, gallery_groups: np.ndarray) -> Positives:
    """Every gallery item of a query's group is its positive; groups (Q,) and (G,) are integers."""
    order = np.argsort(gallery_groups, kind="stable")
    ordered = gallery_groups[order]
    first = np.searchsorted(ordered, query_groups, side="left")
    counts = np.searchsorted(ordered, query_groups, side="right") - first
    starts = np.repeat(first - offsets_of(counts)[:-1], counts)
    return Positives(offsets_of(counts), order[starts + np.arange(counts.sum())])


def transposed(positives: Positives, gallery_size: int) -> Positives:
    """The positives of the other direction: gallery items as queries."""
    order = np.argsort(positives.items, kind="stable")
    counts = np.bincount(positives.items, minlength=gallery_size)
    return Positives(offsets_of(counts), positives.queries()[order])


def from_pairs(queries: np.ndarray, items: np.ndarray, query_count: int) -> Positives:
    """The positives that a list of (query, gallery item) pairs says; repeated pairs count once."""
    width = int(items.max(initial=0)) + 1
    return from_keys(distinct(pair_keys(queries, items, width)), query_count, width)


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """(Q,) how many each query has -> (Q + 1,) where they begin and end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def joined(first: Positives, second: Positives) -> Positives:
    """For each query the items of both, those of `first` before the others."""
    query = np.concatenate([first.queries(), second.queries()])
    items = np.concatenate([first.items, second.items])
    return Positives(first.offsets + second.offsets, items[np.argsort(query, kind="stable")])


def selected(positives: Positives, queries: np.ndarray) -> Positives:
    """Those of these queries, in their order."""
    counts = np.diff(positives.offsets)[queries]
    offsets = offsets_of(counts)
    starts = np.repeat(positives.offsets[queries] - offsets[:-1], counts)
    return Positives(offsets, positives.items[starts + np.arange(offsets[-1])])


def without(positives: Positives, others: Positives, gallery_size: int) -> Positives:
    """Those that are not among the others of the same query, each once."""
    own, known = (keys_of(some, gallery_size) for some in (positives, others))
    return from_keys(not_among(distinct(own), known), len(positives.offsets) - 1, gallery_size)


# ------------------------------------------------------------------------------- pairs as numbers, to be told apart


def pair_keys(queries: np.ndarray, items: np.ndarray, width: int) -> np.ndarray:
    """The numbers `query * width + item` of pairs, of which each has its own; `width` is that of the gallery."""
    return queries * np.int64(width) + items


def keys_of(positives: Positives, width: int) -> np.ndarray:
    """The numbers of all pairs of ragged lists, ascending."""
    return np.sort(pair_keys(positives.queries(), positives.items, width))


def from_keys(keys: np.ndarray, queries: int, width: int) -> Positives:
    """The ragged lists of ascending numbers, each once."""
    offsets = np.searchsorted(keys, np.arange(queries + 1) * width)
    return Positives(offsets.astype(np.int64), keys % width)


def distinct(keys: np.ndarray) -> np.ndarray:
    """Ascending, each once: by sorting, for NumPy's own hash table takes minutes for ten million."""
    ascending = np.sort(keys, kind="stable")  # of runs that are in order, mostly
    return ascending[np.diff(ascending, prepend=-1) != 0]


def not_among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Those keys that are not among the known ones, which are ascending."""
    return keys[~is_among(keys, known)]


def is_among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which keys, of any shape, are among the known ones, which are ascending."""
    if not len(known):
        return np.zeros(np.shape(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
