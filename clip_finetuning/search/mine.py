"""Catalogue hygiene by an index: near-duplicates across products, and pictures that contradict what is said of them.

Nothing is proved, everything is worth a look: the findings come worst first, and counts say how many there are beyond
those listed.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from clip_finetuning.retrieval import ranking
from clip_finetuning.retrieval.positives import by_group
from clip_finetuning.search.index import Index
from clip_finetuning.search.scan import cosines

NEIGHBOURS = 20  # of a picture, among those of other products, that are looked at
BLOCK = 1024
SAME_LOOK = 4.0  # mean difference of 8 x 8 colours, in levels of 256: scaling and saving again make 1, another colour 6
SAME_PART = 20  # the largest of them: saving again makes 8, the hands of a clock or another digit 50
LEAST_MEMBERS = 5  # pictures of a category, below which its middle says little
SAME_FILE, SAME_PIXELS, ALIKE = "the same file", "nearly the same pixels", "alike"

Item = dict[str, str]


@dataclass
class Duplicate:
    """Two pictures of different products that look the same."""

    first: Item
    second: Item
    score: float  # cosine
    kind: str  # the same file, nearly the same pixels, or alike (to the model alone)


@dataclass
class CaptionDoubt:
    """A picture whose own caption comes late among all captions."""

    item: Item
    rank: int  # of its caption, from 1; equal scores count as before it
    of: int  # captions
    instead: str  # the caption that comes first


@dataclass
class CategoryDoubt:
    """A picture that is nearer to the middle of another category than to that of its own (without itself)."""

    item: Item
    instead: str
    margin: float  # difference of the cosines


@dataclass
class Findings:
    """What was found, of each kind the `top` worst; `counts` are those of all."""

    duplicates: list[Duplicate] = field(default_factory=list)
    captions: list[CaptionDoubt] = field(default_factory=list)
    categories: list[CategoryDoubt] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """How much there is of each kind, and how much of it is listed."""
        c = self.counts
        return [
            f"{c['pairs']:,} pairs of products share a picture or nearly so, each picture beside its {NEIGHBOURS} nearest "
            f"({len(self.duplicates):,} listed): "
            + ", ".join(f"{c[kind]:,} {kind}" for kind in (SAME_FILE, SAME_PIXELS, ALIKE)),
            f"{c['captions']:,} of {c['captioned']:,} pictures with a caption have it beyond the first ten "
            f"({len(self.captions):,} listed)",
            f"{c['categories']:,} of {c['categorised']:,} pictures in a category of {LEAST_MEMBERS} or more are nearer to "
            f"another one ({len(self.categories):,} listed)",
        ]

    def image_keys(self) -> set[str]:
        """The pictures that the findings show."""
        pairs = [item for pair in self.duplicates for item in (pair.first, pair.second)]
        return {item["image_key"] for item in [*pairs, *(found.item for found in self.captions + self.categories)]}

    def table(self) -> tuple[list[str], Iterator[list[object]]]:
        """(header, rows) of all findings."""
        header = ["finding", "score", "image_key", "product_id", "category", "caption"]
        header += ["other_image_key", "other_product_id", "other_category", "other_caption"]
        return header, self._rows()

    def _rows(self) -> Iterator[list[object]]:
        names, blank = ("image_key", "product_id", "category", "caption"), [""] * 4
        for pair in self.duplicates:
            first, second = ([item[name] for name in names] for item in (pair.first, pair.second))
            yield [f"near-duplicate: {pair.kind}", round(pair.score, 4), *first, *second]
        for found in self.captions:
            own = [found.item[name] for name in names]
            yield ["contradicts its caption: rank", found.rank, *own, *blank[:3], found.instead]
        for found in self.categories:
            own = [found.item[name] for name in names]
            yield ["contradicts its category: margin", round(found.margin, 4), *own, *blank[:2], found.instead, ""]


def find(index: Index, similarity: float, top: int) -> Findings:
    """The `top` worst findings of each kind; `similarity`: the least cosine of near-duplicates."""
    findings = Findings()
    _find_duplicates(index, similarity, top, findings)
    _find_caption_doubts(index, top, findings)
    _find_category_doubts(index, top, findings)
    return findings


# --------------------------------------------------------------------------------------------------- duplicates


def _find_duplicates(index: Index, similarity: float, top: int, findings: Findings) -> None:
    """The best pair of pictures of each pair of products."""
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for first, second, scores in _close_pairs(index, similarity):
        products = np.sort(np.stack([index.product[first], index.product[second]]), axis=0).T.tolist()
        for pair, found in zip(map(tuple, products), zip(scores.tolist(), first.tolist(), second.tolist())):
            if pair[0] != pair[1] and (pair not in best or found[0] > best[pair][0]):
                best[pair] = found
    looks: dict[int, np.ndarray] = {}
    kinds = {pair: _kind(index, first, second, looks) for pair, (_, first, second) in best.items()}
    findings.counts["pairs"] = len(best)
    findings.counts.update(kinds.values())
    order = (SAME_FILE, SAME_PIXELS, ALIKE)
    ranked = sorted(best, key=lambda pair: (order.index(kinds[pair]), -best[pair][0], best[pair][1:]))
    for pair in ranked[:top]:
        score, *rows = best[pair]
        first, second = index.items(sorted(rows))
        findings.duplicates.append(Duplicate(first, second, min(score, 1.0), kinds[pair]))


def _close_pairs(index: Index, similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first, second, cosine) of rows of different products, for each picture with at most its NEIGHBOURS nearest."""
    for start in range(0, len(index), BLOCK):
        block = index.vectors[start : start + BLOCK]
        if index.scan is None:
            scores = block @ index.vectors.T
            scores[index.product[start : start + BLOCK, None] == index.product] = -1.0
            count = min(NEIGHBOURS, len(index))
            places = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            near, column = np.nonzero(np.take_along_axis(scores, places, 1) >= similarity)
            far = places[near, column]
            yield near + start, far, scores[near, far]
            continue
        for row, (query, rows) in enumerate(zip(block, index.scan.nearest_of_each(block, index.reach)), start):
            rows = rows[index.product[rows] != index.product[row]]
            scores = cosines(index.vectors, rows, query)
            chosen = np.argsort(-scores, kind="stable")[:NEIGHBOURS]
            chosen = chosen[scores[chosen] >= similarity]
            yield np.full(len(chosen), row), rows[chosen], scores[chosen]


def _kind(index: Index, first: int, second: int, looks: dict[int, np.ndarray]) -> str:
    if index.content[first] == index.content[second]:
        return SAME_FILE
    for row in (first, second):
        if row not in looks:
            with Image.open(io.BytesIO(index.picture(index.items([row])[0]["image_key"]))) as picture:
                small = picture.convert("RGB").resize((8, 8), Image.Resampling.BOX)
            looks[row] = np.asarray(small, dtype=np.int16)
    difference = np.abs(looks[first] - looks[second])
    return SAME_PIXELS if difference.mean() <= SAME_LOOK and difference.max() <= SAME_PART else ALIKE


# ------------------------------------------------------------------------------------------------ contradictions


def _find_caption_doubts(index: Index, top: int, findings: Findings) -> None:
    """The rank of each picture's own caption, as the evaluator counts it."""
    captions = index.caption_vectors
    captioned = np.flatnonzero(index.caption >= 0)
    findings.counts["captioned"] = len(captioned)
    if not len(captioned):
        return
    own = by_group(index.caption[captioned], np.arange(len(captions)))
    ranks = ranking.rank_positives(index.vectors[captioned], captions, own).best
    findings.counts["captions"] = int((ranks > 10).sum())
    worst = np.argsort(-ranks, kind="stable")[:top]
    worst = worst[ranks[worst] > 1]
    nearest = ranking.nearest_items(index.vectors[captioned[worst]], captions)
    texts = index.captions()
    items = index.items(captioned[worst].tolist())
    for item, place, first in zip(items, worst, nearest):
        findings.captions.append(CaptionDoubt(item, int(ranks[place]), len(captions), texts[first]))


def _find_category_doubts(index: Index, top: int, findings: Findings) -> None:
    """How much nearer each picture is to another category's middle than to that of the others of its own."""
    names = index.category_names()
    sums = np.zeros((len(names), index.vectors.shape[1]), np.float32)
    np.add.at(sums, index.category, index.vectors)
    counts = np.bincount(index.category, minlength=len(names))
    middles = _unit(sums)
    fit = (counts >= LEAST_MEMBERS) & np.array([bool(name) for name in names])
    members = np.flatnonzero(fit[index.category])
    findings.counts["categorised"] = len(members)
    if fit.sum() < 2:
        return
    margins, others = np.empty(len(members)), np.empty(len(members), np.int64)
    for start in range(0, len(members), BLOCK):
        rows = members[start : start + BLOCK]
        vectors, own = index.vectors[rows], index.category[rows]
        scores = np.where(fit, vectors @ middles.T, -np.inf)
        scores[np.arange(len(rows)), own] = -np.inf
        others[start : start + BLOCK] = scores.argmax(1)
        without = (_unit(sums[own] - vectors) * vectors).sum(1)
        margins[start : start + BLOCK] = scores.max(1) - without
    findings.counts["categories"] = int((margins > 0).sum())
    worst = np.argsort(-margins, kind="stable")[:top]
    worst = worst[margins[worst] > 0]
    for item, place in zip(index.items(members[worst].tolist()), worst):
        findings.categories.append(CategoryDoubt(item, names[others[place]], float(margins[place])))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
