"""Rows of an Excel workbook, read as a stream. Of several sheets it is the first one that has the columns."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from clip_finetuning.catalogue.nested import with_fields
from clip_finetuning.catalogue.remarks import Remarks
from clip_finetuning.runtime.text import text_of

HEADER_WITHIN = 20  # rows: a title may stand above the header
ERRORS = frozenset(("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A", "#GETTING_DATA"))
ERROR_SAID = "have a cell that is an error of Excel's, such as #N/A, which counts as blank"
CONTROL = re.compile(r"_x00[01][0-9A-Fa-f]_")  # how Excel writes a control character, such as a line break


def read_xlsx(
    path: Path, needed: Sequence[str], remarks: Remarks
) -> tuple[list[str], Iterator[tuple[str, dict | str]]]:
    """(the names of a sheet's columns; (where, {column: value}) of each row that is not empty).

    Raises ValueError without openpyxl and for a damaged file.
    """
    found = []
    with _workbook(path) as book:
        sheets = [sheet.title for sheet in book.worksheets]
        for sheet in sheets:
            found.append((sheet, *_header(book[sheet], needed)))
    if not found:
        return [], iter(())
    sheet, header, names = next((one for one in found if set(needed) <= set(one[2])), found[0])
    if len(sheets) > 1:
        remarks.note(f"sheet {sheet} was read, not {', '.join(name for name in sheets if name != sheet)}")
    if header > 1:
        remarks.note(f"the header is row {header} of the sheet; what stands above it was not read")
    columns = {place: name for place, name in enumerate(names) if name}
    return list(columns.values()), _records(path, sheet, header, columns, needed, remarks)


def _header(sheet, needed):
    """(number of the header's row, its cells): the first with all `needed`, else the first that is not empty."""
    rows = [(number, list(map(text_of, row))) for number, row in islice(_rows(sheet), HEADER_WITHIN)]
    rows = [(number, names) for number, names in rows if any(names)]
    return next((row for row in rows if set(needed) <= set(row[1])), rows[0] if rows else (0, []))


def _records(path, sheet, header, columns, needed, remarks):
    with _workbook(path) as book:
        for number, row in _rows(book[sheet]):
            if number <= header or not any(value is not None and value != "" for value in row):
                continue
            where = f"{path.name}:{number}"
            if any(value in ERRORS for value in row if isinstance(value, str)):
                remarks.count(ERROR_SAID, where)
            surplus = [value for place, value in enumerate(row) if place not in columns and text_of(value)]
            if surplus:
                remarks.count("have cells in columns without a name, which are not read", f"{where}: {surplus[0]}")
            cells = {name: _cell(row[place]) if place < len(row) else None for place, name in columns.items()}
            yield where, with_fields(cells, needed)


def _rows(sheet):
    """(number, values) of each row. What the file says of its size is often wrong, and would cut rows off."""
    sheet.reset_dimensions()
    return enumerate(sheet.iter_rows(values_only=True), 1)


def _cell(value):
    if not isinstance(value, str):
        return value
    return "" if value in ERRORS else CONTROL.sub(" ", value)


@contextmanager
def _workbook(path):
    """The open file. Whatever openpyxl makes of a damaged one, it is a ValueError that names it."""
    try:
        import openpyxl
    except ImportError:
        raise ValueError(f'--table {path} needs openpyxl, which is not installed: pip install -e ".[xlsx]"') from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that hold no cell
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                yield book
            finally:
                book.close()
    except Exception as error:
        raise ValueError(f"{path} is not a readable Excel workbook ({error}); save it anew as .xlsx or .csv") from error
