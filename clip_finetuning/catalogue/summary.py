"""What was read of a catalogue, in a few lines: counts, and what was skipped for which reason."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from clip_finetuning.catalogue.rows import Row, Skipped, is_caption_id
from clip_finetuning.runtime.text import printable

EXAMPLES = 3  # skipped ones shown for each reason


def skipped_lines(skipped: Mapping[str, Sequence[str]]) -> list[str]:
    """A line a reason of {reason: names of what was skipped}."""
    return [skipped_line(reason, len(names), names) for reason, names in sorted(skipped.items())]


def skipped_line(reason: str, count: int, names: Sequence[str]) -> str:
    """How many were skipped for a reason, and the first of them."""
    more = ", ..." if count > EXAMPLES else ""
    return printable(f"skipped {count:,}: {reason} ({', '.join(names[:EXAMPLES])}{more})")


class Summary:
    """Counts of a catalogue, gathered row by row."""

    def __init__(self) -> None:
        self.images = 0
        self.views: Counter[str] = Counter()  # product id -> images
        self.categories: Counter[str] = Counter()
        self.caption_words: Counter[int] = Counter()  # number of words -> captions
        self.skipped: Counter[str] = Counter()  # reason -> rows
        self.examples: dict[str, list[str]] = {}  # reason -> names of the first such rows
        self.remarks: list[str] = []  # what was guessed

    def add(self, row: Row | Skipped) -> None:
        """Count a Row or a Skipped."""
        if isinstance(row, Skipped):
            self.skipped[row.reason] += 1
            examples = self.examples.setdefault(row.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(row.name)
            return
        self.images += 1
        self.views[row.product_id] += 1
        self.categories[row.category] += 1
        self.caption_words[len(row.captions[0].split())] += 1

    def __str__(self) -> str:
        words = sorted(self.caption_words.elements())
        views = sorted(Counter(self.views.values()).items())
        lines = [
            f"{self.images:,} images, {len(self.views):,} products, {len(self.categories):,} categories",
            "  views per product: " + ", ".join(f"{n} ({count:,} products)" for n, count in views),
            f"  caption length: {words[0]} to {words[-1]} words, median {statistics.median(words):g}",
        ]
        without_id = sum(count for product_id, count in self.views.items() if is_caption_id(product_id))
        if without_id:
            lines.append(f"  {without_id:,} images have no product id: equal captions are one product")
        for reason, count in sorted(self.skipped.items()):
            lines.append(f"  {skipped_line(reason, count, self.examples[reason])}")
        lines += [f"  {printable(remark)}" for remark in self.remarks]
        return "\n".join(lines)
