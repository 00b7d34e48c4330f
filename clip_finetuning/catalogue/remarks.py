"""What was made of rows that are used though something had to be guessed, replaced or left out: counted, and said."""

from clip_finetuning.runtime.text import printable

SHOWN = 60  # characters of an example


class Remarks:
    """Counts by remark, each with the first example. A remark reads on from a number: "12 rows are ..."."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        self._notes: dict[str, None] = {}

    def count(self, remark: str, example: str = "") -> None:
        """One more row of which the remark is true."""
        self._counts[remark] = self._counts.get(remark, 0) + 1
        self._examples.setdefault(remark, example)

    def note(self, text: str) -> None:
        """A line that holds for the whole file; the same one is said once."""
        self._notes[text] = None

    def lines(self) -> list[str]:
        """The notes, then a line a remark: how many rows, and an example."""
        counted = [f"{count:,} rows {remark}{_shown(self._examples[remark])}" for remark, count in self._counts.items()]
        return [printable(line) for line in [*self._notes, *counted]]


def _shown(example):
    short = " ".join(example.split())
    return f" ({short if len(short) <= SHOWN else short[:SHOWN] + '...'})" if short else ""
