"""Which sample goes into which shard: a function of the JSON mapping and the settings alone, so that any process can
write any shard, now or after a crash.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue.mapping import FIELDS, Entry

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


def make_sample(entry: Entry, data_dir: str | None = None) -> Sample:
    """The Sample of an entry: fields that hold no text are left out. For `data_dir` see `located`."""
    metadata: dict = {field: text for field in FIELDS if (text := getattr(entry, field))}
    if entry.alternatives:
        metadata["captions"] = entry.alternatives
    if entry.weights:
        metadata["caption_weights"] = entry.weights
    if entry.attributes:
        metadata["attributes"] = dict(entry.attributes)
    if entry.languages:
        metadata["languages"] = entry.languages
    path = located(entry.image_path, data_dir)
    return Sample(path, entry.caption, METADATA_JSON.encode(metadata), entry.product_id)


def located(image_path: str, data_dir: str | None) -> str:
    """Where a picture is: a relative path that does not begin with `data_dir`, as clip_prep.py writes it, is below it."""
    if data_dir is None or Path(image_path).is_relative_to(data_dir):
        return image_path
    return Path(data_dir, image_path).as_posix()


def plan_shards(
    samples: Sequence[Sample], shard_size: int, seed: int | None = None, picture_settings: tuple = ()
) -> list[Shard]:
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


def fingerprint(samples: Sequence[Sample], first_key: int, picture_settings: tuple) -> str:
    """A hash of all that decides what a shard holds, but for the bytes of the pictures."""
    parts = [repr((first_key, picture_settings))]
    for sample in samples:
        parts += sample[:3]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
