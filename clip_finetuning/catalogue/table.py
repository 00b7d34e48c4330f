"""Rows of a shop's own table: CSV, TSV, JSON, Excel or Parquet, with the pictures in a folder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue.caption_template import template_fields
from clip_finetuning.catalogue.cells import Cells
from clip_finetuning.catalogue.delimited import read_delimited
from clip_finetuning.catalogue.json_tables import read_json
from clip_finetuning.catalogue.parquet import read_parquet
from clip_finetuning.catalogue.remarks import Remarks
from clip_finetuning.catalogue.rows import RowError, Skipped, Source, caption_id, make_row, picture_in_folder
from clip_finetuning.catalogue.spreadsheets import read_xlsx
from clip_finetuning.runtime.text import hash_of, text_of

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class Columns(NamedTuple):
    """Which column holds what. Several `captions` are wordings of the same; a `template` makes one of any columns."""

    image: str
    captions: tuple[str, ...] = ()
    template: str = ""
    product: str | None = None
    category: str | None = None
    subcategory: str | None = None

    def named(self) -> list[str]:
        """The names of all columns that are needed. Raises ValueError for a template that cannot be filled."""
        fields = template_fields(self.template) if self.template else []
        names = [self.image, *self.captions, *fields, self.product, self.category, self.subcategory]
        return list(dict.fromkeys(filter(None, names)))


class Table(NamedTuple):
    """An opened file: its columns, how many rows it has (None: unknown), and (where, {column: value}) of each row.

    Instead of the values, a text says why a row cannot be read.
    """

    names: list[str]
    total: int | None
    records: Iterable[tuple[str, dict | str]]


def open_table(
    path: str | os.PathLike,
    columns: Columns,
    images: str | os.PathLike | None = None,
    split: str | None = None,
    valid_fraction: float | None = None,
    allow_outside: bool = False,
    encoding: str | None = None,
    keep_markup: bool = False,
) -> Source:
    """The rows of a table, in its order; with `valid_fraction`, only those of `split`.

    Pictures lie in the folder `images` (default: the table's own). Where a row has no product id, equal captions are
    one product. A text file's `encoding` is guessed unless given; markup is taken out of captions and categories unless
    it is to be kept. Raises FileNotFoundError, and ValueError for a file of another kind or that is damaged, a missing
    column, or a file that needs a package which is not installed.
    """
    path, needed = Path(path), columns.named()
    images = path.parent if images is None else Path(images)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --table takes a {', '.join(READERS)} file")
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is not a folder; --images must name the one that holds the pictures")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path} is not a table of a known kind; its name must end in {', '.join(READERS)}")
    if encoding and path.suffix.lower() not in TEXT:
        raise ValueError(f"--encoding {encoding} does not go with {path}: only {', '.join(TEXT)} files have one")
    remarks = Remarks()
    table = READERS[path.suffix.lower()](path, needed, remarks, encoding)
    for name in needed:
        if table.names.count(name) != 1:
            problem = "more than one" if name in table.names else "no"
            raise ValueError(f"{path} has {problem} column {name}; it has {', '.join(table.names) or 'none'}")
    if not columns.image or not (columns.captions or columns.template):
        flag = "--caption-column or --caption-template" if columns.image else "--image-column"
        raise ValueError(f"{path} needs {flag}; its columns are {', '.join(table.names) or 'none'}")
    name = f"{path} ({split}, --valid-fraction {valid_fraction})" if valid_fraction else str(path)
    total = None if valid_fraction else table.total
    cells = Cells(remarks, keep_markup)
    rows = _rows(table.records, columns, cells, images, split, valid_fraction, allow_outside)
    return Source(name, total, rows, remarks.lines)


def split_of_product(product_id: str, valid_fraction: float) -> str:
    """Its split, by a hash of the id: the same on any machine, and whatever else the catalogue holds."""
    return "valid" if hash_of(product_id) / 2**64 < valid_fraction else "train"


def _rows(records, columns, cells, images, split, valid_fraction, allow_outside):
    for where, record in records:
        values, problem = ({}, record) if isinstance(record, str) else (record, "")
        captions, product_id = [], ""
        try:
            if not problem:
                product_id = cells.product_id(where, values.get(columns.product))
                captions = cells.captions(where, values, columns.captions, columns.template)
        except RowError as error:
            problem = str(error)
        product_id = product_id or caption_id(next(iter(captions), ""))
        if valid_fraction and split_of_product(product_id or where, valid_fraction) != split:
            continue
        try:
            if problem:
                raise RowError(problem)
            yield make_row(
                *_image(values.get(columns.image), images, allow_outside),
                captions=captions,
                category=cells.label(where, "category", values.get(columns.category)),
                subcategory=cells.label(where, "subcategory", values.get(columns.subcategory)),
                product_id=product_id,
            )
        except RowError as error:
            yield Skipped(where, str(error))


def _image(cell, images, allow_outside):
    name = text_of(cell)
    if URL.match(name):
        raise RowError("image is a URL (download it first)")
    return picture_in_folder(images, name, allow_outside)


def _delimited(path, needed, remarks, encoding):
    names, records = read_delimited(path, needed, remarks, encoding)
    return Table(names, None, records)


def _json(path, needed, remarks, encoding):
    names, records = read_json(path, needed, remarks, encoding)
    return Table(names, None, records)


def _workbook(path, needed, remarks, _):
    names, records = read_xlsx(path, needed, remarks)
    return Table(names, None, records)


def _parquet(path, needed, remarks, _):
    names, total, records = read_parquet(path, needed)
    return Table(names, total, records)


# What reads a file of each kind: (path, needed columns, remarks, given encoding) -> Table.
READERS = {
    **dict.fromkeys((".csv", ".tsv"), _delimited),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), _json),
    **dict.fromkeys((".xlsx", ".xlsm"), _workbook),
    ".parquet": _parquet,
}
TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")  # the kinds that have an encoding
