"""A file appears whole or not at all: write beside it, flush to the disk, rename."""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nobody can delete or rename a file that is open
    fcntl = None

DYING_SECONDS, DYING_ATTEMPTS = 0.2, 10  # a process that is being killed holds its locks until it is gone
# The dot hides it from every shard pattern and checkpoint glob. Digits alone are the process ids of earlier versions.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.partial")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is deleted.

    The temporary file is there already, empty, under a name of its own, which no other process on any machine has; its
    writer holds a lock on it, so that `remove_leftovers` leaves it alone.
    A reader of `path` sees the old file or the whole new one, also after a power cut (POSIX rename after fsync).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, held = _create(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if held is not None:
            os.close(held)
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """A hidden name for what is to become the file `name`, another one each time."""
    return f".{name}.{secrets.token_hex(8)}.partial"


def remove_leftovers(folder: str | os.PathLike, names: Collection[str] | None = None) -> None:
    """Delete what killed writers left in a folder, of the files of these `names` or of all; what is being written stays."""
    for path in Path(folder).glob(".*.partial"):
        temporary = TEMPORARY.fullmatch(path.name)
        if temporary and (names is None or temporary["name"] in names):
            with contextlib.suppress(OSError):  # gone, or in use
                _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    if not fcntl:
        path.unlink(missing_ok=True)
        return
    with open(path, "rb+") as file:
        for attempt in range(DYING_ATTEMPTS):
            try:
                _lock(file)
                break
            except BlockingIOError:
                if attempt == DYING_ATTEMPTS - 1:
                    raise
                time.sleep(DYING_SECONDS / DYING_ATTEMPTS)
        path.unlink(missing_ok=True)


def _create(path: Path) -> tuple[Path, int | None]:
    """(temporary path, descriptor that holds its lock or None)."""
    while True:
        temporary = path.parent / temporary_name(path.name)
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if not fcntl:
            os.close(file)
            return temporary, None
        with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one either
            _lock(file)
        if temporary.exists():  # else one who cleaned up was faster than the lock
            return temporary, file
        os.close(file)


def _lock(file: int | BinaryIO) -> None:
    """Raises OSError if another process holds the lock. Not lockf, which lets go once any handle of the file is closed."""
    assert fcntl is not None  # nobody comes here without
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
