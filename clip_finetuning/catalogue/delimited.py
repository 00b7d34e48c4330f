"""Rows of a CSV or TSV as people and programs write them: with stray quotes, escapes and missing cells.

A row is what makes the number of cells come out right. Where no reading does, its lines are counted as lost.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from clip_finetuning.catalogue.dialect import Lines, choose_dialect, read_line, read_row
from clip_finetuning.catalogue.encodings import Encoding, find_encoding, open_lines
from clip_finetuning.catalogue.remarks import Remarks

FIRST_LINES = 2_000  # that tell the dialect
EXTENSION = re.compile(r"\.[a-z0-9]{2,5}(?=$|[?#&;,|\"'\s])", re.IGNORECASE)
EXCEL_SEPARATOR = re.compile(r"sep=([^\w\"'\0\r\n])[\r\n]*$", re.IGNORECASE)  # a first line that Excel writes and hides
ESCAPING = re.compile(r"\\[\\\"'\r\n]")
# What databases and spreadsheets export for a missing value, where a cell is nothing else.
NULLS = frozenset(("\\N", "NULL", "N/A", "n/a", "#N/A", "#NULL!", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!"))
STRAY = "have stray or unusual quotes, and were read so that their cells come out right"
FEWER = "have fewer cells than the header; those missing are blank"
ESCAPES = "have backslashes before quotes or backslashes, which are text"
APOSTROPHES = "have a cell in apostrophes, which are text"
UNESCAPED = "had backslashes that escape what follows, and were taken out"
UNBALANCED, WRONG = "inside an unbalanced quote", "wrong number of cells"


def read_delimited(
    path: Path, needed: Sequence[str], remarks: Remarks, given: str | None = None
) -> tuple[list[str], Iterator[tuple[str, dict | str]]]:
    """(the names of a file's columns; (where, {column: cell}) of each row, or the reason why it cannot be read)."""
    encoding = find_encoding(path, given)
    with open_lines(path, encoding) as lines:
        first = [line.text for line in islice(lines, FIRST_LINES)]
    start, separator = _start_of_table(first)
    usual = separator or ("\t" if path.suffix.lower() == ".tsv" else "")
    dialect, names = choose_dialect(first[start:], needed, usual)
    reader = _Reader(path, names, dialect, remarks, needed[0] if needed else None)
    return names, reader.rows(encoding)


def _start_of_table(first):
    """(lines before the header, the delimiter that one of them names)."""
    separator = ""
    for number, line in enumerate(first):
        match = EXCEL_SEPARATOR.match(line) if not separator else None
        separator = match[1] if match else separator
        if not match and line.strip():
            return number, separator
    return len(first), separator


class _Reader:
    """Takes row after row off the lines of a file."""

    def __init__(self, path, names, dialect, remarks, key):
        self.path, self.names, self.remarks = path, names, remarks
        self.variants = dialect.variants()
        self.key = names.index(key) if key in names else None  # the column whose cells all look alike: the picture's
        self.look = None  # of its last cell that was read

    def rows(self, encoding: Encoding) -> Iterator[tuple[str, dict | str]]:
        """(where, {column: cell}) of each row after the header, or the reason why it cannot be read."""
        with open_lines(self.path, encoding) as file:
            lines = Lines(file)
            lines.take(_start_of_table(_peek(lines))[0])
            header = read_row(lines, self.variants[0])
            lines.take(header.lines if header else 0)
            while (line := lines.ahead(0)) is not None:
                if not line.text.strip(" \r\n"):
                    lines.take(1)
                    continue
                where = f"{self.path.name}:{lines.number}"
                reading, problem, remark = self._row(lines)
                taken = lines.take(reading.lines)
                if problem:
                    yield where, problem
                    continue
                cells = dict(zip_longest(self.names, reading.cells[: len(self.names)], fillvalue=""))
                if not NULLS.isdisjoint(reading.cells):
                    cells = {name: "" if cell in NULLS else cell for name, cell in cells.items()}
                if remark:
                    self.remarks.count(remark, f"{where}: {''.join(line.text for line in taken)}")
                if any(line.guessed for line in taken):
                    example = next((cell for cell in reading.cells if not cell.isascii()), "")
                    self.remarks.count(encoding.guess_said(), f"{where}: {example}")
                yield where, cells

    def _row(self, lines):
        """(the Reading of the next row, why it is lost or "", a remark or "")."""
        columns, main = len(self.names), self.variants[0]
        first = read_row(lines, main)
        if first and first.regular and first.fits(columns) and (first.lines == 1 or not self._swallows(lines, first)):
            self._learn(first)
            return first, "", self._ambiguity(lines, first)
        readings = [first, *(read_row(lines, variant) for variant in self.variants[1:])]
        whole = [reading for reading in readings if reading and not self._swallows(lines, reading)]
        for regular in (True, False):
            for reading in whole:
                if reading.regular is regular and reading.fits(columns):
                    self._learn(reading)
                    return reading, "", STRAY
        alone = read_line(lines.ahead(0).text, main)
        if alone.fits(columns):
            self._learn(alone)
            return alone, "", STRAY
        if first and first in whole and first.regular:
            return (first, "", FEWER) if len(first.cells) < columns else (first, WRONG, "")
        return alone, WRONG if first else UNBALANCED, ""

    def _swallows(self, lines, reading):
        """Whether a row of several lines is several rows: lines inside it are rows by themselves.

        The last line of a description may look like one, as what follows the description is on it.
        """

        def is_row(place):
            return self._is_row(lines.ahead(place).text)

        if reading.lines <= 2:
            return reading.lines == 2 and is_row(1) and is_row(0)
        inner = range(1, reading.lines - 1)
        return 2 * sum(map(is_row, inner)) >= len(inner)

    def _is_row(self, text):
        """Whether a line looks like a row by itself."""
        if not text.strip() or text.count(self.variants[0].delimiter) < len(self.names) - 1:
            return False
        row = read_line(text, self.variants[0])
        if not row.fits(len(self.names)):
            return False
        look = self._look(row)
        return look is not None and look == (self.look or look)

    def _learn(self, reading):
        self.look = self._look(reading) or self.look

    def _look(self, reading):
        """What the cells of the picture's column have in common: an ending, or how they mix in digits; else None."""
        cell = reading.cells[self.key].strip(" \"'") if self.key is not None else ""
        if ending := EXTENSION.search(cell):
            return ending.group().lower()
        shape = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell))
        return shape if "0" in shape else None

    def _ambiguity(self, lines, reading):
        """What to say of a row with signs that other writers mean otherwise."""
        if any(len(cell) > 1 and cell[0] == cell[-1] == "'" for cell in reading.cells):
            return APOSTROPHES
        texts = [lines.ahead(place).text for place in range(reading.lines)]
        if not any("\\" in text and ESCAPING.search(text) for text in texts):
            return ""
        return UNESCAPED if self.variants[0].escapes else ESCAPES


def _peek(lines):
    """Texts of the lines up to the first that belongs to the table."""
    texts = []
    while (line := lines.ahead(len(texts))) is not None and len(texts) < FIRST_LINES:
        texts.append(line.text)
        if line.text.strip() and not EXCEL_SEPARATOR.match(line.text):
            break
    return texts
