"""What a catalogue says of a product by name - colour, material ... - beside its category: kept where it is asked for.

Products that agree in all of it are hardly told apart by a caption, which is what an evaluation wants to know.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from clip_finetuning.catalogue.rows import Attributes, Row, Skipped, Source
from clip_finetuning.runtime.text import printable


def with_text(pairs: Iterable[tuple[str, str]]) -> Attributes:
    """Those (name, value) of which the value is not blank."""
    return tuple((name, value) for name, value in pairs if value)


def counted(source: Source, names: Sequence[str]) -> Source:
    """The same rows; its remarks say how many of them lack each of the attributes that were asked for."""
    if not names:
        return source
    lacking: Counter[str] = Counter()
    first: dict[str, str] = {}

    def rows() -> Iterator[Row | Skipped]:
        for row in source.rows:
            if isinstance(row, Row):
                said = dict(row.attributes)
                for name in names:
                    if name not in said:
                        lacking[name] += 1
                        first.setdefault(name, row.image_path)
            yield row

    def remarks() -> list[str]:
        lines = [
            f"{lacking[name]:,} images have no {name}, an attribute ({first[name]})" for name in names if lacking[name]
        ]
        return [*source.remarks(), *map(printable, lines)]

    return Source(source.name, source.total, rows(), remarks)
