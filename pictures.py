"""Any picture a catalogue may hold -> RGB, or a reason why not.

Transparency is laid on white, as shops show their products; EXIF rotation is applied; grey, CMYK, palette and 16-bit
pictures become 8-bit RGB; of an animation the first frame counts.
"""

import io
import os
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # more is a decompression bomb or a scan that belongs scaled down first


class PictureError(ValueError):
    """A picture that cannot be used; `.reason` is one of a few fixed wordings, for counting."""

    def __init__(self, reason, detail=""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_source(image_path):
    """The encoded bytes of a picture file, or of one row of an HDF5 file: `fashiongen.h5#123`."""
    path, mark, row = image_path.rpartition("#")
    if mark and row.isdigit() and path.endswith((".h5", ".hdf5")):
        return _read_hdf5_row(path, int(row))
    try:
        with open(image_path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise PictureError("missing image", image_path) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PictureError("unreadable file", f"{image_path} ({error})") from error


def load_picture(data):
    """Encoded bytes -> RGB picture. Raises PictureError."""
    if not data:
        raise PictureError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb is refused below, by our own limit
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError("decompression bomb", f"{picture.width} x {picture.height} pixels")
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("not an image") from error
    except Image.DecompressionBombError as error:
        raise PictureError("decompression bomb") from error
    except Exception as error:  # a damaged file may fail anywhere inside a decoder
        raise PictureError("truncated or damaged image", str(error)) from error


def to_rgb(picture):
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


def _sixteen_bit_to_grey(picture):
    """PIL's own conversion clips instead of scaling: 16-bit photos would come out white."""
    import numpy as np

    values = np.asarray(picture, dtype=np.float64)
    scale = 257.0 if values.max() > 255 else 1.0
    return Image.fromarray(np.clip(values / scale + 0.5, 0, 255).astype(np.uint8))


def _read_hdf5_row(path, row):
    if not os.path.isfile(path):
        raise PictureError("missing image", path)
    import h5py

    with h5py.File(path, "r") as file:
        images = file["input_image"]
        if row >= len(images):
            raise PictureError("missing image", f"{path} has {len(images)} rows, not row {row}")
        encoded = io.BytesIO()
        Image.fromarray(images[row]).save(encoded, "PNG")
        return encoded.getvalue()
