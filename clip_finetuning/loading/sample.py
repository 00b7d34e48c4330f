"""What one sample of a shard says - picture, captions, product, metadata - whoever wrote the shard.

A raw sample is a dict of file suffix -> bytes, with `__key__` and `__url__`, as webdataset makes it. Taken are our own
shards (`.jpg`, `.txt`, `.json`) and others': `.jpeg`, `.png`, `.webp`; captions in `.txt0`, `.txt1` ... or
`.txt0.txt` ..., or under `caption` in the `.json` (img2dataset); no `.json` at all. A field that says `NaN` or the like,
as pandas writes it, is a missing one (`text.text_of`).
"""

import hashlib
import json
import re
from typing import NamedTuple

from clip_finetuning.runtime.text import text_of

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
CAPTION_SUFFIX = re.compile(r"(?:txt|text|caption)(\d*)(?:\.txt)?")
NO_IMAGE, NO_CAPTION = "no image in the shard", "no caption in the shard"


class SampleError(ValueError):
    """A sample that cannot be used; `.reason` is one of a few fixed wordings, for counting."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


class ShardSample(NamedTuple):
    key: str
    image: bytes
    captions: list[str]  # the first one is used in evaluation, one is drawn in training
    product_id: str  # where the shard names none: the first caption
    category: str
    subcategory: str
    image_name: str


def split_name(name):
    """(key, lower-case suffix) of a tar member, split at the first dot of its file name as webdataset does."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    return folder + slash + stem, suffix.lower()


def is_text(suffix):
    return suffix == "json" or CAPTION_SUFFIX.fullmatch(suffix) is not None


def parse_sample(raw):
    """The ShardSample of a raw sample. Raises SampleError if it has no picture or no caption."""
    image = next((raw[suffix] for suffix in IMAGE_SUFFIXES if suffix in raw), None)
    if image is None:
        raise SampleError(NO_IMAGE)
    fields = _fields(raw.get("json"))
    captions = _captions(raw, fields)
    if not captions:
        raise SampleError(NO_CAPTION)
    return ShardSample(
        key=raw["__key__"],
        image=image,
        captions=captions,
        product_id=text_of(fields.get("product_id")) or captions[0],
        category=text_of(fields.get("category")),
        subcategory=text_of(fields.get("subcategory")),
        image_name=text_of(fields.get("image_name")),
    )


def product_hash(product_id):
    """A stable 64-bit number for a product, or any text (the same on every machine and in every process)."""
    digest = hashlib.blake2b(product_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _fields(data):
    """The JSON object of a sample; a damaged one is worth no more than none."""
    try:
        fields = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _captions(raw, fields):
    """Every distinct caption, on one line each: text files by number first, then the JSON's."""
    numbered = [(CAPTION_SUFFIX.fullmatch(suffix), data) for suffix, data in raw.items() if not suffix.startswith("__")]
    files = sorted((int(match[1] or -1), data) for match, data in numbered if match)
    texts = [data.decode("utf-8", "replace") for _, data in files]
    alternatives = fields.get("captions")
    texts += alternatives if isinstance(alternatives, list) else []
    captions = [caption for caption in (" ".join(text_of(text).split()) for text in texts) if caption]
    if not captions:
        captions = [" ".join(text_of(fields.get("caption")).split())]
    return [caption for caption in dict.fromkeys(captions) if caption]
