"""Rows of a shop's own table: CSV, TSV, JSON lines or Parquet, with the pictures in a folder."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue import presets
from clip_finetuning.catalogue.columns import Columns
from clip_finetuning.catalogue.picture_folder import Found, PictureFolder
from clip_finetuning.catalogue.rows import Source
from clip_finetuning.catalogue.stored_pictures import stored_columns, with_pictures
from clip_finetuning.catalogue.table_rows import TableRows
from clip_finetuning.runtime.text import hash_of, text_of

MAX_CELL = 16 << 20  # characters; a longer one is an unbalanced quote that swallowed the rest of the file
MAX_LINES = 1_000  # of one row of a CSV, for the same reason
KEYS_FROM = 1_000  # lines of a JSON lines file that tell its columns: not every object has every key
BATCH = 4096  # rows of a Parquet file that are read at a time


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
    test_fraction: float | None = None,
    preset: str | None = None,
    of_url: Callable[[str], Found] | None = None,
) -> Source:
    """The rows of a table, in its order; with `valid_fraction` or `test_fraction`, only those of `split`.

    Pictures lie in the folder `images` (default: the table's own). Where a row has no product id, equal captions are
    one product. `columns` overrule those of the `preset`. `of_url` gives the file of a picture that is named by a URL.
    Raises FileNotFoundError, and ValueError for a file of another kind, a missing column, or a Parquet file without
    pyarrow.
    """
    path = Path(path)
    columns.named()  # a template that cannot be filled is said before the file is read
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --table takes a {', '.join(READERS)} file")
    images = presets.image_folder(path.parent, preset) if images is None else Path(images)
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is not a folder; --images must name the one that holds the pictures")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path} is not a table of a known kind; its name must end in {', '.join(READERS)}")
    reader, said = READERS[path.suffix.lower()], []
    if preset:
        columns, said = presets.with_preset(columns, preset, reader(path, []).names)
    needed, stored = columns.named(), stored_columns(path, [columns.image, *columns.more_images])
    table = reader(path, [name for name in needed if name not in stored])
    _check_columns(path, columns, table.names)
    fractions = {"--valid-fraction": valid_fraction, "--test-fraction": test_fraction}
    given = ", ".join(f"{flag} {fraction}" for flag, fraction in fractions.items() if fraction)
    chosen = partial(_is_of, split, valid_fraction or 0.0, test_fraction or 0.0) if given else None
    rows = TableRows(columns, PictureFolder(images, allow_outside, of_url), chosen)
    records = with_pictures(table.records, path, stored) if stored else table.records
    return Source(
        f"{path} ({split}, {given})" if given else str(path),
        None if given else table.total,
        rows.of(records),
        lambda: [*said, *rows.remarks()],
    )


def _check_columns(path: Path, columns: Columns, names: list[str]) -> None:
    """Raise ValueError for columns that the table does not have, or has twice, and if no pictures or captions are named."""
    preset = presets.fitting(names)
    advice = f"{', '.join(names) or 'none'}{f'; --preset {preset} fits them' if preset else ''}"
    for name in columns.named():
        if names.count(name) != 1:
            problem = "more than one" if name in names else "no"
            raise ValueError(f"{path} has {problem} column {name}; it has {advice}")
    if not columns.of_images() or not columns.of_captions():
        flag = "--caption-column or --caption-template" if columns.of_images() else "--image-column"
        raise ValueError(f"{path} needs {flag}; its columns are {advice}")


def _is_of(split: str | None, valid_fraction: float, test_fraction: float, product_id: str) -> bool:
    return split_of_product(product_id, valid_fraction, test_fraction) == split


def split_of_product(product_id: str, valid_fraction: float, test_fraction: float = 0.0) -> str:
    """Its split, by a hash of the id: the same on any machine, and whatever else the catalogue holds.

    Validation and test lie side by side: products move between them and train only where both together grow or shrink.
    """
    place = hash_of(product_id) / 2**64
    if place < valid_fraction:
        return "valid"
    return "test" if place < valid_fraction + test_fraction else "train"


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
