"""Exact ranks of the right gallery items, in one pass over tiles of queries x gallery, whatever their sizes.

Equal scores count against the model: a positive that ties with negatives comes after them, so a model that maps
everything to one point scores 0. How many tie is kept beside, for what is expected of a random order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from clip_finetuning.retrieval.positives import Positives, joined, offsets_of, without
from clip_finetuning.retrieval.tiles import Held, Product, Rows, Shape, Source, Streamed, Thresholds, blocks, shape_for
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.out_of_memory import is_out_of_memory

Part = TypeVar("Part")
NEVER = np.iinfo(np.int64).max  # the rank of a query that has no positive in the gallery


class Ranks(NamedTuple):
    """What became of each query, and of each of its positives: those of query q are `ranks[offsets[q]:offsets[q + 1]]`.

    "Best" is the positive of the highest score; the items in front of it are `above`, those that share its score
    `tied_negatives` and `tied_positives`, itself one of them.
    """

    offsets: np.ndarray  # (Q + 1,) int64
    ranks: np.ndarray  # (sum of P,) int64: of all positives, from 1, ascending for each query
    order: np.ndarray  # (sum of P,) int64: which of `positives.items` each of these ranks is of
    best: np.ndarray  # (Q,) int64: rank of the best positive; NEVER without positives
    average_precision: np.ndarray  # (Q,) float64: mean precision at the ranks of its positives
    above: np.ndarray  # (Q,) int64
    tied_negatives: np.ndarray  # (Q,) int64
    tied_positives: np.ndarray  # (Q,) int64
    best_tolerant: np.ndarray | None = None  # (Q,) int64: rank of the best of positives and alike items, both right
    best_without: np.ndarray | None = None  # (Q,) int64: rank of the best positive in a gallery without alike items
    top_items: np.ndarray | None = None  # (Q, top) int64: the best items of the gallery, equal scores by number
    top_scores: np.ndarray | None = None  # (Q, top) float32


def rank_positives(
    queries: Rows,
    gallery: Rows,
    positives: Positives,
    *,
    alike: Positives | None = None,
    absent: Positives | None = None,
    grades: np.ndarray | None = None,
    top: int = 0,
    device: torch.device | None = None,
    shape: Shape | None = None,
    shared: bool = False,
) -> Ranks:
    """Rank the whole gallery for every query -> Ranks.

    queries (Q, D) and gallery (G, D): arrays or tensors of any float type, computed in float32; the score is their dot
    product. `alike`: for each query the gallery items that are no positives but could as well be; `absent`: those
    that its gallery lacks, such as the query itself, no positives either; `top` counts them all the same. `grades`, one for
    each of `positives.items`: of equal scores, the lower grade comes first. `top`: how many of each query's best items
    are wanted too. `device` multiplies, a CPU where none is named. `shared`: all processes of the run call this with the
    same arguments, each ranks its part of the queries, and all have the result. Raises ValueError for embeddings that are
    not finite.
    """
    work = partial(_ranks_of, top=min(top, len(gallery)))
    options = {"device": device, "shape": shape, "shared": shared}
    return concatenated(ask(work, queries, gallery, positives, alike, grades, absent, **options))


def _ranks_of(block, positives, alike, grades, absent, top):
    """The ranks of a block of queries."""
    query, own = positives.queries(), block.scores(positives)
    order = np.lexsort((np.zeros(len(own)) if grades is None else grades, -own, query))
    own = own[order]
    answerable = np.flatnonzero(np.diff(positives.offsets))  # the queries with positives
    first = positives.offsets[answerable]  # where each one's best positive stands
    more = above_all(own[first])
    wanted = [(query, own), (answerable, more)]
    left_out = positives if absent is None else joined(positives, absent)
    other = {}
    if alike is None:
        (ahead, above), best = counted(block, wanted, left_out, top=top)
    else:
        scores, alike_query = block.scores(alike), alike.queries()
        reached = np.full(
            len(positives.offsets) - 1, -np.inf, np.float32
        )  # the best score of positives and alike items
        np.maximum.at(reached, np.concatenate([query, alike_query]), np.concatenate([own, scores]))
        wanted.append((np.arange(len(reached)), reached))
        (ahead, above, tolerant), best = counted(block, wanted, joined(left_out, alike), top=top)
        other = {
            "best_tolerant": np.where(reached > -np.inf, tolerant + 1, NEVER),
            "best_without": _spread(ahead[first] + 1, answerable, len(reached), NEVER),
        }
        ahead += at_least(alike_query, scores, query, own)
        above += at_least(alike_query, scores, answerable, more)
    if top:
        other |= {"top_items": best[0], "top_scores": best[1]}
    return _ranks(positives.offsets, order, own, ahead, above, other)


def _ranks(offsets, order, own, ahead, above, other):
    """Ranks of the scores of all positives (descending for each query), the negatives ahead of each, and above the best."""
    counts = np.diff(offsets)
    asked, query = np.flatnonzero(counts), np.repeat(np.arange(len(counts)), counts)
    first = offsets[asked]
    number = np.arange(1, len(own) + 1) - offsets[query]  # the p-th positive stands behind p - 1 others
    ranks = ahead + number
    precision = np.bincount(query, number / ranks, len(counts)) / np.maximum(counts, 1)
    return Ranks(
        offsets=offsets,
        ranks=ranks,
        order=order,
        best=_spread(ranks[first], asked, len(counts), NEVER),
        average_precision=precision,
        above=_spread(above, asked, len(counts), 0),
        tied_negatives=_spread(ahead[first] - above, asked, len(counts), 0),
        tied_positives=np.bincount(query[own == own[offsets[query]]], minlength=len(counts)),
        **other,
    )


def ask(
    work: Callable[..., Part],
    queries: Rows,
    gallery: Rows,
    positives: Positives,
    alike: Positives | None = None,
    grades: np.ndarray | None = None,
    absent: Positives | None = None,
    *,
    device: torch.device | None = None,
    shape: Shape | None = None,
    shared: bool = False,
) -> list[Part]:
    """[work(block, its part of positives, alike, grades and absent)] of all queries in blocks, in their order.

    A block that the device has no room for is made smaller. Each process asks a part of the queries, if it is `shared`.
    """
    device = device or torch.device("cpu")
    known = positives if absent is None else joined(positives, absent)
    spared = None if alike is None else without(alike, known, len(gallery))
    sources = Source(queries, "query", device), Source(gallery, "gallery", device)
    shape = shape or shape_for(sources[1])

    def parts(shape):
        for block in blocks(*sources, shape, *(distributed.part_of(len(queries)) if shared else (0, len(queries)))):
            ends = block.first, block.last
            mine = slice(*positives.offsets[[*ends]])
            yield work(
                block,
                positives.window(*ends),
                None if spared is None else spared.window(*ends),
                None if grades is None else grades[mine],
                None if absent is None else absent.window(*ends),
            )

    with devices.whole_float32():
        while True:
            try:
                found = list(parts(shape))
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or shape == (1, 1):
                    raise
            # Here, not in the handler, whose traceback would hold what the failed attempt has computed.
            devices.empty_cache(device)
            shape = Shape(max(1, shape.rows // 2), max(1, shape.columns // 2 if shape.rows == 1 else shape.columns))
    return [part for parts in distributed.gather_objects(found) for part in parts] if shared else found


def counted(
    block: Held | Streamed,
    wanted: Sequence[tuple[np.ndarray, np.ndarray]],
    left_out: Positives,
    weights: np.ndarray | None = None,
    top: int = 0,
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """How many items score at least as much: for each (queries, scores), of equal lengths, the numbers; the best items."""
    query = np.concatenate([query for query, _ in wanted])
    scores = np.concatenate([scores for _, scores in wanted])
    order = np.argsort(query, kind="stable")
    thresholds = Thresholds(offsets_of(np.bincount(query, minlength=block.last - block.first)), scores[order])
    found = block.count(thresholds, left_out, weights, top)
    counts = np.empty(len(query), np.int64)
    counts[order] = found.at_least
    return np.split(counts, np.cumsum([len(query) for query, _ in wanted])[:-1]), (found.items, found.scores)


def above_all(scores: np.ndarray) -> np.ndarray:
    """The next float32 above each score: what reaches it scores more."""
    return np.nextafter(scores, np.float32(np.inf))


def at_least(item_query, item_scores, query, thresholds):
    """How many of the items of a query, which ascends, score at least as much as each threshold of it."""
    is_item = np.repeat([True, False], [len(item_query), len(query)])
    order = np.lexsort((~is_item, -np.concatenate([item_scores, thresholds]), np.concatenate([item_query, query])))
    passed = np.empty(len(order), np.int64)
    passed[order] = np.cumsum(is_item[order])
    return passed[len(item_query) :] - np.searchsorted(item_query, query)


def _spread(values, queries, count, default):
    """(count,) of the values of some queries and a default for the others."""
    column = np.full(count, default)
    column[queries] = values
    return column


def concatenated(parts: Sequence[Ranks]) -> Ranks:
    """The ranks of several lists of queries as those of one; none at all if there are no lists."""
    if not parts:
        nothing = np.empty(0, np.int64)
        return _ranks(np.array([0]), nothing, nothing, nothing, nothing, {})
    starts = offsets_of(np.array([len(part.ranks) for part in parts]))
    columns: dict[str, Any] = {
        name: None if column[0] is None else np.concatenate(column)
        for name, column in zip(Ranks._fields, zip(*parts))
        if name not in ("offsets", "order")
    }
    columns["offsets"] = np.concatenate([[0], *(part.offsets[1:] + start for part, start in zip(parts, starts))])
    columns["order"] = np.concatenate([part.order + start for part, start in zip(parts, starts)])
    return Ranks(**columns)


def rank_candidates(queries: Rows, candidates: Rows, alike: np.ndarray | None = None) -> Ranks:
    """Rank candidate 0, the positive, among each query's own candidates: (Q, D) and (Q, C, D) -> Ranks.

    `alike` (Q, C): which of the others could as well be right.
    """
    device = torch.device("cpu")
    rows, own = Source(queries, "query", device), Source(candidates, "candidate", device)
    everything = slice(None)
    scores = torch.einsum("qcd,qd->qc", own.read(everything), rows.read(everything)).numpy()
    others, right = scores[:, 1:], scores[:, 0]
    ahead, above = (others >= right[:, None]).sum(1), (others > right[:, None]).sum(1)
    beside = {} if alike is None else _beside_alike(others, right, alike[:, 1:])
    return _ranks(np.arange(len(scores) + 1), np.arange(len(scores)), right, ahead, above, beside)


def _beside_alike(scores, right, alike):
    """Ranks of the best of the positive and the alike ones, and of the positive without these: (Q, C), (Q,), (Q, C)."""
    reached = np.maximum(right, np.where(alike, scores, -np.inf).max(1, initial=-np.inf))
    rank = {"best_tolerant": reached, "best_without": right}
    return {name: 1 + ((scores >= best[:, None]) & ~alike).sum(1) for name, best in rank.items()}


# ------------------------------------------------------------------------------------------------- nearest items


def top_items(queries: Rows, gallery: Rows, count: int, block_rows: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best gallery items of each query and their scores -> (Q, count) each; equal scores by number."""
    count = min(count, len(gallery))
    items, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), block_rows):
        for query, found in enumerate(all_scores(queries[start : start + block_rows], gallery), start):
            items[query] = first_places(found, count)
            scores[query] = found[items[query]]
    return items, scores


def all_scores(queries: Rows, gallery: Rows) -> np.ndarray:
    """The score of every gallery item for each of a few queries -> (Q, G) float32, to the bit those of `rank_positives`."""
    device = torch.device("cpu")
    source = Source(gallery, "gallery", device)
    shape = shape_for(source)
    multiply = Product(shape, device)
    rows = Source(queries, "query", device).read(slice(None))
    scores = np.empty((len(rows), len(gallery)), np.float32)
    for first in range(0, len(gallery), shape.columns):
        part = slice(first, first + shape.columns)
        scores[:, part] = multiply.of(source.read(part))(rows).numpy()
    return scores


def first_places(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` best of scores (n,), best first; equal ones in their order."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    near = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return near[np.argsort(-scores[near], kind="stable")[:count]]


def nearest_items(queries: Rows, gallery: Rows, block_rows: int = 1024) -> np.ndarray:
    """The number of the best gallery item of each query -> (Q,)."""
    queries, gallery = _matrix(queries, "query"), _matrix(gallery, "gallery")
    blocks = [(block @ gallery.T).argmax(dim=1) for block in queries.split(block_rows)]
    return torch.cat(blocks).numpy()


def _matrix(values, what):
    return Source(values, what, torch.device("cpu")).read(slice(None))
