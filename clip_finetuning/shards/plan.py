"""Which sample goes into which shard: a function of the JSON mapping and the settings alone, so that any process can
write any shard, now or after a crash.
"""

import functools
import hashlib
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue.rows import text_of

METADATA = ("product_id", "category", "subcategory", "image_name")
METADATA_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


class Sample(NamedTuple):
    """One picture, what is written beside it, and the product that it shows."""

    image_path: str
    caption: str
    metadata: str  # the JSON of the shard
    product: str


class Shard(NamedTuple):
    """One shard of a plan. `fingerprint` tells its samples and the settings of their pictures."""

    number: int
    first_key: int
    samples: list[Sample]
    fingerprint: str


def read_mapping(path):
    """The entries of a JSON mapping. Raises FileNotFoundError, or ValueError for anything but a list."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; make it with clip_prep.py") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make it anew with clip_prep.py") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}; it must be a list of objects, one a picture")
    return entries


def check_entries(entries, image_key="image_path", caption_key="caption", data_dir=None):
    """(samples, {reason: names of the entries that cannot be used}). For `data_dir` see `located`."""
    samples, skipped = [], defaultdict(list)
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            skipped["not an object"].append(f"entry {number}")
        elif not isinstance(entry.get(image_key), str) or not entry[image_key]:
            skipped[f"no {image_key}"].append(f"entry {number}")
        elif not isinstance(entry.get(caption_key), str) or not one_line(entry[caption_key]):
            skipped[f"no {caption_key}"].append(printable(entry[image_key]))
        else:
            samples.append(make_sample(located(entry[image_key], data_dir), entry, entry[caption_key]))
    return samples, dict(skipped)


def located(image_path, data_dir):
    """Where a picture is: a relative path that does not begin with `data_dir`, as clip_prep.py writes it, is below it."""
    if data_dir is None or Path(image_path).is_relative_to(data_dir):
        return image_path
    return Path(data_dir, image_path).as_posix()


def one_line(value):
    """`text_of` a value. Most texts come again: those of a product with each of its views, categories everywhere."""
    return _one_line(value) if isinstance(value, str) else text_of(value)


_one_line = functools.lru_cache(maxsize=4096)(text_of)


def make_sample(image_path, entry, caption):
    """The Sample of an entry: every text on one line, fields that hold no text left out."""
    caption = one_line(caption)
    metadata = {field: text for field in METADATA if (text := one_line(entry.get(field)))}
    alternatives = entry.get("captions")
    if isinstance(alternatives, list) and any(map(one_line, alternatives)):
        metadata["captions"] = [text for text in map(one_line, alternatives) if text]
    encoded = METADATA_JSON.encode(metadata)
    # Without an id, equal captions are one product; no id begins with a NUL.
    return Sample(image_path, caption, encoded, metadata.get("product_id") or f"\0{caption}")


def printable(text):
    """Text that any file and console takes: lone surrogates are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plan_shards(samples, shard_size, seed=None, picture_settings=()):
    """The shards of a data set.

    Views of a product stay together: products are added until `shard_size` samples are reached. With a `seed` products
    are shuffled, so that any range of shards is a fair sample. `picture_settings` enter the fingerprints.
    """
    products = defaultdict(list)
    for sample in samples:
        products[sample.product].append(sample)
    products = list(products.values())
    if seed is not None:
        random.Random(seed).shuffle(products)
    shards, first_key, waiting = [], 0, []
    for number, product in enumerate(products, 1):
        waiting += product
        if len(waiting) >= shard_size or number == len(products):
            shards.append(Shard(len(shards), first_key, waiting, fingerprint(waiting, first_key, picture_settings)))
            first_key += len(waiting)
            waiting = []
    return shards


def fingerprint(samples, first_key, picture_settings):
    """A hash of all that decides what a shard holds, but for the bytes of the pictures."""
    parts = [repr((first_key, picture_settings))]
    for sample in samples:
        parts += sample[:3]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
