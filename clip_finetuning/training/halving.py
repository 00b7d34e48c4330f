"""Successive halving of learning rates: how long a pilot is, which ones go on, and what is said of them.

Every rate trains the same first steps, the better half goes on from there, until one is left (Jamieson and Talwalkar 2016,
arXiv:1502.07943). A pilot is the training with fewer steps: its warmup keeps its share of them, and its schedule falls to
its end. So the last two are compared after a whole short run; those before them half-way, at one point of the schedule.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PART = 10  # a round is the tenth part of the training
SHORTEST, LONGEST = 20, 200  # steps of a round
NOT_FINITE, BELOW_START, NO_BETTER_THAN_GUESSING = "not finite", "below start", "at guessing"
NEAR = 0.999  # of the loss of guessing: a model that maps everything to one point has that loss, give or take rounding

Difference = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[float, list[float]] | None]


@dataclass(frozen=True)
class Halving:
    """How the pilots of some rates go: in rounds of as many steps each."""

    rates: tuple[float, ...]
    round_steps: int

    @property
    def running(self) -> list[int]:
        """How many pilots each round has."""
        numbers = [len(self.rates)]
        while numbers[-1] > 2:
            numbers.append(math.ceil(numbers[-1] / 2))
        return numbers

    @property
    def pilot_steps(self) -> int:
        """Steps of a pilot that stays to the end: of these its schedule is."""
        return self.round_steps * len(self.running)

    @property
    def all_steps(self) -> int:
        """Steps of all pilots together."""
        return self.round_steps * sum(self.running)


@dataclass(frozen=True)
class Outcome:
    """What a pilot came to by the end of a round; numbers that were not measured, or are not finite, are None."""

    step: int
    loss: float | None  # mean of the second half of the round, as logged
    score: float | None = None  # what is compared; None: there are no validation shards
    gain: float | None = None  # change of the mean Recall@10 on the validation shards against the start
    interval: Sequence[float] | None = None  # its paired 95 % interval
    retention: float | None = None  # change of the mean Recall@10 on the retention shards
    trouble: str = ""  # how it diverged; empty: it did not
    by_product: Mapping[str, Any] | None = None  # the evaluation, to compare it with another pilot's

    @property
    def shows_nothing(self) -> bool:
        """Whether neither the loss nor the recall tell that anything was learnt: collapsed, or too slow to see."""
        return self.trouble == NO_BETTER_THAN_GUESSING and (self.interval is None or self.interval[0] <= 0)

    def rank(self, rate: float) -> tuple[int, float, float, float]:
        """What pilots are sorted by, the best first: by score, then by loss; of equals the lower rate is better.

        Behind these come pilots that show nothing, the lower rate first, since what collapsed does not recover; then those
        that ended below the start, then those that are not finite.
        """
        group = {BELOW_START: 2, NOT_FINITE: 3}.get(self.trouble, int(self.shows_nothing))
        if self.shows_nothing:
            return group, 0.0, 0.0, rate
        return group, -(self.score or 0.0), math.inf if self.loss is None else self.loss, rate


def rate(text: str) -> float:
    """The type of a rate on the command line."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no learning rate: it takes numbers > 0 with blanks between them, such as 3e-6 1e-5 3e-5"
        ) from None


def complaints(
    rates: Sequence[float] | None, dry_run: bool, learning_rate: float | None, resume: str = "none"
) -> list[str]:
    """What is wrong with `--try-rates`, a sentence each; LEARNING_RATE and RESUME are the knobs' values."""
    if rates is None:
        return ["--dry-run ends what --try-rates begins: add --try-rates with two rates or more"] if dry_run else []
    found, known = [], " ".join(f"{rate:g}" for rate in rates)
    if len(rates) < 2:
        found.append(
            f"--try-rates {known} leaves nothing to compare: give two rates or more, or --learning-rate {known}"
        )
    if bad := [rate for rate in rates if not (rate > 0 and math.isfinite(rate))]:
        found.append(f"--try-rates {bad[0]:g} is no learning rate: it takes numbers > 0")
    if equal := [rate for rate in dict.fromkeys(rates) if rates.count(rate) > 1]:
        found.append(f"--try-rates has {equal[0]:g} more than once: give each rate once")
    if learning_rate is not None:
        found.append(
            f"--try-rates is to find what LEARNING_RATE={learning_rate:g} says: leave out one of the two "
            "(--learning-rate none unsets what settings.py or the environment says)"
        )
    if resume not in ("none", "auto"):
        found.append(f"--try-rates comes before a run, --resume={resume} goes on with one: leave out one of the two")
    return found


def planned(rates: Sequence[float], total_steps: int) -> Halving:
    """Pilots for a training of so many steps: none is longer than that."""
    rounds = len(Halving(tuple(rates), 1).running)
    steps = min(max(total_steps // PART, SHORTEST), LONGEST, max(1, total_steps // rounds))
    return Halving(tuple(rates), steps)


def trouble(outcome: Outcome, guessing: float) -> str:
    """How a pilot diverged, or nothing; `guessing` is the loss that guessing gives."""
    if outcome.loss is None:
        return NOT_FINITE
    if outcome.interval is not None and outcome.interval[1] < 0:
        return BELOW_START
    return NO_BETTER_THAN_GUESSING if outcome.loss >= NEAR * guessing else ""


def better_half(outcomes: Mapping[float, Outcome]) -> list[float]:
    """The rates that go on after a round, the best first: half of them, or as many as have finite weights."""
    ranked = sorted(outcomes, key=lambda rate: outcomes[rate].rank(rate))
    finite = [rate for rate in ranked if outcomes[rate].trouble != NOT_FINITE]
    return finite[: math.ceil(len(ranked) / 2)]


def nothing_finite(rates: Sequence[float]) -> str:
    """What to say where `better_half` is nothing."""
    return f"with none of the rates the loss stays finite: try lower ones, such as {_lower(rates)}"


def check(best: float, outcome: Outcome, rates: Sequence[float]) -> None:
    """ValueError if even the best rate makes the model worse, by more than chance."""
    if outcome.trouble == BELOW_START:
        raise ValueError(
            f"even the best rate, {best:g}, ends below the start ({_gain(outcome)}): try lower ones, such as {_lower(rates)}"
        )


def _lower(rates):
    lowest = min(rates)
    return f"--try-rates {lowest / 100:.0e} {lowest / 30:.0e} {lowest / 10:.0e}"


def remarks(
    best: float, outcomes: Mapping[float, Outcome], rates: Sequence[float], difference: Difference
) -> list[str]:
    """What one should know of a choice, a sentence each; `outcomes`: those of the last round."""
    found, outcome = [], outcomes[best]
    others = sorted((rate for rate in outcomes if rate != best), key=lambda rate: outcomes[rate].rank(rate))
    next_best = outcomes[others[0]] if others else outcome
    if outcome.by_product and next_best is not outcome and next_best.by_product:
        compared = difference(next_best.by_product, outcome.by_product)
        if compared is not None and compared[1][0] <= 0:
            gain, (low, high) = compared
            found.append(
                f"{best:g} is not better than {others[0]:g} beyond chance ({gain:+.4f} [{low:+.4f}, {high:+.4f}]): more "
                "validation products, or a longer training, would tell them apart"
            )
    at_guessing = outcome.trouble == NO_BETTER_THAN_GUESSING
    if best == max(rates) or (best == min(rates) and not at_guessing):
        what, word = ("highest", "higher") if best == max(rates) else ("lowest", "lower")
        found.append(f"{best:g} is the {what} of the rates: a {word} one may be better still")
    if at_guessing:
        found.append(f"the loss of {best:g} is no better than that of guessing after {outcome.step} steps")
    return found


def table(outcomes: Mapping[float, Outcome], on: Sequence[float], rates: Sequence[float]) -> list[str]:
    """The lines of a round, at most 80 columns; `on`: the rates that go on, in the order of which they are shown."""
    chosen = "best" if len(on) == 1 else "goes on"
    columns = [
        ("rate", [f"{rate:g}" for rate in rates]),
        ("loss", [_number(outcomes[rate].loss, "7.4f") for rate in rates]),
        ("gain [95 %]", [_gain(outcomes[rate]) for rate in rates]),
        ("retention", [_number(outcomes[rate].retention, "+.4f") for rate in rates]),
        ("diverged", [outcomes[rate].trouble or "no" for rate in rates]),
        ("", [chosen if rate in on else "stops" for rate in rates]),
    ]
    shown = [(name, cells) for name, cells in columns if set(cells) != {"-"}]
    widths = [max(map(len, (name, *cells))) for name, cells in shown]
    rows = zip(*([name, *cells] for name, cells in shown))
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _number(value, form):
    return "-" if value is None else format(value, form).strip()


def _gain(outcome):
    if outcome.gain is None:
        return "-"
    if outcome.interval is None:
        return f"{outcome.gain:+.4f}"
    low, high = outcome.interval
    return f"{outcome.gain:+.4f} [{low:+.4f}, {high:+.4f}]"
