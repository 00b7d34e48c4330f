"""Pictures stored as rows of a file: `fashiongen.h5#17`, `products.parquet#17`.

In Parquet a row's picture is its bytes, plain or as Hugging Face's `{bytes, path}`; `#17.1` is the second of a list, and
`#back:17` names the column where the file has several of pictures. Rows are read as they are needed: from a Parquet file
forward within a row group, a few megabytes at a time, so that rows in ascending order cost one pass.
"""

import bisect
import functools
import io
import os
import re
import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import h5py
    import pyarrow

NUMBERED = re.compile(r"(.+\.(?:h5|hdf5))#(\d+)", re.DOTALL)
NUMBERED_PARQUET = re.compile(r"(.+?\.parquet)#(?:(.+):)?(\d+)(?:\.(\d+))?", re.DOTALL | re.IGNORECASE)
READ = 8 << 20  # bytes of pictures that are held at a time, about
MOST_ROWS = 256  # of them


class StoredRow(NamedTuple):
    """Where a picture is: the column only if it is named, the item only if the row has a list."""

    file: str
    row: int
    column: str | None = None
    item: int | None = None


def stored_row(image_path: str) -> StoredRow | None:
    """What `fashiongen.h5#123` or `products.parquet#123` says, else None."""
    if match := NUMBERED.fullmatch(image_path):
        return StoredRow(match[1], int(match[2]))
    if match := NUMBERED_PARQUET.fullmatch(image_path):
        return StoredRow(match[1], int(match[3]), match[2], int(match[4]) if match[4] else None)
    return None


def file_of(image_path: str) -> str:
    """The file that a picture is in: its own, or the one of whose rows it is."""
    row = stored_row(image_path)
    return row.file if row else image_path


def read_stored(place: StoredRow) -> bytes:
    """The encoded bytes of a picture. Raises FileNotFoundError for a row that is not there, and ValueError."""
    if not os.path.isfile(place.file):
        raise FileNotFoundError(place.file)
    if not place.file.lower().endswith(".parquet"):
        return _hdf5_picture(place.file, place.row)
    state = os.stat(place.file)
    version = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
    value = _parquet_column(place.file, place.column, version).value(place.row)
    if place.item is not None:
        value = value[place.item] if isinstance(value, list) and place.item < len(value) else None
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise FileNotFoundError(f"{place.file} has no picture in row {place.row}")
    return data


def picture_columns(schema: "pyarrow.Schema") -> list[str]:
    """The columns of a Parquet file that hold pictures: `{bytes, ...}` and lists of it, or else those of plain bytes."""
    objects = [field.name for field in schema if _has_bytes(_item_type(field.type))]
    return objects or [field.name for field in schema if _is_bytes(_item_type(field.type))]


def _item_type(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    import pyarrow.types as types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if lists else kind


def _is_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _has_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    return types.is_struct(kind) and any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


class ParquetColumn:
    """A column of a Parquet file, of which a few rows are in memory at a time. Raises ValueError for no such file."""

    def __init__(self, path: str, column: str | None = None) -> None:
        """Without a `column`, the only one that holds pictures."""
        try:
            import pyarrow.parquet
        except ImportError:
            raise ImportError(f"{path} needs the package pyarrow; install it with: pip install pyarrow") from None
        self._file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
        columns = [column] if column else picture_columns(self._file.schema_arrow)
        if len(columns) != 1 or columns[0] not in self._file.schema_arrow.names:
            raise ValueError(f"{path} has {len(columns) or 'no'} columns of pictures; {path}#COLUMN:ROW names one")
        self.name, self.rows = columns[0], self._file.metadata.num_rows
        groups = [self._file.metadata.row_group(number) for number in range(self._file.metadata.num_row_groups)]
        self._starts = list(accumulate((group.num_rows for group in groups), initial=0))
        self._batch_rows = [self._rows_at_a_time(group) for group in groups]
        self._group = -1
        self._batches: Any = iter(())
        self._begin, self._batch = 0, None
        self._lock = threading.Lock()

    def value(self, row: int) -> Any:
        """What a row holds, as Python's own. Raises FileNotFoundError for a row beyond the last."""
        if row >= self.rows:
            raise FileNotFoundError(f"the file has {self.rows:,} rows, not row {row}")
        group = bisect.bisect_right(self._starts, row) - 1
        with self._lock:
            if group != self._group or row < self._begin:
                self._batches = self._file.iter_batches(
                    self._batch_rows[group], row_groups=[group], columns=[self.name], use_threads=False
                )
                self._group, self._begin, self._batch = group, self._starts[group], None
            while self._batch is None or row >= self._begin + len(self._batch):
                self._begin += 0 if self._batch is None else len(self._batch)
                self._batch = next(self._batches).column(0)
            return self._batch[row - self._begin].as_py()

    def _rows_at_a_time(self, group: Any) -> int:
        chunks = (group.column(number) for number in range(group.num_columns))
        mine = (chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{self.name}."))
        size = sum(chunk.total_uncompressed_size for chunk in mine)
        return max(1, min(MOST_ROWS, READ * group.num_rows // max(1, size)))


@functools.lru_cache(maxsize=4)
def _parquet_column(path: str, column: str | None, version: tuple[int, ...]) -> ParquetColumn:
    """It stays open, as long as the file is the same one: opening reads what it says of all its row groups."""
    return ParquetColumn(path, column)


def _hdf5_picture(path: str, row: int) -> bytes:
    try:
        images = _hdf5_images(path)
        if row >= len(images):
            raise FileNotFoundError(f"{path} has {len(images)} rows, not row {row}")
        encoded = io.BytesIO()
        Image.fromarray(images[row]).save(encoded, "PPM")  # no compression: it is read again at once
        return encoded.getvalue()
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no pictures in input_image ({error})") from error


@functools.lru_cache(maxsize=4)
def _hdf5_images(path: str) -> "h5py.Dataset":
    """The pictures of an HDF5 file, which stays open: opening costs more than reading a row."""
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path} needs the package h5py; install it with: pip install h5py") from None
    images = h5py.File(path, "r", rdcc_nbytes=64 * 2**20)["input_image"]
    if not isinstance(images, h5py.Dataset):
        raise TypeError("input_image is a group")
    return images
