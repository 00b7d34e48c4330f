"""Whether the fields that CAPTION_KEY, PRODUCT_KEY and --attributes name are in the shards at all: a typing error is told before anything is done."""

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from clip_finetuning.loading.sample import (
    DAMAGED_JSON,
    NO_NAMED_CAPTION,
    NO_NAMED_PRODUCT,
    Fields,
    attributes_of,
    has_text_at,
)
from clip_finetuning.loading.shard_list import expand_pattern, is_url
from clip_finetuning.loading.source import Source
from clip_finetuning.loading.stream_reader import shard_records
from clip_finetuning.runtime.text import printable

ATTRIBUTES = "--attributes"
LOOKED_AT = 1000  # samples of streamed shards, which are not read twice
LISTED_OF, LISTED = 100, 20  # samples whose keys a message lists, and how many of these


def check(pattern: str, shards: Sequence[str], source: Source | None, fields: Fields) -> None:
    """ValueError with the keys that are there, if no sample has a field that was named; without a source it is streamed."""
    if source is None or source.streamed:
        who = f"none of the first {LOOKED_AT:,} samples of {pattern!r}"
        check_records(who, lambda: itertools.islice(_records(shards), LOOKED_AT), fields)
        return
    who = f"no sample of {pattern!r}"
    for knob, name in _named(fields._replace(attributes=())):
        if _is_nowhere(knob, source):
            raise ValueError(_message(knob, name, who, _records(shards)))
    check_records(who, lambda: _records(shards), Fields(attributes=fields.attributes))


def check_records(who: str, records: Callable[[], Iterator[Mapping[str, Any]]], fields: Fields) -> None:
    """The same of the JSON objects that `records()` yields, each time anew; `who` says that it is none of them."""
    wanted = _named(fields)
    for knob, name in _absent(iter(records()), wanted) if wanted else ():
        raise ValueError(_message(knob, name, who, records()))


def have_attributes(pattern: str) -> bool:
    """Whether a sample of the shards has attributes, of streamed ones one of the first; True where none can be read."""
    shards, any_read = expand_pattern(pattern), False
    for record in itertools.islice(_records(shards), LOOKED_AT if any(map(is_url, shards)) else None):
        any_read = True
        if attributes_of(record):
            return True
    return not any_read


def _named(fields: Fields) -> list[tuple[str, str]]:
    """(knob, what it names) of those that are set."""
    keys = [("CAPTION_KEY", fields.caption), ("PRODUCT_KEY", fields.product)]
    return [(knob, name) for knob, name in keys if name] + [(ATTRIBUTES, name) for name in fields.attributes]


def _absent(records: Iterator[Mapping[str, Any]], wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What none of these records has; nothing where there are no records: what is out of reach is told by others."""
    found_any = False
    while wanted and (record := next(records, None)) is not None:
        found_any = True
        wanted = [(knob, name) for knob, name in wanted if not _is_there(record, knob, name)]
    return wanted if found_any else []


def _is_there(record: Mapping[str, Any], knob: str, name: str) -> bool:
    return bool(attributes_of(record, (name,))) if knob == ATTRIBUTES else has_text_at(record, name)


def _is_nowhere(knob: str, source: Source) -> bool:
    """Whether each sample of indexed shards was found to lack what this knob names."""
    if knob == "CAPTION_KEY":
        return not source.num_samples and any(entry.reason == NO_NAMED_CAPTION for entry in source.skipped)
    told_by_caption = [entry.reason for entry in source.guessed if entry.reason in (NO_NAMED_PRODUCT, DAMAGED_JSON)]
    samples = 0 if source.products is None else len(source.products)
    return NO_NAMED_PRODUCT in told_by_caption and len(told_by_caption) == samples


def _records(shards: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    return (record for shard in shards for record in shard_records(shard))


def _message(knob: str, name: str, who: str, records: Iterable[Mapping[str, Any]]) -> str:
    keys: dict[str, None] = {}
    for record in itertools.islice(records, LISTED_OF):
        keys.update(dict.fromkeys(_keys_of(record)))
    sign = " " if knob == ATTRIBUTES else "="
    start = f"{knob}{sign}{printable(name)}: {who} has a text or number there in its .json"
    if not keys:
        return f"{start}; there is no .json with fields"
    nearest = difflib.get_close_matches(name, keys, 1)
    listed = ", ".join(printable(key) for key in list(keys)[:LISTED])
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    question = f"; did you mean {printable(nearest[0])}?" if nearest else ""
    return f"{start}; the keys there are {listed}{more}{question}"


def _keys_of(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of whatever is neither an object nor a list; of a list the first entry alone."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, below in inner:
        if isinstance(below, dict | list) and below and prefix.count(".") < 5:
            yield from _keys_of(below, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
