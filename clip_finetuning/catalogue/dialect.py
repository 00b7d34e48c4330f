"""How a delimited file writes its cells: which delimiter, which quotes, and whether a backslash escapes."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from clip_finetuning.runtime.text import text_of

MAX_LINES = 1_000  # of one row; a quote that closes nothing for so long is no opening one
MAX_STRAY_LINES = 50  # the same once another quote was found where none belongs
MAX_ROW = 16 << 20  # characters
ENDS = ("\r\n", "\n", "\r")
IN_QUOTES = re.compile('".*"', re.DOTALL)
NO_SIGNS = "\"'`_.- \r\n\\\0"  # are no delimiters
NO_QUOTE = "\ufdd0"  # no character, so in no text
ESCAPED = r"(?<!\\)(?:\\\\)*\\"  # a backslash that no other one escapes
CONTROL = {"n": "\n", "t": "\t", "r": "\r", "0": " "}  # what databases write for them after a backslash


class Dialect(NamedTuple):
    """How cells are written. `doubled`: a quote inside quotes is two; `spaced`: blanks may stand before a quote."""

    delimiter: str
    quote: str = '"'
    escapes: bool = False
    doubled: bool = True
    spaced: bool = False

    def variants(self) -> list["Dialect"]:
        """This one, then what else the writer of a row may have meant, the likelier first."""
        others = (
            self,
            self._replace(escapes=not self.escapes),
            self._replace(spaced=True),
            self._replace(doubled=False),
        )
        return list(dict.fromkeys(others))


class Reading(NamedTuple):
    """A row as one dialect reads it: how many lines it takes, and its cells.

    `regular` if every quote is where the dialect puts one; `quoted` if one of the cells needed its quotes.
    """

    lines: int
    cells: list[str]
    regular: bool = True
    quoted: bool = False

    def fits(self, columns: int) -> bool:
        """Whether there is a cell for each column, and none beyond them that holds anything."""
        return len(self.cells) >= columns and not "".join(self.cells[columns:]).strip()


class Lines:
    """Lines of a file that are looked at before they are taken."""

    def __init__(self, lines: Iterator) -> None:
        self._lines = iter(lines)
        self._ahead: list = []
        self.number = 1  # of the next line

    def ahead(self, place: int):
        """The line that many after the next one, or None after the last."""
        while len(self._ahead) <= place:
            line = next(self._lines, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[place]

    def take(self, count: int) -> list:
        """The next `count` lines, which are there."""
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        self.number += count
        return taken


def read_row(lines: Lines, dialect: Dialect) -> Reading | None:
    """The next row, which is not taken; None if a quote stays open."""
    return read_text(lambda place: getattr(lines.ahead(place), "text", None), dialect)


def read_line(text: str, dialect: Dialect) -> Reading:
    """The row that a line is by itself: a quote that stays open in it is text."""
    return read_text(lambda place: None if place else text, dialect, one_line=True) or Reading(1, [])


def read_text(line_at: Callable[[int], str | None], dialect: Dialect, one_line: bool = False) -> Reading | None:
    """`read_row` of line_at(0), line_at(1), ... texts with their ends, and None after the last."""
    text = line_at(0) or ""
    end = _length_without_end(text)
    plain = dialect.quote not in text and not (dialect.escapes and "\\" in text)
    if plain:
        return Reading(1, text[:end].split(dialect.delimiter))
    standard = dialect == Dialect(dialect.delimiter, dialect.quote) and not one_line
    return (_regular_row(line_at, dialect) if standard else None) or _Row(line_at, dialect, one_line, text, end).read()


def _regular_row(line_at, dialect):
    """The Reading of a row without any irregularity, by Python's own reader, which is fast; else None."""
    csv.field_size_limit(MAX_ROW)
    texts = takewhile(lambda text: text is not None, map(line_at, range(MAX_LINES)))
    reader = csv.reader(texts, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True)
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        return None
    quoted = (
        reader.line_num > 1
        or dialect.quote * 2 in (line_at(0) or "")
        or any(dialect.delimiter in cell for cell in cells)
    )
    return Reading(reader.line_num, cells, True, quoted)


class _Row:
    """A row while it is read, from left to right; where a cell goes on, the next line is added."""

    def __init__(self, line_at, dialect, one_line, text, end):
        self.line_at, self.dialect, self.one_line = line_at, dialect, one_line
        self.text, self.end, self.lines = text, end, 1
        self.regular, self.quoted = True, False

    def read(self):
        cells, at = [], 0
        while True:
            opening = self._opening(at)
            close = self._closing(opening + 1) if opening >= 0 else -1
            if opening >= 0 and close < 0 and not self.one_line:
                return None
            if close >= 0:
                cells.append(self._unquoted(self.text[opening + 1 : close]))
                at = self._skip_blanks(close + 1)
            else:
                self.regular = self.regular and opening < 0
                stop = self._delimiter(at)
                if stop is None:
                    return None
                cells.append(self._unescaped(self.text[at:stop]))
                at = stop
            if at >= self.end:
                return Reading(self.lines, cells, self.regular, self.quoted)
            at += len(self.dialect.delimiter)

    def _opening(self, at):
        """Where a quote opens the cell that begins at `at`, or -1."""
        start = self._skip_blanks(at) if self.dialect.spaced else at
        return start if start < self.end and self.text.startswith(self.dialect.quote, start) else -1

    def _skip_blanks(self, at):
        while at < self.end and self.text[at] == " " and self.dialect.delimiter != " ":
            at += 1
        return at

    def _closing(self, at):
        """Where the quote is that closes the cell, or -1: the first one before a delimiter or the end of a line."""
        quote, start = self.dialect.quote, at
        while True:
            found = self.text.find(quote, at, self.end)
            if found < 0:
                at = self.end
                if not self._add_line():
                    return -1
            elif self.dialect.escapes and self._is_escaped(found, start):
                at = found + 1
            elif self.dialect.doubled and self.text.startswith(quote, found + 1) and found + 1 < self.end:
                at = found + 2
            else:
                after = self._skip_blanks(found + 1)
                if after == self.end or self.text.startswith(self.dialect.delimiter, after):
                    self.regular = self.regular and after == found + 1
                    return found
                self.regular, at = False, found + 1

    def _delimiter(self, at):
        """Where a cell without quotes ends; None if an escaped line end is the file's last."""
        start = at
        while True:
            found = self.text.find(self.dialect.delimiter, at, self.end)
            if found >= 0 and self.dialect.escapes and self._is_escaped(found, start):
                at = found + 1
            elif found < 0 and self.dialect.escapes and self._is_escaped(self.end, start):
                at = self.end
                if not self._add_line():
                    return self.end if self.one_line else None
            else:
                return found if found >= 0 else self.end

    def _is_escaped(self, at, start):
        first = at
        while first > start and self.text[first - 1] == "\\":
            first -= 1
        return (at - first) % 2 == 1

    def _add_line(self):
        line = None if self.one_line else self.line_at(self.lines)
        if line is None or self.lines >= (MAX_LINES if self.regular else MAX_STRAY_LINES) or self.end > MAX_ROW:
            return False
        self.lines += 1
        self.end = len(self.text) + _length_without_end(line)
        self.text += line
        return True

    def _unquoted(self, text):
        quote = self.dialect.quote
        self.quoted = self.quoted or self.dialect.delimiter in text or quote in text or self.lines > 1
        doubled = quote if self.dialect.doubled else ""
        return self._unescaped(text, doubled) if self.dialect.escapes else text.replace(doubled * 2, doubled)

    def _unescaped(self, text, doubled=""):
        if not self.dialect.escapes:
            return text
        pairs = r"\\(.)" + (f"|{re.escape(doubled * 2)}" if doubled else "")
        return re.sub(pairs, lambda pair: CONTROL.get(pair[1], pair[1] or doubled), text, flags=re.DOTALL)


def _length_without_end(line):
    return len(line) - next((len(end) for end in ENDS if line.endswith(end)), 0)


# ------------------------------------------------------------------------------------- which one it is


def choose_dialect(lines: Sequence[str], needed: Sequence[str], usual: str) -> tuple[Dialect, list[str]]:
    """(the dialect that reads the most of these first lines of a file, the names in the first of them).

    Its header must have the `needed` names; where none has, it is the usual delimiter or the most frequent one.
    """
    header = lines[0] if lines else ""
    signs = [sign for sign in dict.fromkeys(header) if not sign.isalnum() and sign not in NO_SIGNS]
    quotes = ['"', "'", NO_QUOTE, *_quote_around(header)]
    found = []
    for delimiter in signs:
        for quote in (quote for quote in quotes if quote != delimiter):
            dialect = Dialect(delimiter, quote)
            names = header_names(lines, dialect)
            if set(needed) <= set(names) and len(names) > 1:
                found += [(dialect, names), (dialect._replace(escapes=True), names)]
    if not found:
        delimiter = usual or max(",;\t|", key=header.count)
        found = [(Dialect(delimiter), header_names(lines, Dialect(delimiter)))]
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda one: (_merit(lines, one[0], len(one[1])), len(one[1])))


def header_names(lines: Sequence[str], dialect: Dialect) -> list[str]:
    """The cells of the first row."""
    row = read_text(lambda place: lines[place] if place < len(lines) else None, dialect) if lines else None
    return [text_of(cell) for cell in row.cells] if row else []


def _quote_around(header):
    line = header.strip()
    return (
        [line[0]] if len(line) > 2 and line[0] == line[-1] and not line[0].isalnum() and line[0] not in "\"'\0" else []
    )


def _merit(lines, dialect, columns):
    """(lines that are read as they should be, evidence for what is unusual about the dialect)."""
    right = quoted = at = 0
    while at < len(lines):
        row = read_text(lambda place, at=at: lines[at + place] if at + place < len(lines) else None, dialect)
        bare = dialect.quote == NO_QUOTE and row is not None and any(map(IN_QUOTES.fullmatch, row.cells))
        if row is None or not row.regular or not row.fits(columns) or bare:
            at += 1
            continue
        right += row.lines
        quoted += row.quoted
        at += row.lines
    if dialect.quote == NO_QUOTE:  # only where backslashes do what quotes would
        escaped = re.compile(ESCAPED + rf"(?:{re.escape(dialect.delimiter)}|[\r\n]*\Z)")
        signs = sum(escaped.search(line) is not None for line in lines) if dialect.escapes else 0
        return (right, 2 * len(lines) * signs) if signs else (0, 0)
    if dialect.quote != '"' and not quoted:
        return 0, 0  # apostrophes, perhaps
    if dialect.escapes:
        escaped = re.compile(ESCAPED + dialect.quote)
        return right, len(lines) * sum(escaped.search(line) is not None for line in lines) or -1
    return right, quoted or 0.5  # more than another quote that says nothing
