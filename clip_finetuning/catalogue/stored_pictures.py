"""Pictures inside a table."""

from typing import NamedTuple


class StoredPicture(NamedTuple):
    """A picture inside a table: its path, `products.parquet#17`, and the name that it has there."""

    path: str
    name: str
