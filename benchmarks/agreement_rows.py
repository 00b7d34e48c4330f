"""One number of ours beside one of theirs: may they differ, by how much, and how it is printed."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from peers import Numbers

from clip_finetuning.retrieval.names import title

CLOSE = 1e-6
Both = dict[str, Numbers]  # the numbers of the two directions


class Row(NamedTuple):
    """One number of ours beside one of theirs."""

    data: str
    peer: str
    protocol: str
    measure: str
    ours: float
    theirs: float
    rule: str = ""  # why they need not be equal
    allowed: tuple[float, float] = (-CLOSE, CLOSE)  # of theirs - ours

    def is_right(self) -> bool:
        """Whether the difference is one that may be."""
        return self.allowed[0] <= self.theirs - self.ours <= self.allowed[1]

    def verdict(self) -> str:
        """In words."""
        if not self.is_right():
            return f"DISAGREES ({self.rule})" if self.rule else "DISAGREES"
        return "agrees to 1e-6" if abs(self.theirs - self.ours) <= CLOSE else self.rule


def compare(data: str, peer: str, protocol: str, ours: Both, theirs: Both, **how) -> Iterable[Row]:
    """A row for each of their numbers."""
    for way, numbers in theirs.items():
        for name, value in numbers.items():
            yield Row(data, peer, protocol, f"{title(way)} {name}", ours[way][name], value, **how)


def apart(rule: str, share: float = math.inf) -> dict:
    """How to compare numbers that `rule` keeps apart, by that share at most."""
    return {"rule": rule, "allowed": (-share - CLOSE, share + CLOSE)}


def print_row(row: Row, before: Row | None) -> None:
    """One line, under a heading where the data change."""
    if before is None or before.data != row.data:
        print(f"\n{row.data}\n{'peer':52}{'protocol':12}{'measure':32}{'ours':>11}{'theirs':>11}{'difference':>12}")
    print(
        f"{row.peer:52}{row.protocol:12}{row.measure:32}{row.ours:11.7f}{row.theirs:11.7f}{row.theirs - row.ours:12.1e}"
        f"  {row.verdict()}",
        flush=True,
    )


def print_summary(rows: list[Row]) -> None:
    """A line for each peer and data: how many numbers, the largest difference, what keeps the others apart."""
    print(f"\n{'data':30}{'peer':52}{'numbers':>8}{'agree':>7}{'largest':>10}  the others")
    for (data, peer), group in itertools.groupby(sorted(rows, key=lambda row: row[:2]), key=lambda row: row[:2]):
        group = list(group)
        agree = [abs(row.theirs - row.ours) for row in group if abs(row.theirs - row.ours) <= CLOSE]
        others = sorted({row.verdict() for row in group} - {"agrees to 1e-6"})
        print(f"{data:30}{peer:52}{len(group):8}{len(agree):7}{max(agree, default=0):10.1e}  {'; '.join(others)}")
    wrong = sum(not row.is_right() for row in rows)
    print(f"\n{len(rows)} numbers compared, {wrong} disagree that should not")
