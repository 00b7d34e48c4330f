"""Pictures inside a Parquet table: the bytes stay where they are, a row's image_path is `products.parquet#17`."""

from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clip_finetuning.pictures.stored import ParquetColumn, picture_columns
from clip_finetuning.runtime.text import text_of

if TYPE_CHECKING:
    import pyarrow.parquet

LONGEST_NAME = 1_000  # bytes; what is longer is a picture
LOOKED_AT = 100  # values of a column of plain bytes that tell whether they are names


class StoredPicture(NamedTuple):
    """A picture inside a table: its path, `products.parquet#17`, and the name that it has there."""

    path: str
    name: str


def stored_columns(path: Path, names: Iterable[str | None]) -> list[str]:
    """Those of the named columns of a table that hold pictures. Raises ValueError for a damaged Parquet file."""
    if path.suffix.lower() != ".parquet":
        return []
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return []  # whoever opens the table says so
    try:
        schema = pyarrow.parquet.read_schema(path)
        there = [name for name in names if name and schema.names.count(name) == 1]
        able = [name for name in there if picture_columns(pyarrow.schema([schema.field(name)]))]
        return [name for name in able if not _holds_names(path, name)]
    except Exception as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}); copy it anew") from error


def with_pictures(
    records: Iterable[tuple[str, dict | str]], path: Path, columns: list[str]
) -> Iterator[tuple[str, dict | str]]:
    """The records of a table, one for each of its rows, with the pictures that these columns hold."""
    cells = [picture_cells(path, column) for column in columns]
    for (where, values), *pictures in zip(records, *cells):
        yield where, values if isinstance(values, str) else {**values, **dict(zip(columns, pictures))}


def picture_cells(path: Path, column: str) -> Iterator[Any]:
    """What each row of a column of pictures is: a StoredPicture, a name where there are no bytes, None, a list of these.

    Bytes are read only in row groups in which some may be missing.
    """
    import pyarrow.parquet

    reader = ParquetColumn(str(path), column)
    row = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        beginning = f"{path.as_posix()}#" + ("" if picture_columns(file.schema_arrow) == [column] else f"{column}:")
        for group in range(file.metadata.num_row_groups):
            for name in _names(file, group, column):
                where = f"{beginning}{row}"
                yield _cell(reader.value(row), where) if name is ... else _stored(where, name)
                row += 1


def _names(file: "pyarrow.parquet.ParquetFile", group: int, column: str) -> Iterable[Any]:
    """The name of each picture of a row group, or None; `...` for each where the pictures themselves must be looked at."""
    metadata = file.metadata.row_group(group)
    chunks = {chunk.path_in_schema: chunk for chunk in map(metadata.column, range(metadata.num_columns))}
    data = chunks.get(f"{column}.bytes") or chunks.get(column)
    counts = data.statistics if data is not None else None
    if counts is None or not counts.has_null_count or counts.null_count:
        return repeat(..., metadata.num_rows)
    if f"{column}.path" not in chunks:
        return repeat(None, metadata.num_rows)
    batches = file.iter_batches(row_groups=[group], columns=[f"{column}.path"])
    return (value["path"] for batch in batches for value in batch.column(0).to_pylist())


def _cell(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_cell(item, f"{where}.{number}") for number, item in enumerate(value)]
    if isinstance(value, dict):
        name = value.get("path")
        return _stored(where, name) if value.get("bytes") is not None else name
    return None if value is None else _stored(where, None)


def _stored(where: str, name: object) -> StoredPicture:
    own = text_of(name).replace("\\", "/").rpartition("/")[2]
    return StoredPicture(where, own or where.rpartition("/")[2])


def _holds_names(path: Path, column: str) -> bool:
    """Whether the bytes of a column are text: old writers do not say which of their bytes are."""
    reader = ParquetColumn(str(path), column)
    values = (reader.value(row) for row in range(min(reader.rows, LOOKED_AT)))
    found = next(islice((value for value in values if isinstance(value, bytes) and value), 1), None)
    try:
        return found is not None and len(found) <= LONGEST_NAME and found.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
