"""Rows of a Parquet file, a batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from clip_finetuning.catalogue.nested import with_fields

BATCH = 4096  # rows that are read at a time


def read_parquet(path: Path, needed: Sequence[str]) -> tuple[list[str], int, Iterator[tuple[str, dict | str]]]:
    """(the names of a file's columns; how many rows; (where, {column: value}) of each).

    Raises ValueError without pyarrow and for a damaged file.
    """
    with _parquet_file(path) as file:
        names, total = file.schema_arrow.names, file.metadata.num_rows
        inner = [name for name in needed if name not in names and _has_field(file.schema_arrow, name)]
    columns = [name for name in names if any(name == one or one.startswith(f"{name}.") for one in needed)]
    return [*names, *inner], total, _records(path, columns, needed)


def _records(path, columns, needed):
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(BATCH, columns=columns):
            values = [_values(column) for column in batch.columns]
            for row in zip(*values):
                number += 1
                yield f"{path.name}:{number}", with_fields(dict(zip(batch.schema.names, row)), needed)


def _values(column):
    """A column as Python's values; text that is no UTF-8 as bytes, times beyond Python's as its last one: no id either."""
    import pyarrow

    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            return column.cast(pyarrow.binary()).to_pylist()
        return [datetime.max if valid else None for valid in column.is_valid().to_pylist()]


def _has_field(schema, name):
    """Whether a dotted name reaches into a column: the fields of structs by name, items of lists by number."""
    import pyarrow

    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        column = ".".join(parts[:count])
        if column not in schema.names:
            continue
        kind = schema.field(column).type
        for part in parts[count:]:
            if pyarrow.types.is_struct(kind) and kind.get_field_index(part) >= 0:
                kind = kind.field(kind.get_field_index(part)).type
            elif hasattr(kind, "value_type") and part.isdecimal():
                kind = kind.value_type
            else:
                break
        else:
            return True
    return False


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
