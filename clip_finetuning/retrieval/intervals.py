"""How sure a number is: 95 % intervals of shares, of differences and of ranks, and what is worse by more than chance.

What is drawn, or counted, are products, not queries: the views of one product stand or fall together.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 1000  # of a bootstrap
Z = 1.959964  # 95 % of a normal distribution lie within
MEDIANS_TRIED = 64  # values among which the medians of resamples are looked for at a time
KEPT_BYTES = range(2**20, 100 * 2**20)  # of a bootstrap's draws that are kept for the next number: fewer are soon made
FLIP_STEPS = 60  # how finely `change_p_value` tells gains apart: products have 1 to 6 views


def product_sums(
    values: dict[str, np.ndarray], products: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Sums of per-query values and numbers of queries by product: {name: (P,)}, (P,) counts, (P,) the products."""
    unique, codes = np.unique(products, return_inverse=True)
    sums = {name: np.bincount(codes, column, len(unique)) for name, column in values.items()}
    return sums, np.bincount(codes, minlength=len(unique)), unique


def share_interval(sums: np.ndarray, counts: np.ndarray, least_effect: float = 0.0) -> list[float]:
    """95 % interval of a mean of values between 0 and 1, given by product: (P,) sums, (P,) queries -> [low, high].

    Agresti and Coull's (1998) for the effective number of queries: their number by the design effect (Korn and Graubard
    1998), which says how far the views of a product stand or fall together. The effect is estimated with two products
    more, one all hits and one all misses: near 0 and 1, where hardly a product tells, views then count as agreeing. A
    bootstrap has width zero there. Hits and misses have an effect of 1 at `least_effect`; finer values can have less.
    """
    effect = design_effect(sums, counts, least_effect)
    effective = counts.sum() / effect
    middle = (sums.sum() / effect + Z**2 / 2) / (effective + Z**2)
    half = Z * np.sqrt(middle * (1 - middle) / (effective + Z**2))
    return [max(0.0, float(middle - half)), min(1.0, float(middle + half))]


def design_effect(sums: np.ndarray, counts: np.ndarray, least_effect: float = 0.0) -> float:
    """By how much fewer queries than there are tell as much as these, which come by product; see `share_interval`."""
    queries, size = counts.sum(), (counts**2).sum() / counts.sum()  # size: of the product that a query belongs to
    smooth = (sums.sum() + size) / (queries + 2 * size)
    spread = ((sums - smooth * counts) ** 2).sum() + size**2 * (smooth**2 + (1 - smooth) ** 2)
    return float(np.clip(spread / (smooth * (1 - smooth) * (queries + 2 * size)), least_effect, size))


def gain_interval(gains: np.ndarray, counts: np.ndarray) -> list[float]:
    """95 % interval of a paired difference of two shares, by product: (P,) sums of B - A, (P,) queries -> [low, high].

    Agresti and Min's (2005), which adds half a pair to each of both hit, only A, only B, both miss; here the pairs are
    products of the usual size, because the views of one stand or fall together. Never of width zero.
    """
    size = (counts**2).sum() / counts.sum()
    total = counts.sum() + 2 * size
    middle = gains.sum() / total
    added = 0.5 * (1 - middle) ** 2 + 0.5 * (1 + middle) ** 2 + middle**2
    half = Z * np.sqrt(((gains - middle * counts) ** 2).sum() + size**2 * added) / total
    return [max(-1.0, float(middle - half)), min(1.0, float(middle + half))]


def change_p_value(gains: np.ndarray) -> float:
    """How often equally good models differ at least as much by chance, either way: gains (P,) by product -> p.

    The sign-flip test (Fisher 1935): if it makes no difference which model is which, each product's gain could as well
    have the other sign. Exact for any number of products, with gains rounded to 1/60 of the largest; the distribution of
    the sum over all signs comes from its Fourier transform, a product of cosines.
    """
    largest = np.abs(gains).max(initial=0)
    if largest == 0:
        return 1.0
    steps = np.round(gains * (FLIP_STEPS / largest)).astype(np.int64)
    steps //= np.gcd.reduce(steps)
    reach = int(np.abs(steps).sum())  # the sum of the steps lies between -reach and reach
    length = 1 << (2 * reach).bit_length()  # more than that range; a power of two transforms fastest
    wave = np.ones(length // 2 + 1)
    for step, times in zip(*np.unique(np.abs(steps), return_counts=True)):
        wave *= np.cos(2 * np.pi * step / length * np.arange(len(wave))) ** times
    chances = np.fft.irfft(wave, length)  # of the sums 0, 1 ... reach, and -reach ... -1 at the end
    lowest = np.concatenate([chances[-reach:], chances[: reach + 1]])
    # All signs turned are as likely, so the sums at the other end have the same chance.
    return float(np.clip(2 * lowest[: reach + 1 - abs(int(steps.sum()))].sum(), 0, 1))


def corrected(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for how many there are (Holm 1979): (H,) -> (H,).

    Whoever calls those of at most 0.05 no chance has a false alarm in at most 5 % of all such families.
    """
    order = np.argsort(p_values, kind="stable")
    times = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    return np.minimum(np.maximum.accumulate(times), 1.0)[np.argsort(order)]


def bootstrap(
    sums: dict[str, np.ndarray], counts: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """95 % intervals of ratios of sums, products drawn with replacement: {name: (P,)}, (P,) counts >= 1 -> {name: [low, high]}.

    Products, not queries, are drawn, because the views of one product stand or fall together. Percentile bootstrap
    (Efron 1979).
    """
    matrix = np.stack([*sums.values(), counts], axis=1).astype(np.float64)  # (P, metrics + 1)
    drawn = np.concatenate([weights @ matrix for weights in _weights(len(counts), seed, resamples)])
    low, high = np.percentile(drawn[:, :-1] / drawn[:, -1:], [2.5, 97.5], axis=0)
    return {name: [float(a), float(b)] for name, a, b in zip(sums, low, high)}


def bootstrap_median(
    values: np.ndarray, products: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> list[float]:
    """95 % interval of the median of per-query values, products drawn with replacement -> [low, high].

    The median of a resample is the first value up to which lies half of it: looked for among some values at a time, of
    which one product of matrices says for all resamples how much lies up to each.
    """
    unique, codes = np.unique(products, return_inverse=True)
    distinct, place = np.unique(values, return_inverse=True)
    medians = [
        distinct[_median_places(weights, codes, place, len(distinct))]
        for weights in _weights(len(unique), seed, resamples, chunk=500)
    ]
    return [float(value) for value in np.percentile(np.concatenate(medians), [2.5, 97.5])]


def _median_places(weights, codes, place, count):
    """(chunk,) places, among `count` ascending values, of the medians of resamples (chunk, P): codes and place (Q,)."""
    half = (weights @ np.bincount(codes, minlength=weights.shape[1]).astype(np.float32)) / 2
    first, last = 0, count - 1  # where the medians of all of them lie
    while last - first >= MEDIANS_TRIED:
        tried = np.linspace(first, last, MEDIANS_TRIED).astype(np.int64)
        found = _below(weights, half, codes, place, tried)
        narrower = tried[max(found.min() - 1, 0)], tried[found.max()]
        if narrower[1] - narrower[0] > (last - first) // 2:  # they are spread over all of it
            break
        first, last = narrower
    starts = range(first, last + 1, MEDIANS_TRIED)
    pieces = [np.arange(start, min(start + MEDIANS_TRIED, last + 1)) for start in starts]
    return first + np.sum([_below(weights, half, codes, place, tried) for tried in pieces], axis=0)


def _below(weights, half, codes, place, tried):
    """(chunk,) how many of the places that are tried, which ascend, have less than half of a resample up to them."""
    step = np.searchsorted(tried, place)  # the first one tried that is not below each value
    cells = np.bincount(codes * (len(tried) + 1) + step, minlength=weights.shape[1] * (len(tried) + 1))
    up_to = np.cumsum(cells.reshape(-1, len(tried) + 1)[:, :-1], axis=1).astype(np.float32)  # (P, tried)
    return (weights @ up_to < half[:, None]).sum(1)  # whole numbers and halves: float32 is exact


def _weights(count: int, seed: int, resamples: int, chunk: int = 100) -> Iterator[np.ndarray]:
    """How often each of `count` products is drawn, in chunks of (chunk, count) float32."""
    if resamples * count not in KEPT_BYTES:
        yield from _draw(count, seed, resamples, chunk)
        return
    drawn = _drawn(count, seed, resamples)
    for start in range(0, resamples, chunk):
        yield drawn[start : start + chunk].astype(np.float32)


@functools.lru_cache(maxsize=1)
def _drawn(count, seed, resamples):
    """All draws in a byte each, since mean and median have the same; nothing is drawn 256 times."""
    return np.concatenate([part.astype(np.uint8) for part in _draw(count, seed, resamples, 100)])


def _draw(count, seed, resamples, chunk):
    random = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = random.integers(0, count, (size, count))
        drawn += np.arange(size)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float32)
