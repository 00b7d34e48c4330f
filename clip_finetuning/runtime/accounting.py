"""What went in equals what came out plus what was counted by reason: the counting, once over all processes."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping


def count_lost(losses: Iterable[Mapping[Hashable, tuple[int, str]]]) -> Counter[str]:
    """How many samples are lost, by reason, over the `lost` of the loaders of all processes: each once.

    A `lost` is {what is counted once: (samples, reason)}.
    """
    together: dict[Hashable, tuple[int, str]] = {}
    for lost in losses:
        for of, (count, reason) in lost.items():
            together[of] = max(together.get(of, (0, "")), (count, reason))
    counts: Counter[str] = Counter()
    for count, reason in together.values():
        counts[reason] += count
    return counts
