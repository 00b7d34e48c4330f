"""Tar files (ustar, POSIX.1-1988) whose bytes depend on names and contents alone.

`tarfile` takes longer for three small members than it takes to read and check a JPEG, and its headers differ among
versions of Python. Time and owner are 0 here.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

BLOCK, RECORD = 512, 10_240  # members fill whole blocks, a file whole records
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 156)
LONGEST_NAME, LARGEST = 100, 8**11 - 1
AT_ONCE = 1 << 22  # bytes that are hashed and written together


def _template() -> bytes:
    """A header without name and size: a plain file, mode 644; its checksum field counts as spaces."""
    header = bytearray(BLOCK)
    header[100:124] = b"0000644\0" + b"0000000\0" * 2  # mode, user, group
    header[136:148] = b"00000000000\0"  # time
    header[CHECKSUM] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\00000"
    return bytes(header)


TEMPLATE = _template()
TEMPLATE_SUM = sum(TEMPLATE)


class TarWriter:
    """A context that writes members to an open file; after it, `size` and `sha256` are those of the whole file.

    Hashing and writing need no GIL, so a thread does them while the next pictures are read. It also flushes to the disk
    as it goes, or the flush at the end of a file would take as long as making the next one.
    """

    def __init__(self, file: BinaryIO):
        self.size = 0
        self._file, self._digest = file, hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._thread = ThreadPoolExecutor(1)
        self._in_flight: Future[None] | None = None

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._thread:
            if error is None:
                # The end of an archive: two empty blocks, and more up to a whole record.
                self._append(bytes(2 * BLOCK + -(self.size + 2 * BLOCK) % RECORD))
                self._hand_over().result()

    def add(self, files: dict[str, bytes]) -> None:
        """Append `files`, a dict of ASCII name -> bytes. Raises ValueError for what a header cannot hold."""
        for name, data in files.items():
            self._append(header(name, len(data)))
            self._append(data)
            self._append(bytes(-len(data) % BLOCK))
        if self._waiting_bytes >= AT_ONCE:
            self._hand_over()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _append(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self.size += len(data)

    def _hand_over(self) -> Future[None]:
        if self._in_flight:
            self._in_flight.result()  # raises what went wrong in the thread, and bounds the memory
        self._in_flight = self._thread.submit(self._write, b"".join(self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        return self._in_flight

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


def header(name: str, size: int) -> bytes:
    """The block before a file of `size` bytes."""
    if len(name) > LONGEST_NAME or size > LARGEST:
        raise ValueError(f"{name} ({size:,} bytes) does not fit in a tar: names have at most 100 letters, files 8 GiB")
    name_field, size_field = name.encode("ascii"), b"%011o" % size
    block = bytearray(TEMPLATE)
    block[: len(name)] = name_field
    block[SIZE] = size_field
    block[CHECKSUM] = b"%06o\0 " % (TEMPLATE_SUM + sum(name_field) + sum(size_field))
    return bytes(block)
