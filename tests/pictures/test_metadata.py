"""What goes with a picture - texts, profiles, thumbnails - does not cost it, nor much memory, however broken or large."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.model import preprocessing
from clip_finetuning.pictures.decode import PictureError, load_picture, to_jpeg
from clip_finetuning.pictures.metadata import without_metadata


def photo(size=(60, 40)):
    corners = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def encoded(file_format, **options):
    buffer = io.BytesIO()
    photo().save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind, data, checksum=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum or zlib.crc32(kind + data))


def segment(number, data):
    return bytes([0xFF, 0xE0 + number]) + struct.pack(">H", len(data) + 2) + data


PNG, JPEG = encoded("PNG"), encoded("JPEG", quality=95)
WEBP = encoded("WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0", icc_profile=b"x" * 300, xmp=b"y" * 500)
LARGE = zlib.compress(b"\0" * 3_000_000)


def in_png(*chunks, behind=False):
    place = len(PNG) - 12 if behind else 33
    return PNG[:place] + b"".join(chunks) + PNG[place:]


def in_jpeg(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


BROKEN = {
    "large text": in_png(chunk(b"zTXt", b"k\0\0" + LARGE)),
    "large international text": in_png(chunk(b"iTXt", b"k\0\1\0\0\0" + LARGE)),
    "large text behind the pixels": in_png(chunk(b"zTXt", b"k\0\0" + LARGE), behind=True),
    "many texts": in_png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 1_000_000))] * 70),
    "text with a wrong checksum": in_png(chunk(b"tEXt", b"k\0v", 1)),
    "text of an unknown method": in_png(chunk(b"zTXt", b"k\0\7abc")),
    "text cut": in_png(chunk(b"tEXt", b"k\0" + b"v" * 1000), behind=True)[:-500],
    "large profile": in_png(chunk(b"iCCP", b"k\0\0" + LARGE)),
    "profile of an unknown method": in_png(chunk(b"iCCP", b"k\0\7abc")),
    "empty profile": in_png(chunk(b"iCCP", b"")),
    "Exif that is none": in_png(chunk(b"eXIf", b"garbage")),
    "short facts": in_png(*(chunk(kind, b"") for kind in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"acTL"))),
    "no end": PNG[:-12],
    "JPEG profile": in_jpeg(segment(2, b"ICC_PROFILE\0")),
    "JPEG profile and Exif": in_jpeg(segment(1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), segment(2, b"ICC_PROFILE\0")),
    "JPEG other pictures": in_jpeg(segment(2, b"MPF\0garbage")),
    "JPEG resolution": in_jpeg(segment(13, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\xff\xff")),
    "JPEG colours": in_jpeg(segment(14, b"Adobe")),
    "JPEG size of a dot": JPEG[:2] + segment(0, b"JFIF\0") + JPEG[20:],
    "WebP cut behind the pixels": WEBP[:-300],
    "WebP of a wrong size": WEBP[:4] + struct.pack("<I", 99_999) + WEBP[8:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_picture_is_there(name):
    with Image.open(io.BytesIO(JPEG if name.startswith("JPEG") else PNG)) as picture:
        expected = np.asarray(picture.convert("RGB"))
    for read in (load_picture, preprocessing.decode):
        assert np.array_equal(np.asarray(read(BROKEN[name])), expected)
    assert to_jpeg(BROKEN[name], 95)[0]


def test_a_text_that_unpacks_to_a_gigabyte_takes_no_memory():
    texts = [chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 50_000_000))] * 20
    data = in_png(*texts, behind=True)
    tracemalloc.start()
    load_picture(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000 + 3 * len(data)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_the_rotation_stays(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(file_format, exif=exif)
    broken = {
        "PNG": lambda: data[:33] + chunk(b"tEXt", b"k\0v", 1) + data[33:],
        "JPEG": lambda: data[:2] + segment(2, b"ICC_PROFILE\0") + data[2:],
        "WEBP": lambda: data[:4] + struct.pack("<I", 99_999) + data[8:],
    }[file_format]()
    assert load_picture(broken).size == load_picture(data).size == (40, 60)


@pytest.mark.parametrize("data", [PNG[:200], JPEG[:300], WEBP[:100]])
def test_pixels_that_are_cut_stay_damaged(data):
    with pytest.raises(PictureError, match="truncated or damaged image"):
        load_picture(data)


def test_nothing_to_leave_out():
    assert without_metadata(PNG) is None and without_metadata(b"GIF89a") is None
    assert without_metadata(in_png(chunk(b"tEXt", b"k\0v"))) == PNG
    assert without_metadata(in_jpeg(segment(2, b"ICC_PROFILE\0"), segment(5, b"x"))) == JPEG
