"""Pictures without what is no picture: texts, colour profiles and thumbnails that a decoder stumbles over.

Pillow refuses a whole PNG for a text of more than a megabyte, a profile that is none or a wrong checksum in either, and a
WebP that breaks off behind its pixels. What tells the rotation (Exif) stays wherever it is whole.
"""

import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
OF_PNG = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # what makes the pixels of the first frame
OF_WEBP = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"EXIF")
HAS_PROFILE, HAS_EXIF, HAS_XMP = 0x20, 0x08, 0x04  # flags of a WebP's VP8X
APP0, APP1, APP14, APP15, COMMENT, SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA  # markers of a JPEG
SHORTEST = {APP0: 14, APP14: 12}  # bytes of a JFIF and an Adobe segment that say all they have to say


def without_metadata(data: bytes) -> bytes | None:
    """The same picture without texts and profiles; None where there are none, pixels are cut, or for another format."""
    if data.startswith(PNG):
        chunks = list(_png_chunks(data))
        if any(len(chunk) < 12 + int.from_bytes(chunk[:4], "big") for chunk in chunks):
            return None
        bare = PNG + b"".join(chunks)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        bare = _webp(data)
    elif data.startswith(b"\xff\xd8"):
        bare = b"\xff\xd8" + b"".join(_jpeg_segments(data))
    else:
        return None
    return None if bare == data else bare


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks that make the pixels, and an end if it is missing."""
    position = len(PNG)
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + size]
        position += 12 + size
        if kind == b"IEND":
            break
        if kind in OF_PNG or (kind == b"eXIf" and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))):
            yield chunk
    yield struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def _webp(data: bytes) -> bytes:
    """The RIFF file of the chunks that make the pixels."""
    extended, chunks, position = None, [], 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        chunk = data[position : position + 8 + size + size % 2]
        position += len(chunk)
        if kind == b"VP8X" and len(chunk) == 18:
            extended = chunk
        elif kind in OF_WEBP and (kind != b"EXIF" or len(chunk) >= 8 + size):
            chunks.append(chunk)
    if extended is not None:
        has_exif = any(chunk.startswith(b"EXIF") for chunk in chunks)
        flags = extended[8] & ~(HAS_PROFILE | HAS_EXIF | HAS_XMP) | (HAS_EXIF if has_exif else 0)
        chunks.insert(0, extended[:8] + bytes([flags]) + extended[9:])
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """All but application segments and comments; of these those that tell the rotation or how colours are coded."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != SCAN:
        marker, size = data[position + 1], 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if (
            marker == APP1
            or size - 4 >= SHORTEST.get(marker, size)
            or not (APP0 <= marker <= APP15 or marker == COMMENT)
        ):
            yield data[position : position + size]
        position += size
    yield data[position:]
