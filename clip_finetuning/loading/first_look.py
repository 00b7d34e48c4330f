"""What a few samples say before anything expensive is done: shards that can be read, products that can be told apart."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from clip_finetuning.loading.sample import USUAL, Fields, SampleError, ShardSample, parse_sample
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.stream_reader import shard_samples
from clip_finetuning.loading.tar_contents import ShardReadError
from clip_finetuning.loading.tar_index import TarIndex
from clip_finetuning.runtime.accounting import Guessed, Skipped
from clip_finetuning.runtime.text import same_caption_key

LOOKED_AT = 20  # samples of a shard, at first: they are of more than one product, nearly always
TRIED = 3  # streamed shards, before all of them are taken to be out of reach
REMEMBERED = 1000  # samples that differ, though no two of them can be told apart


class Listed(NamedTuple):
    """The samples of local shards, as their texts say."""

    keys: list[str]
    products: list[str]
    captions: list[str]  # the first one of each


def check_shards(pattern: str) -> list[str]:
    """The shards of a pattern. Raises FileNotFoundError if one is missing, ValueError if the streamed ones are out of reach."""
    shards = expand_pattern(pattern)
    if any(map(is_url, shards)):
        next(_samples(shards, LOOKED_AT, USUAL), None)
    return shards


def check_contrast(pattern: str, fields: Fields = USUAL) -> None:
    """ValueError if no two samples of the shards can be told apart: then no batch of them teaches anything.

    Samples are told apart by what the loss goes by: another product, and no caption in common. Reads a few samples, and
    only where these do not suffice all of them.
    """
    shards, met = check_shards(pattern), []
    for limit in (LOOKED_AT, None):
        for sample in _samples(shards, limit, fields):
            identity = (sample.product_id, frozenset(map(same_caption_key, sample.captions)))
            if any(identity[0] != product and not identity[1] & captions for product, captions in met):
                return
            if identity not in met and len(met) < REMEMBERED:
                met.append(identity)
        if not met:  # whether they can be used at all, is for the loader to say
            return
    products = {product for product, _ in met}
    what = "one product" if len(products) == 1 else f"{len(products)} products that share their captions"
    name = next(iter(products))[:60]
    raise ValueError(
        f"the samples of {pattern} are of {what} ({name!r}), so there is nothing to be told apart, and training on them "
        "teaches nothing: add products, or check product_id and captions in the shards"
    )


def listed(pattern: str, max_samples: int | None = None, fields: Fields = USUAL) -> Listed | None:
    """What an evaluation of these shards would look at if it can read each picture; None for streams, which are read once."""
    shards = expand_pattern(pattern)
    if any(map(is_url, shards)):
        return None
    index, found = TarIndex(shards, fields), []
    for number in range(min(len(index), max_samples or len(index))):
        try:
            sample = parse_sample(index.read(number), fields)
        except (SampleError, ShardReadError):
            continue
        found.append((sample.key, sample.product_id, sample.captions[0]))
    return Listed(*map(list, zip(*found))) if found else Listed([], [], [])


def _samples(shards: list[str], limit: int | None, fields: Fields) -> Iterator[ShardSample]:
    """The samples that can be used, the first `limit` of each shard. ValueError if the first shards are out of reach."""
    found, unreadable = 0, []
    for shard in shards:
        problems: list[Skipped | Guessed] = []
        for raw in itertools.islice(shard_samples(shard, problems.append, fields=fields), limit):
            found += 1
            yield parse_sample(raw, fields)
        unreadable += problems
        if is_url(shard) and not found and len(unreadable) == min(TRIED, len(shards)):
            raise ValueError(
                f"no sample can be read of these shards: {unreadable[0].where}; are they there, and in reach?"
            )
