"""One picture from the web: its bytes, or the reason why there is none; and the name of its file."""

import hashlib
import re
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from clip_finetuning.pictures.decode import PictureError, load_picture
from clip_finetuning.runtime.http import AT_ONCE, SCHEMES, HttpError, HttpFile, scheme_of
from clip_finetuning.runtime.resuming import ResumingStream

WAITS = (1.0, 2.0, 4.0)  # seconds before each further attempt
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2"}
READABLE = 60  # letters of the URL that are kept in a file's name
START_OF_HTML = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype html|!--|html|head|body|script|meta|title)", re.IGNORECASE
)


def file_name(url: str) -> str:
    """The name of a URL's file, the same everywhere: what is readable of the URL, and a hash of all of it.

    It has letters, digits, `-`, `_` and `.` alone, begins with a letter or digit, and is no other URL's.
    """
    try:
        last = PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError:
        last = ""
    stem, suffix = PurePosixPath(last).stem, PurePosixPath(last).suffix.lower()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:READABLE] or "picture"
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return f"{stem}-{digest}{suffix if suffix in SUFFIXES else ''}"


def absolute(url: str) -> str:
    """A URL as web pages write it, `//cdn.shop.example/1.jpg`, with its scheme; without the place in a page, `#top`."""
    url = url.partition("#")[0]
    return f"https:{url}" if url.startswith("//") else url


def fetch_picture(url: str, most_bytes: int, sleep: Callable[[float, OSError], object] | None = None) -> bytes:
    """The bytes of a picture. Raises HttpError, after the attempts that may help."""
    if scheme_of(url) not in SCHEMES:
        raise HttpError("not an http or https URL", url)
    file = HttpFile(url)
    with ResumingStream(file, WAITS, sleep) as stream:
        if (file.length or 0) > most_bytes:
            raise too_large(most_bytes)
        data = bytearray()
        while len(data) <= most_bytes and (part := stream.read(AT_ONCE)):
            data += part
    data = _unpacked(bytes(data), most_bytes)
    if len(data) > most_bytes:
        raise too_large(most_bytes)
    check_picture(data)
    return data


def too_large(most_bytes: int) -> HttpError:
    return HttpError(f"larger than {most_bytes / 1e6:g} MB (--download-limit)")


def check_picture(data: bytes) -> None:
    """Raises HttpError for what is no picture; `temporary` for one that may have been damaged on its way."""
    if START_OF_HTML.match(data) or b"<html" in data[:1000].lower():
        raise HttpError("a web page instead of a picture", _beginning(data))
    if (
        data[4:8] == b"ftyp"
    ):  # HEIC and AVIF: whether they can be read is for the shards to say, on another machine perhaps
        return
    try:
        load_picture(data)
    except PictureError as error:
        raise HttpError(error.reason, _beginning(data), temporary=error.reason != "not an image") from error


def _unpacked(data: bytes, most_bytes: int) -> bytes:
    """Of a server that compresses what need not be."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, most_bytes + 1)
    except zlib.error:
        return data


def _beginning(data: bytes) -> str:
    return "it begins with " + ascii(data[:40])[1:]
