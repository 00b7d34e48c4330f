"""What a data set can show, and how large a difference is: power and effect sizes of comparisons paired over products."""

from typing import NamedTuple

import numpy as np

from clip_finetuning.retrieval import intervals

POWER, POWER_Z = 0.8, 0.841621  # 80 % of a normal distribution lie below
CORRELATION = 0.5  # between two models' hits of a product, assumed where there is one result alone
ROUNDS = 60  # of the fixed point, which shrinks by half a round at least


def smallest_difference(
    sums: np.ndarray, counts: np.ndarray, least_effect: float = 1.0, correlation: float = CORRELATION
) -> float:
    """The smallest true difference of two models that a comparison calls better or worse in 80 % of all cases.

    From the numbers of one model, (P,) sums and (P,) queries by product: by how much another's share must differ. Sample
    size formula for paired proportions (Miettinen 1968; Connor 1987) solved for the difference d,
    d = (z_.975 + z_.80) sqrt(var / n), where n is the effective number of queries (see `intervals.share_interval`) and var
    that of a query's gain if the two models' hits have the given correlation: uncorrelated models need up to 1.4 times d.
    The other share is taken towards 1/2, where a difference is harder to see. The pseudo-pairs of
    `intervals.gain_interval`, which gives the verdict, are in it.
    """
    size = counts.sum() / intervals.design_effect(sums, counts, least_effect)
    share = float(np.clip(sums.sum() / counts.sum(), 0, 1))
    spread, difference = share * (1 - share), 0.25
    for _ in range(ROUNDS):
        other = share + (difference if share < 0.5 else -difference)
        other_spread = max(0.0, other * (1 - other))
        variance = spread + other_spread - 2 * correlation * np.sqrt(spread * other_spread)
        found = (intervals.Z + POWER_Z) * np.sqrt(size * variance + 1) / size
        difference = min(1.0, (difference + found) / 2)
    return float(difference)


def smallest_gain(gains: np.ndarray, counts: np.ndarray) -> float:
    """The same of two models that were compared, (P,) sums of B - A by product: the discordance is a measured one."""
    size = (counts**2).sum() / counts.sum()
    mean = gains.sum() / counts.sum()
    spread = ((gains - mean * counts) ** 2).sum() + size**2
    return min(1.0, float((intervals.Z + POWER_Z) * np.sqrt(spread) / counts.sum()))


class Effect(NamedTuple):
    """How large a difference is, whatever the size of the data set."""

    gained: int  # products of which more queries hit than before
    lost: int  # products of which fewer do
    odds: float  # gained to lost, half a product added to each (Haldane 1956; Anscombe 1956): McNemar's odds ratio
    h: float  # Cohen's (1988), of the two shares

    @property
    def size(self) -> str:
        """Cohen's word for `h`."""
        return next(
            word
            for word, least in (("large", 0.8), ("medium", 0.5), ("small", 0.2), ("tiny", 0))
            if abs(self.h) >= least
        )


def effect(gains: np.ndarray, before: float, after: float) -> Effect:
    """The effect sizes of a paired difference: (P,) sums of B - A by product, the two shares."""
    gained, lost = int((gains > 0).sum()), int((gains < 0).sum())
    angles = 2 * np.arcsin(np.sqrt(np.clip([before, after], 0, 1)))
    return Effect(gained, lost, (gained + 0.5) / (lost + 0.5), float(angles[1] - angles[0]))
