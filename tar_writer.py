"""Tar files (ustar, POSIX.1-1988) whose bytes depend on names and contents alone.

`tarfile` takes longer for three small members than it takes to read and check a JPEG, and its headers differ among
versions of Python. Time and owner are 0 here.
"""

import hashlib

BLOCK, RECORD = 512, 10_240  # members fill whole blocks, a file whole records
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 156)
LONGEST_NAME, LARGEST = 100, 8**11 - 1


def _template():
    """A header without name and size: a plain file, mode 644; its checksum field counts as spaces."""
    header = bytearray(BLOCK)
    header[100:124] = b"0000644\0" + b"0000000\0" * 2  # mode, user, group
    header[136:148] = b"00000000000\0"  # time
    header[CHECKSUM] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\00000"
    return bytes(header)


TEMPLATE = _template()


class TarWriter:
    """Writes members to an open file; after `close`, `size` and `sha256` are those of the whole file."""

    def __init__(self, file):
        self.file, self.size = file, 0
        self._digest = hashlib.sha256()

    def add(self, files):
        """Append `files`, a dict of ASCII name -> bytes. Raises ValueError for what a header cannot hold."""
        self._write(b"".join(map(member, files, files.values())))

    def close(self):
        """Append the end of the archive: two empty blocks, and more up to a whole record."""
        self._write(bytes(2 * BLOCK + -(self.size + 2 * BLOCK) % RECORD))

    @property
    def sha256(self):
        return self._digest.hexdigest()

    def _write(self, data):
        self.file.write(data)
        self._digest.update(data)
        self.size += len(data)


def member(name, data):
    """A file as it lies in a tar: its header, its bytes, and zeros up to a whole block."""
    if len(name) > LONGEST_NAME or len(data) > LARGEST:
        raise ValueError(
            f"{name} ({len(data):,} bytes) does not fit in a tar: names have at most 100 letters, files 8 GiB"
        )
    header = bytearray(TEMPLATE)
    header[NAME] = name.encode("ascii").ljust(LONGEST_NAME, b"\0")
    header[SIZE] = b"%011o" % len(data)
    header[CHECKSUM] = b"%06o\0 " % sum(header)
    return b"%b%b%b" % (header, data, bytes(-len(data) % BLOCK))
