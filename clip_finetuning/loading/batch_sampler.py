"""Which samples make which batch of an epoch: integers only, a function of (products, batch size, seed, epoch, views).

No batch holds two samples of one product, every batch is full, and samples spread as in a full shuffle.
"""

import numpy as np

from clip_finetuning.loading.seeds import generator

# Checkpoints hold it: a plan of another number may be another one. 1 left out products of few views more often than
# others where `views="random"` and an epoch leaves a remainder.
ORDER = 2


def product_codes(products: np.ndarray) -> np.ndarray:
    """The products (N,) numbered 0, 1, ... in their order; those that are such numbers already stay, which costs no sort."""
    if len(products) and products.min() >= 0 and products.max() < len(products) and np.bincount(products).all():
        return products
    return np.unique(products, return_inverse=True)[1].astype(np.int32 if len(products) < 2**31 else np.int64)


def plan_size(products: np.ndarray, batch_size: int, views: str = "all") -> tuple[int, int]:
    """(batches, samples a batch) of an epoch over samples of these products (N,).

    A batch cannot hold more samples than there are products, and a product gives each batch at most one sample.
    """
    views_of_product = np.bincount(product_codes(products))
    if views == "random":
        views_of_product = np.ones_like(views_of_product)
    batch_size = min(batch_size, len(views_of_product))
    if not batch_size:
        return 0, 0
    batches = views_of_product.sum() // batch_size
    while (fewer := np.minimum(views_of_product, batches).sum() // batch_size) < batches:
        batches = fewer
    return int(batches), batch_size


def plan_epoch(products: np.ndarray, batch_size: int, seed: int, epoch: int, views: str = "all") -> np.ndarray:
    """Sample numbers (batches, batch size) of one epoch; `products` (N,) int64 are equal iff the product is the same.

    Samples left over by full batches are drawn anew each epoch, all alike. `views="random"` takes one sample of each
    product; there the products left over are drawn, all alike.
    """
    codes = product_codes(products)
    batches, batch_size = plan_size(codes, batch_size, views)
    if not batches:
        return np.empty((0, 0), dtype=np.int64)
    random = generator(seed, epoch)
    order = random.permutation(len(codes))
    rank_of_product = random.permutation(codes.max() + 1)
    # The walk in which a sample is passed over only if its product has one in every batch already, or has one at all.
    most = 1 if views == "random" else batches
    if np.bincount(codes).max() > most:
        order = order[_occurrence(codes[order]) < most]
    if views != "random":
        order = order[: batches * batch_size]
    order = order[_stable_order(rank_of_product[codes[order]])]  # a product's samples side by side
    # Which products are left out is decided here, by their rank: the first views come the earlier the more there are.
    order = order[: batches * batch_size]
    return _deal(order, codes[order], batches, batch_size, random)


def _occurrence(codes):
    """How many equal codes stand before each of them."""
    grouped = _stable_order(codes)
    starts = np.flatnonzero(np.r_[True, np.diff(codes[grouped]) != 0])
    run_lengths = np.diff(np.r_[starts, len(codes)])
    occurrence = np.empty(len(codes), dtype=np.int64)
    occurrence[grouped] = np.arange(len(codes)) - np.repeat(starts, run_lengths)
    return occurrence


def _stable_order(codes):
    """argsort(kind="stable") of whole numbers from 0 to 2**31; one sort of pairs takes a fifth of its time."""
    return np.sort(codes.astype(np.int64) << 32 | np.arange(len(codes))) & 0xFFFFFFFF


def _deal(cards, codes, batches, batch_size, random):
    """Deal the cards (equal codes side by side, none more often than `batches`) like a pack, round after round.

    Each round gives every batch one card, in a random order of the batches. Equal codes meet in a batch only if they
    straddle two rounds, and there the later round keeps clear of the batches that the earlier one gave them to.
    """
    batch_of_card = random.permuted(np.tile(np.arange(batches), (batch_size, 1)), axis=1)  # (rounds, batches)
    codes = codes.reshape(batch_size, batches)
    for this_round in np.flatnonzero(codes[1:, 0] == codes[:-1, -1]) + 1:
        code, before, now = codes[this_round, 0], batch_of_card[this_round - 1], batch_of_card[this_round]
        taken = np.zeros(batches, dtype=bool)
        taken[before[codes[this_round - 1] == code]] = True
        width = np.searchsorted(codes[this_round] != code, True)  # its cards open this round
        clashes = np.flatnonzero(taken[now[:width]])
        free = width + np.flatnonzero(~taken[now[width:]])
        swapped = random.choice(free, len(clashes), replace=False)
        now[clashes], now[swapped] = now[swapped], now[clashes]
    plan = np.empty((batches, batch_size), dtype=cards.dtype)
    plan[batch_of_card, np.arange(batch_size)[:, None]] = cards.reshape(batch_size, batches)
    return plan


def is_planned_alike(order: int, products: np.ndarray, batch_size: int, views: str) -> bool:
    """Whether the plan with this number for ORDER was the same as now."""
    if order == 1 and ORDER == 2:
        batches, batch_size = plan_size(products, batch_size, views)
        return views != "random" or batches * batch_size == len(np.unique(products))
    return order == ORDER
