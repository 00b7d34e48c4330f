"""Tables that people open in a spreadsheet, and what comes back from there: CSV in which no cell is a formula."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clip_finetuning.runtime.text import decoded

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula at the start of a cell
DELIMITERS = (",", ";", "\t")  # Excel's own depends on the country


def written(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as text with a byte order mark, by which a spreadsheet knows UTF-8."""
    text = io.StringIO()
    text.write("\ufeff")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def cell(value: object) -> object:
    """A value as it is written: a text that would be a formula begins with `'`."""
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(FORMULA) else value


def read(path: str | os.PathLike, needed: Sequence[str], what: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: value}) of each row of a table with a header, with whichever delimiter and encoding it came back.

    Column names are in lower case. Raises FileNotFoundError, and ValueError for a file that lacks columns or is no table;
    both say `what` it should be.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; it takes {what}") from None
    text = data.decode("utf-16", "replace") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else decoded(data)
    text = text.removeprefix("\ufeff")
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count))
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in needed if name not in names]:
            raise ValueError(f"{path} lacks the column {', '.join(missing)}; it takes {what}")
        for row in reader:
            if any(row):
                yield reader.line_num, dict(zip(names, map(_value, [*row, *[""] * (len(names) - len(row))])))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} is no row of a table ({error}); it takes {what}") from error


def _value(text: str) -> str:
    is_guarded = text.startswith("'") and text.lstrip("'").startswith(FORMULA)
    return text[1:] if is_guarded else text
