"""Encoded pictures -> uint8 tensors of the model's size, with the geometry of open_clip's own preprocessing.

uint8 all the way: a quarter of the bytes to collate, send and copy, and torch's uint8 resize is 3.6 times as fast as
PIL's. `normalize` makes floats of a whole batch, on the device. In evaluation the pixels are within 2 of 255 levels of
open_clip's.
"""

import io
import math
import random
import warnings
from collections.abc import Sequence

import numpy as np
import PIL
import torch
from PIL import Image

from clip_finetuning.pictures.decode import load_picture

try:
    import simplejpeg
except ImportError:  # PIL decodes the same pixels, in 1.4 times the time
    simplejpeg = None

# Since 13, Pillow resizes the height first where it loses more than twice as many pixels as the width; the rounding
# between the two passes makes their order worth up to 9 levels.
HEIGHT_MAY_BE_FIRST = int(PIL.__version__.split(".")[0]) >= 13
RATIO = (3 / 4, 4 / 3)  # width to height of a training crop, relative to the picture's own pixels (torchvision's range)


class ImageTransform:
    """A picture's bytes -> uint8 tensor (3, H, W), in memory (H, W, 3).

    Keywords are those of open_clip's preprocessing config; `size` is one number or (height, width). In training: a
    random crop of at least `crop_scale` of the area, resized by bicubic interpolation with antialiasing, as torchvision's
    RandomResizedCrop in open_clip. In evaluation, and in training with `crop_scale=1`: "shortest" (resize, cut the middle
    out), "longest" (resize, pad with `fill_color`) or "squash". `flip` lets training mirror half of the pictures.
    `reduced_decode` lets training decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never below twice the model's: much
    faster for photos, not the same pixels.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str = "bicubic",
        resize_mode: str = "shortest",
        fill_color: int = 0,
        *,
        train: bool,
        crop_scale: float = 0.9,
        flip: bool = False,
        reduced_decode: bool = False,
    ):
        if resize_mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize_mode={resize_mode!r} is not one of shortest, longest, squash")
        height, width = (size, size) if isinstance(size, int) else size
        self.size = (height, width)
        self.mean, self.std = mean, std
        self.resize_mode, self.fill_color = resize_mode, fill_color
        # open_clip trains with bicubic whatever the config says, and so it does for "shortest" to a size that is no square
        self.crops = train and crop_scale < 1
        always_bicubic = self.crops or (resize_mode == "shortest" and self.size[0] != self.size[1])
        self.interpolation = "bilinear" if interpolation == "bilinear" and not always_bicubic else "bicubic"
        self.crop_scale = crop_scale
        self.flips = train and flip
        self.reduced_decode = reduced_decode and train

    def __call__(self, data: bytes, seed: int | None = None) -> torch.Tensor:
        """`seed` fixes the training crop and the mirroring (None: fresh ones). Raises pictures.PictureError."""
        smallest = 2 * max(self.size) if self.reduced_decode else None
        pixels = decode(data, smallest)
        if not (self.crops or self.flips):
            return self._whole(pixels)
        chance = random.Random(seed)
        image = self._crop(pixels, chance) if self.crops else self._whole(pixels)
        return _mirrored(image) if self.flips and chance.random() < 0.5 else image

    def _crop(self, pixels: np.ndarray, chance: random.Random) -> torch.Tensor:
        height, width, _ = pixels.shape
        top, left, height, width = random_crop_box(height, width, (self.crop_scale, 1.0), chance)
        return self._resize(pixels[top : top + height, left : left + width], self.size)

    def _whole(self, pixels: np.ndarray) -> torch.Tensor:
        if self.resize_mode == "squash":
            return self._resize(pixels, self.size)
        return self._center(self._resize(pixels, self._whole_size(*pixels.shape[:2])))

    @property
    def what_it_does(self) -> str:
        """What becomes of a picture, in a line."""
        (height, width), whole = self.size, {"squash": "squashed", "longest": "padded", "shortest": "its middle"}
        if self.crops:
            done = f"a random crop of {self.crop_scale:g} to 1 of the area, to {height} x {width}"
        else:
            done = f"whole, {whole[self.resize_mode]} to {height} x {width} as in evaluation"
        decoded = ", decoded at a fraction of its size where it is large" if self.reduced_decode else ""
        return f"{done}{', half of them mirrored' if self.flips else ''}{decoded}"

    def _whole_size(self, height: int, width: int) -> tuple[int, int]:
        """What the whole picture is resized to before its middle is taken; rounding as in torchvision and timm."""
        target_height, target_width = self.size
        if self.resize_mode == "shortest" and target_height == target_width:
            short = min(height, width)
            return int(target_height * height / short), int(target_width * width / short)
        pick = max if self.resize_mode == "longest" else min
        ratio = pick(height / target_height, width / target_width)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _resize(self, pixels: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        # The new axis goes in front before the others move: only so does torch see channels_last, and keep it, which
        # spares a third of the time at 256 pixels.
        image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
        if self._height_first(pixels.shape[:2], size):
            between = (size[0], pixels.shape[1])
            image = torch.nn.functional.interpolate(image, between, mode=self.interpolation, antialias=True)
        return torch.nn.functional.interpolate(image, size, mode=self.interpolation, antialias=True)[0]

    def _height_first(self, size: tuple[int, ...], new_size: tuple[int, int]) -> bool:
        """Evaluation does as Pillow does. Crops take the faster way: left alone, torch resizes the width first, which
        takes a quarter longer for photos; rounding in between makes 0.14 levels of difference on the average.
        """
        (height, width), (new_height, new_width) = size, new_size
        if self.crops:
            return height > 2 * new_height
        return HEIGHT_MAY_BE_FIRST and height - new_height > 2 * max(0, width - new_width)

    def _center(self, image: torch.Tensor) -> torch.Tensor:
        """Cut or pad (3, H, W) to the model's size around the middle."""
        height, width = self.size
        down, across = height - image.shape[1], width - image.shape[2]
        if down > 0 or across > 0:
            down, across = max(down, 0), max(across, 0)
            edges = (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)
            image = torch.nn.functional.pad(image, edges, value=self.fill_color)
        top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
        return image[:, top : top + height, left : left + width]


def _mirrored(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) with left and right changed; in memory (H, W, 3) like the others."""
    return image.permute(1, 2, 0).flip(1).permute(2, 0, 1)


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float32 of the same shape, contiguous: (pixel / 255 - mean) / std for each channel."""
    means, stds = (
        torch.as_tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1) for values in (mean, std)
    )
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.mul_(1 / (255 * stds)).sub_(means / stds)


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], generator: random.Random
) -> tuple[int, int, int, int]:
    """(top, left, height, width) with the distribution of torchvision's RandomResizedCrop.get_params."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = generator.randint(0, height - crop_height), generator.randint(0, width - crop_width)
            return top, left, crop_height, crop_width
    # no such box fits: the largest one of a ratio in range, in the middle
    crop_height, crop_width = height, width
    if width / height < RATIO[0]:
        crop_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        crop_width = round(height * RATIO[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def decode(data: bytes, smallest: int | None = None) -> np.ndarray:
    """Encoded picture -> uint8 RGB array (H, W, 3), the pixels of PIL. Raises pictures.PictureError.

    `smallest` allows a large JPEG to come out smaller, its sides no shorter than that.
    """
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if _is_plain_jpeg(data, int(height) * int(width), colorspace):
                if smallest is None:
                    return simplejpeg.decode_jpeg(data)
                return simplejpeg.decode_jpeg(data, min_height=smallest, min_width=smallest, min_factor=2)
        except ValueError:
            pass  # PIL reads what can be read, or says what is wrong
    return np.array(load_picture(data, smallest and smallest // 2))


def _is_plain_jpeg(data: bytes, pixels: int, colorspace: str) -> bool:
    """Grey or YCbCr, not rotated by Exif, and no larger than PIL takes."""
    if colorspace not in ("YCbCr", "Gray", "RGB") or pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
        return False
    if not _has_exif(data):
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged Exif: a line for each picture
            return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) == 1  # the orientation tag
    except Exception:  # what a damaged segment may raise; `load_picture` makes the best of it
        return False


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments in front of a JPEG's first scan is Exif."""
    position = 2
    while data[position : position + 2] not in (b"\xff\xda", b""):
        if data[position : position + 2] == b"\xff\xe1" and data[position + 4 : position + 10] == b"Exif\0\0":
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
