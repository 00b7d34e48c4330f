"""Pictures to prove an export on: some of the catalogue's own, and each of them in the other shapes that shops have.

A model's user sees files that no shard holds: cut-outs with transparency, scans in grey, prints in CMYK, photos of a
phone that lie on their side. Each kind is made of the catalogue's pictures, so that captions and products stay.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from clip_finetuning.loading import named_fields
from clip_finetuning.loading.local import LocalBatches
from clip_finetuning.loading.sample import USUAL, Fields, SampleError, ShardSample, parse_sample
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.source import Options
from clip_finetuning.loading.stream_reader import shard_samples
from clip_finetuning.loading.tar_index import TarIndex
from clip_finetuning.pictures.decode import PictureError, load_picture
from clip_finetuning.runtime.accounting import Skipped

ORIENTATION = 0x0112  # the Exif tag
# How to store a picture for each value of the tag, so that a viewer who obeys it shows the picture as it was.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
CATALOGUE, PLAIN = "the catalogue's", "plain"


class Pictures(NamedTuple):
    """Samples of the catalogue, and what of them could not be used."""

    samples: list[ShardSample]
    skipped: Counter[str]  # {reason: samples}
    guessed: Counter[str]  # {what was guessed: samples among those that are used}
    total: int  # samples of the shards; 0 where that is not known without reading them all


def read(pattern: str, count: int, fields: Fields = USUAL) -> Pictures:
    """`count` samples, spread evenly over local shards; of streamed ones the first. Raises ValueError if none is usable."""
    shards, lost = expand_pattern(pattern), []
    if any(map(is_url, shards)):
        named_fields.check(pattern, shards, None, fields)
        total, raws = 0, (raw for shard in shards for raw in shard_samples(shard, report=lost.append, fields=fields))
    else:
        source = LocalBatches(shards, Options(count, train=False, fields=fields))
        named_fields.check(pattern, shards, source, fields)
        lost = source.skipped
        total, raws = source.num_samples + sum(entry.count for entry in lost), _spread(source.index, count)
    samples, skipped = [], Counter()
    for raw in raws:
        try:
            sample = parse_sample(raw, fields)
            load_picture(sample.picture)
            samples.append(sample)
        except (SampleError, PictureError) as error:
            skipped[error.reason] += 1
        if len(samples) == count:
            break
    for entry in lost:
        if isinstance(entry, Skipped):  # what was guessed of a sample that is used, the sample says itself
            skipped[entry.reason] += entry.count
    if not samples:
        raise ValueError(f"{pattern} has no picture to check the export on: {dict(skipped) or 'its shards are empty'}")
    return Pictures(samples, skipped, Counter(sample.guess for sample in samples if sample.guess), total)


def _spread(index: TarIndex, count: int) -> Iterator[dict[str, Any]]:
    """The samples at evenly spaced places, then, for those that cannot be used, the others."""
    first = [number * len(index) // count for number in range(count)] if len(index) > count else range(len(index))
    chosen = dict.fromkeys([*first, *range(len(index))])
    return (index.read(number) for number in chosen)


def kind_of(data: bytes) -> str:
    """What is special about an encoded picture, in a word; PLAIN for nothing. Of several things the first counts."""
    picture = Image.open(io.BytesIO(data))
    if picture.getexif().get(ORIENTATION, 1) in STORED:
        return "EXIF-turned"
    if picture.mode in ("LA", "La"):
        return "transparent grey"
    if picture.mode in ("RGBA", "PA", "RGBa") or "transparency" in picture.info:
        return "transparent"
    if getattr(picture, "n_frames", 1) > 1:
        return "animated"
    if picture.mode[0] in "IF":
        return "16-bit grey"
    return {"L": "grey", "1": "grey", "CMYK": "CMYK"}.get(picture.mode, PLAIN)


def variants(data: bytes, number: int) -> dict[str, bytes]:
    """{kind: encoded picture}: a picture as it is, and the same in other shapes; `number` draws the orientation."""
    picture = load_picture(data)
    return {CATALOGUE: data} | {kind: make(picture, number) for kind, make in MAKERS.items()}


def _cut_out(picture: Image.Image) -> Image.Image:
    """RGBA: all but an ellipse in the middle is transparent, and black below, as editors leave it."""
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse((0, 0, picture.width - 1, picture.height - 1), fill=255)
    cut = Image.new("RGBA", picture.size)
    cut.paste(picture, mask=mask)
    cut.putalpha(mask)
    return cut


def _palette(picture: Image.Image, number: int) -> bytes:
    """A GIF of 255 colours in which one more is transparent."""
    alpha = _cut_out(picture).getchannel("A")
    quantized = picture.quantize(255)
    quantized.paste(255, mask=alpha.point(lambda value: 255 - value))
    return _encoded(quantized, "GIF", transparency=255)


def _sixteen_bit(picture: Image.Image, number: int) -> bytes:
    values = np.asarray(picture.convert("L"), dtype=np.uint16) * 257
    return _encoded(Image.fromarray(values), "PNG")


def _turned(picture: Image.Image, number: int) -> bytes:
    orientation = 2 + number % len(STORED)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return _encoded(picture.transpose(STORED[orientation]), "PNG", exif=exif.tobytes())


def _wide(picture: Image.Image, number: int) -> bytes:
    """On a white ground three times as wide, as a banner has it; every other one is as much higher."""
    size = (3 * picture.width, picture.height) if number % 2 else (picture.width, 3 * picture.height)
    ground = Image.new("RGB", size, "white")
    ground.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return _encoded(ground, "PNG")


def _animated(picture: Image.Image, number: int) -> bytes:
    black = Image.new("RGB", picture.size)
    return _encoded(picture, "WEBP", lossless=True, method=0, quality=0, save_all=True, append_images=[black])


def _encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if file_format == "PNG":
        options["compress_level"] = 1
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[Image.Image, int], bytes]] = {
    "transparent": lambda picture, number: _encoded(_cut_out(picture), "PNG"),
    "transparent palette": _palette,
    "transparent grey": lambda picture, number: _encoded(_cut_out(picture).convert("LA"), "PNG"),
    "EXIF-turned": _turned,
    "grey": lambda picture, number: _encoded(picture.convert("L"), "JPEG", quality=95),
    "16-bit grey": _sixteen_bit,
    "CMYK": lambda picture, number: _encoded(picture.convert("CMYK"), "JPEG", quality=95),
    "animated": _animated,
    "long and narrow": _wide,
}
