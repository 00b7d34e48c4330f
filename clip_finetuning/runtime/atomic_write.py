"""A file appears whole or not at all: write beside it, flush to the disk, rename."""

import os
import re
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is deleted.

    The temporary name starts with a dot and ends in `.partial`, so no shard pattern or checkpoint glob matches it.
    A reader of `path` sees the old file or the whole new one, also after a power cut (POSIX rename after fsync).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder, names=None):
    """Delete what killed writers left in a folder, of the files of these `names` or of all: where no other is writing."""
    for path in Path(folder).glob(".*.*.partial"):
        if names is None or re.sub(r"\.\d+\.partial$", "", path.name[1:]) in names:
            path.unlink(missing_ok=True)
