"""Small pictures for the pages that people read."""

import base64
import io

from PIL import Image

from clip_finetuning.pictures.decode import PictureError, load_picture


def thumbnail(data: bytes | None, side: int) -> Image.Image | None:
    """Encoded picture -> one of at most `side` pixels; None if there is none or it cannot be read: its name stands instead."""
    try:
        picture = load_picture(data or b"", side)
    except PictureError:
        return None
    picture.thumbnail((side, side))
    return picture


def jpeg_url(picture: Image.Image, quality: int = 80) -> str:
    """A picture as a JPEG within an address."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def data_url(data: bytes | None, side: int) -> str | None:
    """Encoded picture -> a JPEG of at most `side` pixels within an address, or None."""
    small = thumbnail(data, side)
    return small and jpeg_url(small)
