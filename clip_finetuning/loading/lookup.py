"""The encoded pictures of a few samples of local or streamed shards, found by their keys."""

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from clip_finetuning.loading.sample import Fields, SampleError, parse_sample
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.stream_reader import shard_samples
from clip_finetuning.loading.tar_index import TarIndex


def read_pictures(pattern: str, keys: Iterable[str], caption_key: str | None = None) -> dict[str, bytes]:
    """{key: encoded picture} of the samples that are there; of several with one key the first counts.

    Raises FileNotFoundError for shards that are missing.
    """
    shards, wanted, found = expand_pattern(pattern), set(keys), {}
    fields = Fields(caption_key)
    for raw in _streamed(shards, fields) if any(map(is_url, shards)) else _indexed(shards, wanted, fields):
        key = raw["__key__"]
        if key in wanted and key not in found:
            try:
                found[key] = parse_sample(raw, fields).picture
            except SampleError:
                continue
        if len(found) == len(wanted):
            break
    return found


def _indexed(shards: Sequence[str], wanted: Set[str], fields: Fields) -> Iterator[dict[str, Any]]:
    index = TarIndex(shards, fields)
    return (index.read(number) for number in range(len(index)) if index.key(number) in wanted)


def _streamed(shards: Sequence[str], fields: Fields) -> Iterator[dict[str, Any]]:
    return (raw for shard in shards for raw in shard_samples(shard, report=lambda skipped: None, fields=fields))
