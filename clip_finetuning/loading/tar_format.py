"""The files in an uncompressed tar, one archive after the other, as far as it is one: the same for local shards and streams.

tarfile reads the same formats but takes ten times as long for each header, ends at the first end marker although another
archive may follow it (`cat a.tar b.tar`), and takes a file that breaks off between two headers for a whole one.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_NAME = 1 << 20  # bytes of a header that tells a name
CHUNK = 1 << 16  # bytes that a stream passes over at once
REGULAR, LONG_NAME, EXTENDED, NO_DATA = b"0\0007", b"L", b"x", b"123456"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
TRUNCATED, DAMAGED = "truncated shard", "damaged shard"
AFTER_END = "what follows the end of the tar is no tar, and is not read"


class Member(NamedTuple):
    """Where the bytes of a file in a tar lie."""

    offset: int
    size: int


class ShardDamage(Exception):
    """A tar that ends, or turns into something else, before its end marker; `.member`: the name of a file cut short.

    With the reason AFTER_END the tar is whole, and something else follows it.
    """

    def __init__(self, reason: str, member: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.member = reason, member


class ForwardFile:
    """A stream as a file that can be sought forward alone; what it passes over is read and dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._position = stream, 0

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only at the end."""
        data = self._stream.read(size)
        if len(data) < size:
            parts, missing = [data], size - len(data)
            while missing and (more := self._stream.read(min(CHUNK, missing))):
                parts.append(more)
                missing -= len(more)
            data = b"".join(parts)
        self._position += len(data)
        return data

    def seek(self, offset: int) -> None:
        while self._position < offset and self.read(min(CHUNK, offset - self._position)):
            pass


def tar_members(file: Any, path: str, end: int | None = None) -> Iterator[tuple[str, Member]]:
    """(name, Member) of the regular files in a tar (ustar, GNU or pax), and in those that follow it.

    `end` is the size of the file where it is known; of a stream, the caller notices a file cut short. Raises ShardDamage,
    and ValueError for what is no tar.
    """
    offset, next_name, next_size = 0, None, None
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if header == ZEROS:
            offset, header = _after_zeros(file, offset)
            if not header:
                return
            if len(header) < BLOCK or not _is_header(header):
                raise ShardDamage(AFTER_END)
        if len(header) < BLOCK:
            raise ShardDamage(TRUNCATED)
        size = _size(header)
        if size is None or not _is_header(header):
            if offset == 0:
                raise ValueError(_no_tar_message(path, header))
            raise ShardDamage(DAMAGED)
        kind = header[156:157]
        data = offset + BLOCK
        if kind in REGULAR:
            size = size if next_size is None else next_size
            name = next_name or _name(header)
            if end is not None and data + size > end:
                raise ShardDamage(TRUNCATED, name)
            yield name, Member(data, size)
            next_name, next_size = None, None
        elif end is not None and data + size > end and kind not in NO_DATA:
            raise ShardDamage(TRUNCATED)
        elif kind in (LONG_NAME, EXTENDED) and size > MAX_NAME:
            raise ShardDamage(DAMAGED)
        elif kind == LONG_NAME:
            next_name = file.read(size).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == EXTENDED:
            records = _extended_records(file.read(size))
            next_name, next_size = records.get("path", next_name), records.get("size")
        if kind in NO_DATA:  # links and folders
            size, next_name, next_size = 0, None, None
        offset = data + (size + BLOCK - 1) // BLOCK * BLOCK


def _after_zeros(file, offset):
    """(offset, block) of the first block behind an end marker that is not all zeros; an empty block at the end."""
    block = ZEROS
    while block == ZEROS:
        offset += BLOCK
        block = file.read(BLOCK)
    return offset, b"" if not block.strip(b"\0") else block


def _is_header(header):
    if header[257:262] == b"ustar":
        return True
    stored = header[148:156].strip(b"\0 ")  # the old format has no magic word, only a checksum
    return stored.isdigit() and int(stored, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _size(header):
    """The size field, octal or (from 8 GiB) base 256, or None if it is neither."""
    field = header[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _name(header):
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _extended_records(data):
    """`path` and `size` of a pax header, whose records are `LENGTH KEY=VALUE` lines."""
    records = {}
    while data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"path":
            records["path"] = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit():
            records["size"] = int(value)
        data = data[int(length) :]
    return records


def _no_tar_message(path, header):
    if header.startswith(COMPRESSED):
        return (
            f"{path} is compressed, and pictures gain nothing by that; unpack it, or stream it: 'pipe:gzip -dc {path}'"
        )
    return f"{path} is not a tar file"
