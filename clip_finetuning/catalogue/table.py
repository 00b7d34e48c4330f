"""Rows of a shop's own table: CSV, TSV, JSON lines or Parquet, with the pictures in a folder."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue.caption_template import fill_template, template_fields
from clip_finetuning.catalogue.rows import RowError, Skipped, Source, caption_id, make_row, picture_in_folder
from clip_finetuning.runtime.text import hash_of, text_of

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
MAX_CELL = 16 << 20  # characters; a longer one is an unbalanced quote that swallowed the rest of the file
MAX_LINES = 1_000  # of one row of a CSV, for the same reason
KEYS_FROM = 1_000  # lines of a JSON lines file that tell its columns: not every object has every key
BATCH = 4096  # rows of a Parquet file that are read at a time


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
    of_url: Callable[[str], tuple[str, str]] | None = None,
) -> Source:
    """The rows of a table, in its order; with `valid_fraction`, only those of `split`.

    Pictures lie in the folder `images` (default: the table's own). `of_url` gives the file of a picture that is named by a URL. Where a row has no product id, equal captions are
    one product. Raises FileNotFoundError, and ValueError for a file of another kind, a missing column, or a Parquet
    file without pyarrow.
    """
    path, needed = Path(path), columns.named()
    images = path.parent if images is None else Path(images)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --table takes a {', '.join(READERS)} file")
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is not a folder; --images must name the one that holds the pictures")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path} is not a table of a known kind; its name must end in {', '.join(READERS)}")
    table = READERS[path.suffix.lower()](path, needed)
    for name in needed:
        if table.names.count(name) != 1:
            problem = "more than one" if name in table.names else "no"
            raise ValueError(f"{path} has {problem} column {name}; it has {', '.join(table.names) or 'none'}")
    if not columns.image or not (columns.captions or columns.template):
        flag = "--caption-column or --caption-template" if columns.image else "--image-column"
        raise ValueError(f"{path} needs {flag}; its columns are {', '.join(table.names) or 'none'}")
    name = f"{path} ({split}, --valid-fraction {valid_fraction})" if valid_fraction else str(path)
    total = None if valid_fraction else table.total
    return Source(name, total, _rows(table.records, columns, images, split, valid_fraction, allow_outside, of_url))


def split_of_product(product_id: str, valid_fraction: float) -> str:
    """Its split, by a hash of the id: the same on any machine, and whatever else the catalogue holds."""
    return "valid" if hash_of(product_id) / 2**64 < valid_fraction else "train"


def _rows(records, columns, images, split, valid_fraction, allow_outside, of_url):
    for where, values in records:
        readable = not isinstance(values, str)
        captions = _captions(values, columns) if readable else []
        product_id = text_of(values.get(columns.product)) if readable else ""
        product_id = product_id or caption_id(next(iter(captions), ""))
        if valid_fraction and split_of_product(product_id or where, valid_fraction) != split:
            continue
        try:
            if not readable:
                raise RowError(values)
            yield make_row(
                *_image(values.get(columns.image), images, allow_outside, of_url),
                captions=captions,
                category=values.get(columns.category),
                subcategory=values.get(columns.subcategory),
                product_id=product_id,
            )
        except RowError as error:
            yield Skipped(where, str(error))


def _captions(values, columns):
    """The wordings of a row, none blank."""
    if columns.template:
        texts = [fill_template(columns.template, {name: text_of(value) for name, value in values.items()})]
    else:
        cells = [values.get(name) for name in columns.captions]
        texts = [text_of(value) for cell in cells for value in (cell if isinstance(cell, list) else [cell])]
    return [text for text in texts if text]


def _image(cell, images, allow_outside, of_url):
    name = text_of(cell)
    if URL.match(name):
        if of_url is None:
            raise RowError("image is a URL (--download DIR fetches it)")
        return of_url(name)
    return picture_in_folder(images, name, allow_outside)


def _delimited(path, needed):
    """A CSV or TSV in UTF-8 or, cell by cell, Windows-1252; with a byte order mark, UTF-16 too."""
    with _text_file(path) as file:
        first = file.readline()
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    with _text_file(path) as file:
        names = [_cell(name) for _, _, row in islice(_csv_rows(path, file, delimiter), 1) for name in row]
    return Table(names, None, _delimited_records(path, delimiter, names))


def _delimited_records(path, delimiter, names):
    with _text_file(path) as file:
        for first, last, row in islice(_csv_rows(path, file, delimiter), 1, None):
            if last - first >= MAX_LINES:
                for line in range(first, last + 1):
                    yield f"{path.name}:{line}", "inside an unbalanced quote"
            elif len(row) != len(names):
                yield f"{path.name}:{first}", "wrong number of cells"
            else:
                yield f"{path.name}:{first}", dict(zip(names, map(_cell, row)))


def _csv_rows(path, file, delimiter):
    """(number of its first line, of its last, cells) of each row that is not empty."""
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader((line.replace("\0", " ") for line in file), delimiter=delimiter)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, reader.line_num, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}: {error}; look for an unbalanced quote") from error


def _text_file(path):
    with open(path, "rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return open(path, encoding="utf-16", errors="replace", newline="")
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _cell(value):
    return text_of(value if value.isascii() else value.encode("utf-8", "surrogateescape"))


def _json_lines(path, needed):
    """An object a line. Keys may be missing here and there; a column is what one of the first lines has."""
    names = {}
    for _, values in islice(_json_records(path), KEYS_FROM):
        names |= {} if isinstance(values, str) else dict.fromkeys(values)
    return Table(list(names), None, _json_records(path))


def _json_records(path):
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            yield f"{path.name}:{number}", values if isinstance(values, dict) else "line that is no JSON object"


def _parquet(path, needed):
    with _parquet_file(path) as file:
        names, total = file.schema_arrow.names, file.metadata.num_rows
    return Table(names, total, _parquet_records(path, needed))


def _parquet_records(path, needed):
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(BATCH, columns=needed):
            for values in batch.to_pylist():
                number += 1
                yield f"{path.name}:{number}", values


@contextmanager
def _parquet_file(path):
    """The open file. Whatever pyarrow makes of a damaged one, it is a ValueError that names it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"--table {path} needs pyarrow, which is not installed: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except Exception as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}); copy it anew") from error


READERS = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _json_lines, ".parquet": _parquet}
