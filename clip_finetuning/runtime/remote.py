"""File systems behind URLs (`s3://`, `gs://`, ...), through fsspec: each has errors of its own, here they are one kind."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from clip_finetuning.runtime.resuming import is_temporary

T = TypeVar("T")
WAITS = (1.0, 2.0, 4.0)  # seconds before each further attempt, beyond those of the file system itself
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# What botocore and aiohttp call a connection that ended before its answer; they are no OSErrors, and not always here.
BROKEN_OFF = ("HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError")
HINTS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket, and "
    "AWS_ENDPOINT_URL where the server is not Amazon's"
}


class RemoteError(OSError):
    """What a file system says; `temporary`: another attempt may go well."""

    def __init__(self, message: str, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


def file_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system of a URL, path in it). Raises ValueError if it needs a package or is not known."""
    try:
        from fsspec.core import url_to_fs

        _outlive_forks()
        with explained(url):
            return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}; install fsspec and the package of this protocol, such as s3fs") from None
    except ValueError as error:
        raise ValueError(f"{url}: {error}; fsspec must know the protocol of an output URL") from None


@functools.cache
def _outlive_forks() -> None:
    """Let workers have an event loop of their own: with fsspec of 2024 they would wait for ever for their parent's thread."""
    import fsspec.asyn

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Any error of a file system but a file that is not there becomes a RemoteError that says what to do."""
    try:
        yield
    except (FileNotFoundError, RemoteError, ImportError, ValueError):
        raise
    except Exception as error:  # botocore's and aiohttp's are no OSErrors; these were tried again by the file system
        hint = HINTS.get(url.partition(":")[0], "")
        text = " ".join(str(error).split()) or type(error).__name__
        temporary = isinstance(error, OSError) and not isinstance(error, PERMANENT)
        temporary = temporary or any(kind.__name__ in BROKEN_OFF for kind in type(error).__mro__)
        raise RemoteError(f"{url}: {text}" + (f"; {hint}" if hint else ""), temporary) from error


def patiently(url: str, call: Callable[[], T], waits: Sequence[float] | None = None) -> T:
    """`call()`, again after an error that may pass. Raises FileNotFoundError and RemoteError."""
    waits = WAITS if waits is None else waits
    for wait in (*waits, None):
        try:
            with explained(url):
                return call()
        except OSError as error:
            if wait is None or not is_temporary(error):
                raise
            time.sleep(wait)
    raise AssertionError("unreachable")


class RemoteFile:
    """What `ResumingStream` connects to: a file from any byte on, as long as it is the same."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, self._path = file_system(url)
        self._version: tuple[Any, ...] | None = None

    def __call__(self, position: int) -> RemoteBody:
        """Open it. Raises OSError."""
        with explained(self.url):
            if self._version:
                self._files.invalidate_cache()
            details = self._files.info(self._path)
            version = details.get("size"), details.get("ETag")
            if self._version not in (None, version):
                raise RemoteError(f"{self.url} changed while it was read", temporary=False)
            self._version = version
            file = self._files.open(self._path, "rb")
            if position:
                file.seek(position)
        return RemoteBody(self.url, file, position, version[0])


class RemoteBody:
    """The bytes of an open file. Raises RemoteError, also where they end before the size that was announced."""

    def __init__(self, url: str, file: Any, position: int, size: int | None) -> None:
        self._url, self._file, self._left = url, file, None if size is None else size - position

    def read(self, size: int) -> bytes:
        if not size:
            return b""
        try:
            with explained(self._url):
                data = self._file.read(size)
        except RemoteError as error:
            raise RemoteError(str(error), temporary=True) from error
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise RemoteError(f"{self._url}: ended {self._left:,} bytes early", temporary=True)
        return data

    def close(self) -> None:
        with explained(self._url):
            self._file.close()
