"""Whether the fields that CAPTION_KEY and PRODUCT_KEY name are in the shards at all: a typing error is told before anything is done."""

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from clip_finetuning.loading.sample import DAMAGED_JSON, NO_NAMED_CAPTION, NO_NAMED_PRODUCT, Fields, has_text_at
from clip_finetuning.loading.source import Source
from clip_finetuning.loading.stream_reader import shard_records
from clip_finetuning.runtime.text import printable

LOOKED_AT = 1000  # samples of streamed shards, which are not read twice
LISTED_OF, LISTED = 100, 20  # samples whose keys a message lists, and how many of these


def check(pattern: str, shards: Sequence[str], source: Source | None, fields: Fields) -> None:
    """ValueError with the keys that are there, if no sample has a field that was named; without a source it is streamed."""
    if source is None or source.streamed:
        who = f"none of the first {LOOKED_AT:,} samples of {pattern!r}"
        check_records(who, lambda: itertools.islice(_records(shards), LOOKED_AT), fields)
        return
    for knob, name in _named(fields).items():
        if _is_nowhere(knob, source):
            raise ValueError(_message(knob, name, f"no sample of {pattern!r}", _records(shards)))


def check_records(who: str, records: Callable[[], Iterable[Mapping[str, Any]]], fields: Fields) -> None:
    """The same of the JSON objects that `records()` yields, each time anew; `who` says that it is none of them."""
    absent, looked_at = _named(fields), False
    if not absent:
        return
    for record in records():
        looked_at = True
        absent = {knob: name for knob, name in absent.items() if not has_text_at(record, name)}
        if not absent:
            return
    for knob, name in absent.items() if looked_at else ():  # what is out of reach is told by others
        raise ValueError(_message(knob, name, who, records()))


def _named(fields: Fields) -> dict[str, str]:
    """{knob: what it names} of those that are set."""
    named = {"CAPTION_KEY": fields.caption, "PRODUCT_KEY": fields.product}
    return {knob: name for knob, name in named.items() if name}


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
    start = f"{knob}={printable(name)}: {who} has a text or number there in its .json"
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
