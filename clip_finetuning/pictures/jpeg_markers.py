"""JPEG files that need no decoder: found by a walk over their markers (ITU-T T.81, annex B), in some 20 microseconds."""

import functools
import re
import struct
from collections.abc import Iterator

# Markers (table B.1)
SOF, DHT, EOI, SOS, DQT, DRI = (0xC0, 0xC1, 0xC2), 0xC4, 0xD9, 0xDA, 0xDB, 0xDD  # SOF: baseline, extended, progressive
ADOBE, APP1 = 0xEE, 0xE1
LUMA_SAMPLING = (0x11, 0x21, 0x12, 0x22, 0x41, 0x14, 0x42, 0x24)  # chroma at full, half or quarter size
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: neither a stuffed byte nor a restart
XMP_ROTATION = re.compile(rb'tiff:Orientation(="|>)[^1]')


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that any decoder shows as it is, else None. Nothing is decoded.

    That is: three 8-bit YCbCr components, baseline or progressive, no rotation, every table that a scan needs, a scan
    of every component, and an end marker as the last two bytes - a file cut anywhere has none there.
    """
    if not data.startswith(b"\xff\xd8\xff") or not data.endswith(b"\xff\xd9"):
        return None
    try:
        return _walk_jpeg(data)
    except (IndexError, struct.error):  # a segment that ends early
        return None


def _walk_jpeg(data: bytes) -> tuple[int, int] | None:
    size, tables, components, scanned = None, set(), {}, set()  # components: number -> quantisation table
    position = 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == EOI:
            complete = position + 2 == len(data) and scanned and scanned == set(components)
            return size if complete else None
        length = data[position + 2] << 8 | data[position + 3]
        body = data[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == SOS:
            first, last, high, low = body[-3], body[-2], body[-1] >> 4, body[-1] & 15
            if len(body) != 4 + 2 * body[0] or not first <= last <= 63 or low > 13 or high not in (0, low + 1):
                return None
            for component, needed in _scan_needs(body, components):
                if not needed <= tables:
                    return None
                scanned.add(component)
            following = NEXT_MARKER.search(data, position)
            if following is None:
                return None
            position = following.start()
        elif marker in SOF:
            precision, height, width, count = struct.unpack_from(">BHHB", body)
            components = {body[6 + 3 * n]: body[8 + 3 * n] for n in range(count)}
            sampling = [body[7 + 3 * n] for n in range(count)]
            if size or precision != 8 or count != 3 or not width * height or bytes(components) == b"RGB":
                return None
            if sampling[0] not in LUMA_SAMPLING or sampling[1:] != [0x11, 0x11]:
                return None
            size = (width, height)
        elif marker in (DQT, DHT):
            found = _tables(marker, body)
            if not found:
                return None
            tables |= found
        elif _needs_a_decoder(marker, body):
            return None
    return None


def _scan_needs(body: bytes, components: dict[int, int]) -> Iterator[tuple[int, set]]:
    """(component, its tables) for each component of a scan, from its SOS segment."""
    first, last = body[-3], body[-2]  # coefficients: 0 is DC, the others are AC
    for number in range(body[0]):
        component, selected = body[1 + 2 * number], body[2 + 2 * number]
        needed = {(DQT, components.get(component))}
        if first == 0:
            needed.add((DHT, selected >> 4))
        if last > 0:
            needed.add((DHT, 16 + (selected & 15)))
        yield component, needed


def _needs_a_decoder(marker: int, body: bytes) -> bool:
    """Whether a segment says that the picture is turned, no YCbCr, or coded in a way that few decoders know."""
    if marker == APP1:
        return not _upright(body)
    if marker == ADOBE:
        return body.startswith(b"Adobe") and body[11] != 1  # 1: YCbCr
    if marker == DRI:
        return len(body) != 2
    return marker <= 0xCF  # lossless, hierarchical, arithmetic coding, or unknown


@functools.lru_cache(maxsize=1024)  # the same tables come with every picture of a camera or program
def _tables(marker: int, body: bytes) -> set[tuple[int, int]]:
    """The tables of a DQT or DHT segment, as (marker, number), AC tables from 16; none if any of them is damaged."""
    found, position = set(), 0
    while position < len(body):
        first = body[position]
        if marker == DQT:
            found.add((DQT, first & 15))
            position += 1 + 64 * (1 + (first >> 4))
            continue
        counts = body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        room = 1.0 - sum(count / 2**bits for bits, count in enumerate(counts, 1))
        if room < 0 or (first < 16 and max(symbols, default=0) > 15):
            return set()
        found.add((DHT, first))
        position += 17 + sum(counts)
    return found if position == len(body) else set()


def _upright(app1: bytes) -> bool:
    """Whether an APP1 segment (EXIF or XMP) leaves the picture as it is stored; damaged EXIF says nothing of rotation."""
    if app1.startswith(b"http://ns.adobe.com/xap/"):
        return XMP_ROTATION.search(app1) is None
    if not app1.startswith(b"Exif\0\0"):
        return True
    tiff = app1[6:]
    order = "<" if tiff.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == 0x0112:
            return value == 1
    return True
