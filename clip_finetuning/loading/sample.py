"""What one sample of a shard says - picture, captions, product, metadata - whoever wrote the shard.

A raw sample is a dict of file suffix -> bytes, with `__key__` and `__url__`, as webdataset makes it. Taken are our own
shards (`.jpg`, `.txt`, `.json`) and others': pictures of any kind; captions in `.txt0`, `.txt1` ... or
`.txt0.txt` ..., or under `caption` in the `.json` (img2dataset), or in a field that `Fields` names; no `.json` at all. A
field that says `NaN` or the like, as pandas writes it, is a missing one (`text.text_of`).
"""

import codecs
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from clip_finetuning.runtime.caption_weights import fault_of
from clip_finetuning.runtime.text import attribute_text, text_of

# What Pillow reads, alone or with a plugin; the first of them counts where a sample has several.
PICTURE_SUFFIXES = (
    "jpg", "jpeg", "png", "webp", "jpe", "jfif", "avif", "avifs", "heic", "heif", "hif", "gif", "bmp", "dib", "tif", "tiff",
    "apng", "jp2", "j2k", "jpx", "jxl", "ppm", "pgm", "pbm", "pnm", "tga", "psd",
)  # fmt: skip
IS_PICTURE = frozenset(PICTURE_SUFFIXES)
CAPTION_SUFFIX = re.compile(r"(?:txt|text|caption)(\d*)(?:\.txt)?")
KNOWN_SUFFIX = re.compile(
    rf"(.+?)\.({'|'.join(PICTURE_SUFFIXES)}|json|(?:txt|text|caption)\d*(?:\.txt)?)", re.IGNORECASE | re.DOTALL
)
NO_PICTURE, NO_CAPTION = "no image in the shard", "no caption in the shard"
DAMAGED_JSON, DAMAGED_JSON_ALONE = (
    "damaged .json, so the product is told by its caption",
    "damaged .json and no caption beside it",
)
NO_NAMED_CAPTION = "no text in the .json under CAPTION_KEY"
NO_NAMED_PRODUCT = "no id in the .json under PRODUCT_KEY, so the product is told by its caption"
LANGUAGES_DO_NOT_FIT = "languages that are not those of the captions, one each, which count as none"
WEIGHTS_DO_NOT_FIT = "caption_weights that are not one number >= 0 for each of its captions, which count as none"
FURTHER_FILES = "several pictures or texts under its name, of which the first is used"
NO_UTF8 = "a caption in another encoding than UTF-8, which is read as Windows-1252"
FURTHER = "__further__"  # in a raw sample: it has such files


class Fields(NamedTuple):
    """The fields of a `.json` that a user names, dotted where they lie deeper (`meta.title`, `titles.0`); None: the usual."""

    caption: str | None = None
    product: str | None = None
    attributes: tuple[str, ...] = ()


USUAL = Fields()
Attributes = dict[str, str]  # what is said of a product by name: its colour, its material


class SampleError(ValueError):
    """A sample that cannot be used; `.reason` is one of a few fixed wordings, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShardSample(NamedTuple):
    """What a sample says; a field that it does not have is blank."""

    key: str
    picture: bytes  # encoded
    captions: list[str]  # the first one is used in evaluation, one is `drawn` in training
    product_id: str  # where the shard names none: the first caption
    category: str
    subcategory: str
    image_name: str
    attributes: Attributes  # {name: value}, without blank ones
    guess: str | None = None  # what is used although something is missing, damaged or left over


def split_name(name: str) -> tuple[str, str]:
    """(key, lower-case suffix) of a tar member, split before the longest suffix that is known.

    Without a known one it is split at the first dot of the file name, as webdataset does; so is a hidden file (`._x.jpg`).
    """
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    if "." in suffix and stem and (match := KNOWN_SUFFIX.fullmatch(file_name)):
        stem, suffix = match.groups()
    return folder + slash + stem, suffix.lower()


def is_picture(suffix: str) -> bool:
    """Whether a file of this suffix is a picture that may be read."""
    return suffix in IS_PICTURE


@functools.lru_cache(maxsize=1024)
def is_text(suffix: str) -> bool:
    """Whether a file of this suffix says something about its sample in words."""
    return suffix == "json" or CAPTION_SUFFIX.fullmatch(suffix) is not None


def parse_sample(raw: Mapping[str, Any], names: Fields = USUAL, needs_caption: bool = True) -> ShardSample:
    """The ShardSample of a raw sample. Raises SampleError if it has no picture, or no caption although it needs one.

    What needs none and has none has no caption at all, and a blank product unless its `.json` names one.
    """
    picture = next((raw[suffix] for suffix in PICTURE_SUFFIXES if suffix in raw), None)
    if picture is None:
        raise SampleError(NO_PICTURE)
    fields, is_damaged = _fields(raw.get("json"), names.product)
    texts = {} if names.caption else _text_files(raw)
    captions = _named_captions(fields, names.caption) if names.caption else _captions(texts, fields)
    if not captions and needs_caption:
        named = NO_NAMED_CAPTION if names.caption else NO_CAPTION
        raise SampleError(DAMAGED_JSON_ALONE if is_damaged else named)
    product_id = text_of(_product(fields, names.product))
    guess = NO_NAMED_PRODUCT if names.product and not product_id else None
    if is_damaged:
        guess = DAMAGED_JSON if captions else DAMAGED_JSON_ALONE
    return ShardSample(
        key=raw["__key__"],
        picture=picture,
        captions=captions,
        product_id=product_id or next(iter(captions), ""),
        category=text_of(fields.get("category")),
        subcategory=text_of(fields.get("subcategory")),
        image_name=text_of(fields.get("image_name")),
        attributes=attributes_of(fields, names.attributes),
        guess=guess
        or (NO_UTF8 if not all(texts.values()) else None)
        or (FURTHER_FILES if raw.get(FURTHER) or sum(map(is_picture, raw)) > 1 else None),
    )


def wordings(raw: Mapping[str, Any], sample: ShardSample, names: Fields = USUAL) -> tuple[list[tuple[str, str]], bool]:
    """([(caption, its language)] of a sample, blank where nobody says; whether its `languages` do not fit its captions)."""
    fields = record_of(raw.get("json"))
    listed = value_at(fields, names.caption or "captions")
    listed = listed if isinstance(listed, list) and listed else sample.captions[:1]
    languages = fields.get("languages") or []
    fits = isinstance(languages, list) and len(languages) in (0, len(listed))
    by_line = {line: text_of(code) for text, code in zip(listed, languages) for line in _lines([text])} if fits else {}
    return [(caption, by_line.get(caption, "")) for caption in sample.captions], not fits


def drawn(raw: Mapping[str, Any], sample: ShardSample, seed: int, names: Fields = USUAL) -> tuple[str, bool]:
    """(the caption of a sample that `seed`, of 64 bits, draws; whether its `caption_weights`, if any, are those of its captions).

    All are drawn alike where there are no weights. A caption that is not in the list that they weigh has the weight 1.
    """
    count = len(sample.captions)
    fields = record_of(raw.get("json")) if count > 1 else {}
    weights = fields.get("caption_weights")
    if weights is None:
        return sample.captions[seed % count], True
    listed = value_at(fields, names.caption or "captions")
    listed = listed if isinstance(listed, list) else []
    if fault_of(weights, len(listed)):
        return sample.captions[seed % count], False
    by_line: dict[str, float] = {}
    for text, weight in zip(listed, weights):
        for line in _lines([text]):
            by_line[line] = by_line.get(line, 0) + weight
    ends = list(itertools.accumulate(by_line.get(caption, 1) for caption in sample.captions))
    if not ends[-1]:
        return sample.captions[seed % count], False
    place = (seed >> 11) / 2**53 * ends[-1]  # below the last end
    return next(caption for caption, end in zip(sample.captions, ends) if place < end), True


def value_at(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field: of exactly this name, else along its dots through objects and lists; None if there is none."""
    value: Any = fields
    for part in [name] if name in fields else name.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def attributes_of(fields: Mapping[str, Any], names: Sequence[str] = ()) -> Attributes:
    """What a `.json` says under `attributes`; or the fields of these names, there or, dotted where they lie deeper, in all of it."""
    said = fields.get("attributes")
    said = said if isinstance(said, dict) else {}
    pairs = (
        ((name, said[name] if name in said else value_at(fields, name)) for name in names) if names else said.items()
    )
    texts = {text_of(name): attribute_text(value) for name, value in pairs}
    return {name: text for name, text in texts.items() if name and text}


def has_text_at(fields: Mapping[str, Any], name: str) -> bool:
    """Whether a field holds a text or a number, or a list of some."""
    return bool(_named_captions(fields, name))


def _product(fields: Mapping[str, Any], name: str | None) -> Any:
    """What stands for the product: `product_id`, or a named field, of which a list of one is that one."""
    value = value_at(fields, name or "product_id")
    return value[0] if name and isinstance(value, list) and len(value) == 1 else value


def product_hash(product_id: str) -> int:
    """A stable 64-bit number for a product, or any text (the same on every machine and in every process)."""
    digest = hashlib.blake2b(product_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def record_of(data: bytes | None) -> dict[str, Any]:
    """The JSON object of a sample, empty where there is none or it is damaged."""
    return _fields(data)[0]


def _fields(data: bytes | None, product: str | None = None) -> tuple[dict[str, Any], bool]:
    """(the JSON object of a sample, whether it is damaged): no object, or one whose product id is no text and no number."""
    if data is None:
        return {}, False
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return {}, True
    return fields, product is None and isinstance(fields.get("product_id"), list | dict | bool)


def _captions(texts: Iterable[str], fields: Mapping[str, Any]) -> list[str]:
    """Every distinct caption, on one line each: those of text files first, then the JSON's."""
    alternatives = fields.get("captions")
    return _lines([*texts, *(alternatives if isinstance(alternatives, list) else [])]) or _lines(
        [fields.get("caption")]
    )


def _text_files(raw: Mapping[str, Any]) -> dict[str, bool]:
    """{text of a file of a sample: whether it is Unicode}, by number."""
    numbered = [(CAPTION_SUFFIX.fullmatch(suffix), data) for suffix, data in raw.items() if not suffix.startswith("__")]
    files = sorted((int(match[1] or -1), data) for match, data in numbered if match)
    return dict(_unicode(data) for _, data in files)


def _unicode(data: bytes) -> tuple[str, bool]:
    """(the text of a file, whether it is in Unicode); what is not comes out as other letters, but never as those of another."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace"), True
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("cp1252", "backslashreplace"), False


def _named_captions(fields: Mapping[str, Any], name: str) -> list[str]:
    """Those of the field that CAPTION_KEY names: a list is several wordings."""
    value = value_at(fields, name)
    return _lines(value if isinstance(value, list) else [value])


def _lines(texts: Iterable[Any]) -> list[str]:
    """The distinct captions among some values, on one line each."""
    lines = (" ".join(text_of(text).split()) for text in texts)
    return [line for line in dict.fromkeys(lines) if line]
