"""A folder appears whole or not at all: written beside its place under a hidden name, flushed, renamed."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_finetuning.runtime.atomic_write import TEMPORARY, temporary_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What safetensors, onnx and torch make of an OSError is an error of their own, whose text still names it.
DISK_ERRORS = {
    errno.ENOSPC: r"os error 28\b|no space left on device",
    errno.EDQUOT: r"os error 122\b|disk quota exceeded",
    errno.EFBIG: r"os error 27\b|file too large",
}


def check_free(path: str | os.PathLike) -> None:
    """FileExistsError if something is at `path` already, but for an empty folder."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"--output {path} exists already and is left as it is; give a new folder, or remove it")


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it becomes `path`, on any error nothing of it is left.

    Raises FileExistsError if something is at `path`, OSError for a disk that is full, whichever library met that.
    """
    path = Path(os.path.abspath(path))
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.parent / temporary_name(path.name)
    temporary.mkdir()
    held = _hold(temporary)
    try:
        with _disk_errors(path):
            yield temporary
            _flush(temporary)
        check_free(path)
        if path.is_dir():
            path.rmdir()  # it is empty; Windows renames onto nothing
        temporary.rename(path)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library has its own class
        code = next((code for code, words in DISK_ERRORS.items() if re.search(words, str(error), re.IGNORECASE)), None)
        code = getattr(error, "errno", None) if isinstance(error, OSError) else code
        if code not in DISK_ERRORS:
            raise
        raise OSError(code, f"{os.strerror(code)}: nothing is left of {path}; make room and run it again") from error


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def _hold(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder while its writer lives, where there are such locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_leftovers(path: Path) -> None:
    """Delete what killed exports to the same place left; what is being written stays."""
    for folder in path.parent.glob(".*.partial"):
        temporary = TEMPORARY.fullmatch(folder.name)
        if fcntl is None or not temporary or temporary["name"] != path.name or not folder.is_dir():
            continue
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            pass
        finally:
            os.close(descriptor)
