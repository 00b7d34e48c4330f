"""Rows of a shop's own table: CSV, TSV, JSON, Excel or Parquet, with the pictures in a folder."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue import presets
from clip_finetuning.catalogue.attributes import counted
from clip_finetuning.catalogue.cells import Cells
from clip_finetuning.catalogue.columns import Columns
from clip_finetuning.catalogue.delimited import read_delimited
from clip_finetuning.catalogue.json_tables import read_json
from clip_finetuning.catalogue.parquet import read_parquet
from clip_finetuning.catalogue.picture_folder import Found, PictureFolder
from clip_finetuning.catalogue.remarks import Remarks
from clip_finetuning.catalogue.rows import Source
from clip_finetuning.catalogue.spreadsheets import read_xlsx
from clip_finetuning.catalogue.stored_pictures import stored_columns, with_pictures
from clip_finetuning.catalogue.table_rows import TableRows
from clip_finetuning.runtime.text import hash_of


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
    test_fraction: float | None = None,
    preset: str | None = None,
    of_url: Callable[[str], Found] | None = None,
) -> Source:
    """The rows of a table, in its order; with `valid_fraction` or `test_fraction`, only those of `split`.

    Pictures lie in the folder `images` (default: the table's own). Where a row has no product id, equal captions are
    one product. `columns` overrule those of the `preset`. A text file's `encoding` is guessed unless given; markup is
    taken out of captions and categories unless it is to be kept. `of_url` gives the file of a picture that is named by a
    URL. Raises FileNotFoundError, and ValueError for a file of another kind or that is damaged, a missing column, or a
    file that needs a package which is not installed.
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
    if encoding and path.suffix.lower() not in TEXT:
        raise ValueError(f"--encoding {encoding} does not go with {path}: only {', '.join(TEXT)} files have one")
    reader, said, remarks = READERS[path.suffix.lower()], [], Remarks()
    if preset:
        columns, said = presets.with_preset(columns, preset, reader(path, [], Remarks(), encoding).names)
    needed, stored = columns.named(), stored_columns(path, [columns.image, *columns.more_images])
    table = reader(path, [name for name in needed if name not in stored], remarks, encoding)
    _check_columns(path, columns, table.names)
    fractions = {"--valid-fraction": valid_fraction, "--test-fraction": test_fraction}
    given = ", ".join(f"{flag} {fraction}" for flag, fraction in fractions.items() if fraction)
    chosen = partial(_is_of, split, valid_fraction or 0.0, test_fraction or 0.0) if given else None
    rows = TableRows(columns, PictureFolder(images, allow_outside, of_url), Cells(remarks, keep_markup), chosen)
    records = with_pictures(table.records, path, stored) if stored else table.records
    source = Source(
        f"{path} ({split}, {given})" if given else str(path),
        None if given else table.total,
        rows.of(records),
        lambda: [*said, *remarks.lines(), *rows.remarks()],
    )
    return counted(source, columns.attributes)


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
