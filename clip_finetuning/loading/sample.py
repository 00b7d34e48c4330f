"""What one sample of a shard says - picture, captions, product, metadata - whoever wrote the shard.

A raw sample is a dict of file suffix -> bytes, with `__key__` and `__url__`, as webdataset makes it. Taken are our own
shards (`.jpg`, `.txt`, `.json`) and others': `.jpeg`, `.png`, `.webp`; captions in `.txt0`, `.txt1` ... or
`.txt0.txt` ..., or under `caption` in the `.json` (img2dataset); no `.json` at all. A field that says `NaN` or the like,
as pandas writes it, is a missing one (`text.text_of`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from clip_finetuning.runtime.text import text_of

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
CAPTION_SUFFIX = re.compile(r"(?:txt|text|caption)(\d*)(?:\.txt)?")
NO_PICTURE, NO_CAPTION = "no image in the shard", "no caption in the shard"
DAMAGED_JSON, DAMAGED_JSON_ALONE = (
    "damaged .json, so the product is told by its caption",
    "damaged .json and no caption beside it",
)


class SampleError(ValueError):
    """A sample that cannot be used; `.reason` is one of a few fixed wordings, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShardSample(NamedTuple):
    """What a sample says; a field that it does not have is blank."""

    key: str
    picture: bytes  # encoded
    captions: list[str]  # the first one is used in evaluation, one is drawn in training
    product_id: str  # where the shard names none: the first caption
    category: str
    subcategory: str
    image_name: str
    guess: str | None = None  # what was guessed since the `.json` is damaged; it would have told the product


def split_name(name: str) -> tuple[str, str]:
    """(key, lower-case suffix) of a tar member, split at the first dot of its file name as webdataset does."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    return folder + slash + stem, suffix.lower()


def is_text(suffix: str) -> bool:
    """Whether a file of this suffix says something about its sample in words."""
    return suffix == "json" or CAPTION_SUFFIX.fullmatch(suffix) is not None


def parse_sample(raw: Mapping[str, Any]) -> ShardSample:
    """The ShardSample of a raw sample. Raises SampleError if it has no picture or no caption."""
    picture = next((raw[suffix] for suffix in PICTURE_SUFFIXES if suffix in raw), None)
    if picture is None:
        raise SampleError(NO_PICTURE)
    fields, is_damaged = _fields(raw.get("json"))
    captions = _captions(raw, fields)
    if not captions:
        raise SampleError(DAMAGED_JSON_ALONE if is_damaged else NO_CAPTION)
    return ShardSample(
        key=raw["__key__"],
        picture=picture,
        captions=captions,
        product_id=text_of(fields.get("product_id")) or captions[0],
        category=text_of(fields.get("category")),
        subcategory=text_of(fields.get("subcategory")),
        image_name=text_of(fields.get("image_name")),
        guess=DAMAGED_JSON if is_damaged else None,
    )


def product_hash(product_id: str) -> int:
    """A stable 64-bit number for a product, or any text (the same on every machine and in every process)."""
    digest = hashlib.blake2b(product_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _fields(data: bytes | None) -> tuple[dict[str, Any], bool]:
    """(the JSON object of a sample, whether it is damaged): no object, or one whose product id is no text and no number."""
    if data is None:
        return {}, False
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return {}, True
    return fields, isinstance(fields.get("product_id"), list | dict | bool)


def _captions(raw: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
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
