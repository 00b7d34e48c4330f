"""What went in equals what came out plus what was counted by reason, once over all processes."""

import collections
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from clip_finetuning.runtime.text import printable

NAMED = 5  # entries that are named for each reason
MOST_VIEWS = 8  # of a product that is shown from all sides; one with more is looked at
log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """Samples that cannot be used: how many (at least), why, and where.

    `of` is what they are counted under: the same for the same sample or shard in every epoch, worker and process.
    """

    count: int
    reason: str
    where: str
    of: Hashable

    def __str__(self) -> str:
        return f"{printable(self.where)}: {self.reason}, {self.count} sample{'' if self.count == 1 else 's'} lost"


class Guessed(NamedTuple):
    """What is used although something about it had to be guessed: how many, what, and where; `of` as in Skipped."""

    count: int
    reason: str
    where: str
    of: Hashable

    def __str__(self) -> str:
        return f"{printable(self.where)}: {self.reason}"


class Account:
    """Entries of one kind, each counted once; the first few of each reason are logged by name."""

    def __init__(self) -> None:
        self.counted: dict[Hashable, tuple[int, str]] = {}  # what is counted once: (samples, reason)
        self._named: collections.Counter[str] = collections.Counter()

    def note(self, entries: Iterable[Skipped | Guessed], aloud: bool = True) -> None:
        """Count them, and log those that are new where `aloud`."""
        for entry in entries:
            if entry.of in self.counted and entry.count <= self.counted[entry.of][0]:
                continue
            self.counted[entry.of] = (entry.count, entry.reason)
            self._named[entry.reason] += aloud
            if aloud and self._named[entry.reason] <= NAMED:
                more = " (further ones are only counted)" if self._named[entry.reason] == NAMED else ""
                log.warning("%s%s", entry, more)


def count_lost(accounts: Iterable[Mapping[Hashable, tuple[int, str]]]) -> collections.Counter[str]:
    """How many samples are lost, by reason, over the `lost` of the loaders of all processes: each once."""
    together: dict[Hashable, tuple[int, str]] = {}
    for counted in accounts:
        for of, (count, reason) in counted.items():
            together[of] = max(together.get(of, (0, "")), (count, reason))
    counts: collections.Counter[str] = collections.Counter()
    for count, reason in together.values():
        counts[reason] += count
    return counts


def reason_of(error: BaseException) -> str:
    """One of a few wordings, for counting."""
    return getattr(error, "reason", type(error).__name__)


def majority_warning(products: Sequence[Any]) -> str | None:
    """A warning if one product holds most samples, else None; `products`: the id or number of each sample's product.

    Its samples are no negatives of each other, so hardly anything is left to be told apart: a random model finds them.
    """
    product, count = next(iter(collections.Counter(products).most_common(1)), ("", 0))
    return majority_message(product, count, len(products))


def majority_message(product: Any, count: int, total: int) -> str | None:
    """The same for the product that holds most samples, `count` of them; only a product's id is named."""
    if count <= MOST_VIEWS or 2 * count <= total:
        return None
    name = f" ({product[:40]!r})" if isinstance(product, str) else ""
    return (
        f"one product{name} holds {count:,} of {total:,} samples, so most of them are no negatives of each other: "
        "does product_id in the shards name products?"
    )
