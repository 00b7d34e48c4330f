"""A stream that goes on at the same byte after its connection broke."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt; what arrives starts them anew
UNREACHED = 2  # of these attempts, where nothing ever arrived: a server that is not there is said soon
PATIENCE = 300.0  # seconds; a server that asks for more is asked again by the next run


class ResumingStream(io.RawIOBase):
    """Reads what `connect(position)` opens: a stream whose first byte is that of `position`.

    Opened at once. An OSError of opening or reading is tried again after `waits`, unless its attribute `temporary` is
    False; its `wait`, in seconds, is what the server asks for. `sleep` gets the seconds and the error. Raises the last one.
    """

    def __init__(
        self,
        connect: Callable[[int], Any],
        waits: Sequence[float] | None = None,
        sleep: Callable[[float, OSError], object] | None = None,
    ) -> None:
        self._connect, self._waits, self._sleep = connect, waits, sleep or _sleep
        self._stream: Any = None
        self._given_up: OSError | None = None
        self._position = 0
        self._attempt(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._attempt(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _attempt(self, size: int) -> bytes:
        if self._given_up:
            raise self._given_up
        waits = WAITS if self._waits is None else self._waits
        attempts = 0
        while True:
            try:
                if self._stream is None:
                    self._stream = self._connect(self._position)
                return self._stream.read(size)
            except OSError as error:
                self._drop()
                wait = getattr(error, "wait", None) or 0.0
                allowed = len(waits) if self._position or getattr(error, "answered", True) else UNREACHED
                if not is_temporary(error) or attempts >= allowed or wait > PATIENCE:
                    self._given_up = error
                    raise
                self._sleep(max(wait, waits[attempts]), error)
                attempts += 1

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _sleep(seconds: float, error: OSError) -> None:
    time.sleep(seconds)


def is_temporary(error: OSError) -> bool:
    """Whether another attempt may go well."""
    return getattr(error, "temporary", not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError))
