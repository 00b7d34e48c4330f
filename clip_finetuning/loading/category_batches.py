"""Batches of one category at a time: which samples make which batch, where the others of a batch are to be hard to tell apart.

An epoch shows the samples that `batch_sampler` chooses, in as many batches. Of each category as many batches are filled as it has
samples for; what is left over of all of them, and samples without a category, make the mixed batches.

Two pictures that no caption tells apart are no negatives, and in one category they meet often. So no batch of one category holds
two samples of one product, nor two whose captions have the same words (`labels.words_of`); nor two of the same attributes
where that costs no batch: attributes that are shared by too many say too little. Mixed batches keep look-alikes apart where there are
enough of these batches; where they meet, equal captions are no negatives (`training.losses`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clip_finetuning.loading.batch_sampler import choose, deal, plan_size, product_codes
from clip_finetuning.loading.labels import NONE, Labels
from clip_finetuning.loading.seeds import generator


class Alike(NamedTuple):
    """Which of N samples are of one category, and which are never to meet in its batches; numbers from 0, int64 (N,)."""

    products: np.ndarray
    category: np.ndarray  # NONE where there is none
    captions: np.ndarray  # equal for those of one product, of captions of the same words, and whatever these join
    attributes: np.ndarray  # likewise, of the same attributes of one category too


class Plan(NamedTuple):
    """The batches of an epoch."""

    batches: np.ndarray  # int64 (batches, batch size), the numbers of samples
    of_category: np.ndarray  # bool (batches,): whether it is of one


def alike_of(products: np.ndarray, labels: Labels) -> Alike:
    """What is alike among samples of these products (N,)."""
    codes = product_codes(products)
    captions = joined(codes, _numbered(labels.caption))
    kinds = np.stack([labels.category, labels.attributes], axis=1)
    kind = np.unique(kinds, axis=0, return_inverse=True)[1].reshape(-1)
    own = len(products) + np.arange(len(products))  # a sample without attributes is like no other
    kind = np.where((labels.attributes == 0) | (labels.category == NONE), own, kind)
    return Alike(codes, labels.category, captions, joined(captions, _numbered(kind)))


def joined(groups: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The numbers (N,) of what samples are together that share a number in `groups` or in `others`, or are joined by further ones."""
    label, before = groups.astype(np.int64), None
    while before is None or (label != before).any():
        before = label
        lowest = np.full(others.max(initial=-1) + 1, len(label), dtype=np.int64)
        np.minimum.at(lowest, others, label)
        goes_to = np.arange(groups.max(initial=-1) + 1)
        np.minimum.at(goes_to, label, lowest[others])
        while (goes_to[goes_to] != goes_to).any():  # to the end of a chain, however long
            goes_to = goes_to[goes_to]
        label = goes_to[label]
    return _numbered(label)


def _numbered(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)


def plan_epoch(alike: Alike, batch_size: int, seed: int, epoch: int, views: str = "all") -> Plan:
    """The batches of one epoch: as many, as large and of the same samples as those of `batch_sampler.plan_epoch`."""
    batches, batch_size = plan_size(alike.products, batch_size, views)
    if not batches:
        return Plan(np.empty((0, 0), dtype=np.int64), np.empty(0, dtype=bool))
    random = generator(seed, epoch)
    chosen = choose(alike.products, batches, batch_size, views, random)
    rows = np.concatenate(
        [
            np.empty((0, batch_size), dtype=np.int64),
            *(_of_category(members, alike, batch_size, random) for members in _by_category(alike.category, chosen)),
        ]
    )
    random.shuffle(rows)
    # What is left over makes full batches, if no product has more samples there than there are of these.
    dissolved = 0
    while True:
        kept = rows[: len(rows) - dissolved]
        is_left = np.ones(len(alike.products), dtype=bool)
        is_left[kept] = False
        rest, mixed = chosen[is_left[chosen]], batches - len(kept)
        if np.bincount(alike.products[rest]).max(initial=0) <= mixed:
            break
        dissolved = min(2 * dissolved + 1, len(rows))
    plan = np.concatenate([kept, _mixed(rest, alike, mixed, batch_size, random)])
    order = random.permutation(batches)
    return Plan(plan[order], (np.arange(batches) < len(kept))[order])


def description(plan: Plan, alike: Alike, names: Sequence[str]) -> str:
    """In words: how many batches of an epoch are of one category, and what the others are made of."""
    count, total = int(plan.of_category.sum()), len(plan.of_category)
    filled = set(alike.category[plan.batches[plan.of_category]].ravel().tolist())
    without = int((alike.category == NONE).sum())
    small = len(names) - len(filled)
    others = [f"what is left over of {_counted(len(filled), 'category', 'categories')}"] if filled else []
    others += [f"{_counted(small, 'category that fills', 'categories that fill')} none"] if small else []
    others += [f"{_counted(without, 'sample', 'samples')} without a category"] if without else []
    mixed = f", the others mix {' and '.join(others)}" if count < total else ""
    return f"in the first one {count:,} of one category{mixed}"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _by_category(category: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """The samples of each category among those chosen."""
    named = chosen[category[chosen] != NONE]
    named = named[np.argsort(category[named], kind="stable")]
    return np.split(named, np.flatnonzero(np.diff(category[named])) + 1)


def _of_category(members: np.ndarray, alike: Alike, batch_size: int, random: np.random.Generator) -> np.ndarray:
    """As many batches (b, batch size) as the samples of a category make, without two that are alike in one of them."""
    if len(members) < batch_size:
        return np.empty((0, batch_size), dtype=np.int64)
    by_caption, by_attributes = _numbered(alike.captions[members]), _numbered(alike.attributes[members])
    size, strict_size = plan_size(by_caption, batch_size), plan_size(by_attributes, batch_size)
    codes = by_attributes if size == strict_size else by_caption
    if size[1] < batch_size:  # not as many that differ
        return np.empty((0, batch_size), dtype=np.int64)
    order = choose(codes, size[0], batch_size, "all", random)
    return members[deal(order, codes[order], size[0], batch_size, random)]


def _mixed(rest: np.ndarray, alike: Alike, batches: int, batch_size: int, random: np.random.Generator) -> np.ndarray:
    """All of these samples as batches (batches, batch size), no two of a product in one; nor look-alikes, if there is room for that."""
    if not batches:
        return np.empty((0, batch_size), dtype=np.int64)
    codes = _numbered(alike.captions[rest])
    if np.bincount(codes).max() > batches:
        codes = _numbered(alike.products[rest])
    order = choose(codes, batches, batch_size, "all", random)
    return rest[deal(order, codes[order], batches, batch_size, random)]
