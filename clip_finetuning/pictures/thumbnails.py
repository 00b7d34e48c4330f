"""Small pictures for the pages that people read."""

import base64
import io

from clip_finetuning.pictures.decode import PictureError, load_picture


def data_url(data: bytes | None, side: int) -> str | None:
    """Encoded picture -> a JPEG of at most `side` pixels within an address; None if there is none or it cannot be read."""
    try:
        picture = load_picture(data or b"", side)
    except PictureError:
        return None
    picture.thumbnail((side, side))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
