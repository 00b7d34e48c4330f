"""What a `sizes.json` promises: how many samples each shard beside it holds, so that missing ones are noticed."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clip_finetuning.runtime.accounting import Guessed

MAX_SAMPLES = 10_000_000  # of a shard
DAMAGED_SIZES = "sizes.json cannot be read, so missing samples go unnoticed"  # the count: shards


def expected_sizes(paths: Sequence[str]) -> tuple[dict[str, int], list[Guessed]]:
    """Path -> sample count, for the local shards that a `sizes.json` beside them lists; and which of these are damaged."""
    sizes, damaged = {}, []
    for folder in dict.fromkeys(os.path.dirname(path) for path in paths):
        shards = {os.path.basename(path): path for path in paths if os.path.dirname(path) == folder}
        where = os.path.join(folder, "sizes.json")
        try:
            with open(where, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        except OSError:
            data = b""
        listed, unusable = listed_sizes(data, where, shards)
        sizes |= listed
        damaged += unusable
    return sizes, damaged


def listed_sizes(data: bytes, where: str, shards: Mapping[str, str]) -> tuple[dict[str, int], list[Guessed]]:
    """What the bytes of a `sizes.json` say of some shards {name: path or URL}, and an entry if it is damaged there."""
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict):
        listed = dict.fromkeys(shards)  # of none a count
    sizes: dict[str, Any] = {shard: listed[name] for name, shard in shards.items() if is_count(listed.get(name))}
    damaged = sum(name in listed and shard not in sizes for name, shard in shards.items())
    return sizes, [Guessed(damaged, DAMAGED_SIZES, where, where)] if damaged else []


def is_count(size: object) -> bool:
    """Whether a value of a `sizes.json` can be a shard's number of samples; it decides how long an epoch is."""
    return type(size) is int and 0 <= size <= MAX_SAMPLES
