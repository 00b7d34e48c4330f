"""Any picture a catalogue may hold -> RGB or JPEG, or a reason why not.

Transparency is laid on white, as shops show their products; EXIF rotation is applied; grey, CMYK, palette and 16-bit
pictures become 8-bit RGB; of an animation the first frame counts. A JPEG that needs none of this stays as it is.
"""

import io
import os
import stat
import warnings

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from clip_finetuning.pictures.formats import missing_reader, special_format
from clip_finetuning.pictures.jpeg_markers import plain_jpeg_size
from clip_finetuning.pictures.metadata import without_metadata
from clip_finetuning.pictures.stored import read_stored, stored_row

MAX_PIXELS = 100_000_000  # more is a decompression bomb or a scan that belongs scaled down first
BOMB, DAMAGED = "decompression bomb", "truncated or damaged image"
NEAR_WHITE = 240  # a border pixel with all channels at least this bright is background
SMALLEST_CROP = 4  # a crop keeps at least this fraction (1/n) of each side: a white shirt may leave only its label


class PictureError(ValueError):
    """A picture that cannot be used; `.reason` is one of a few fixed wordings, for counting."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_source(image_path: str, folder: str | os.PathLike | None = None) -> bytes:
    """The encoded bytes of a picture file, or of one row of a file: `fashiongen.h5#123`. Raises PictureError.

    With a `folder`, files outside it are refused, links followed.
    """
    row = stored_row(image_path)
    try:
        if folder is not None and not lies_in(folder, row.file if row else image_path):
            raise PictureError("image outside --data-dir (--allow-outside takes it)", image_path)
        if row:
            return read_stored(row)
        # Asked before opening: a pipe would block, /dev/zero never end.
        if not stat.S_ISREG(os.stat(image_path).st_mode):
            raise PictureError("missing image" if os.path.isdir(image_path) else "not a file", image_path)
        with open(image_path, "rb", buffering=0) as file:
            return file.readall()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureError("missing image", image_path) from error
    except PictureError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        raise PictureError("unreadable file", f"{image_path!r} ({error})") from error


def lies_in(folder: str | os.PathLike, path: str | os.PathLike) -> bool:
    """Whether a file lies in a folder, links followed."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))


def load_picture(data: bytes, shorter_side: int | None = None) -> Image.Image:
    """Encoded bytes -> RGB picture. Raises PictureError.

    `shorter_side` lets a JPEG of more than four times that size come out at a fraction, of twice that size at least.
    """
    if not data:
        raise PictureError("empty file")
    if missing := missing_reader(data):
        raise PictureError(missing)
    try:
        return _decoded(data, shorter_side)
    except PictureError as error:
        bare = None if error.reason == BOMB else without_metadata(data)
        if bare is None:
            raise
        try:
            return _decoded(bare, shorter_side)
        except PictureError:
            raise error from None


def _decoded(data: bytes, shorter_side: int | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb is refused below, by our own limit
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError(BOMB, f"{picture.width} x {picture.height} pixels")
            if shorter_side is not None and min(picture.size) > 4 * shorter_side:
                scale = 2 * shorter_side / min(picture.size)  # twice the size that is wanted keeps its sharpness
                picture.draft("RGB", (int(picture.width * scale), int(picture.height * scale)))
            picture.load()
            return to_rgb(_turned(picture))
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(DAMAGED if special_format(data) else "not an image") from error
    except Image.DecompressionBombError as error:
        raise PictureError(BOMB) from error
    except Exception as error:  # a damaged file may fail anywhere inside a decoder
        raise PictureError(DAMAGED, str(error)) from error


def to_jpeg(data: bytes, quality: int, shorter_side: int | None = None, crop: bool = False) -> tuple[bytes, bool]:
    """Encoded bytes of any picture -> (JPEG bytes, whether they are `data` itself). Raises PictureError.

    `shorter_side` bounds the picture's size in pixels and never enlarges; `crop` cuts near-white borders off first.
    A plain JPEG that neither of them changes is not encoded anew.
    """
    plain = plain_jpeg_size(data)
    fits = plain is not None and plain[0] * plain[1] <= MAX_PIXELS and min(plain) <= (shorter_side or MAX_PIXELS)
    if fits and not crop:
        return data, True
    picture = load_picture(data, None if crop else shorter_side)
    box = content_box(picture) if crop else None
    if fits and box is None:
        return data, True
    if box:
        picture = picture.crop(box)
    encoded = io.BytesIO()
    bounded(picture, shorter_side).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue(), False


def bounded(picture: Image.Image, shorter_side: int | None) -> Image.Image:
    """The picture with its shorter side scaled down to `shorter_side` pixels; a smaller one, or None, changes nothing."""
    shorter = min(picture.size)
    if shorter_side is None or shorter <= shorter_side:
        return picture
    width, height = (max(1, round(side * shorter_side / shorter)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def content_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """The box (left, top, right, bottom) of an RGB picture without its near-white borders; None if there are none.

    The box is widened towards a square as far as the picture reaches: models crop the centre square, and a cut close
    around a dress would cost its hem. A picture that is white all over has no borders.
    """
    red, green, blue = picture.split()
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    box = darkest.point([255] * NEAR_WHITE + [0] * (256 - NEAR_WHITE)).getbbox()
    if box is None:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    left, right = _widened(box[0], box[2], side, picture.width)
    top, bottom = _widened(box[1], box[3], side, picture.height)
    box = (left, top, right, bottom)
    return None if box == (0, 0, *picture.size) else box


def _widened(begin: int, end: int, least: int, size: int) -> tuple[int, int]:
    """A stretch of at least `least` pixels around begin..end, within 0..size."""
    least = min(max(least, -(-size // SMALLEST_CROP)), size)
    begin = min(begin, max(0, (begin + end - least) // 2))
    begin = max(0, min(begin, size - least))
    return begin, max(end, begin + least)


def _turned(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF rotation shows it; damaged EXIF does not cost the picture."""
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:
        return picture
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture of any mode -> RGB on white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return _sixteen_bit_to_grey(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _sixteen_bit_to_grey(picture: Image.Image) -> Image.Image:
    """PIL's own conversion clips instead of scaling: 16-bit photos would come out white."""
    import numpy as np

    values = np.asarray(picture, dtype=np.float64)
    scale = 257.0 if picture.mode.startswith("I;16") or values.max() > 255 else 1.0
    return Image.fromarray(np.clip(values / scale + 0.5, 0, 255).astype(np.uint8))
