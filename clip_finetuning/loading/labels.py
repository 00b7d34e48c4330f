"""The category of each sample of local shards, and by what its look-alikes are known; kept beside the index for the next time.

Beside `NAME.tar.index` lies `NAME.tar.labels`, which is believed as little (see `kept_index`). Only BATCHES=category asks for it.
"""

import collections
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.loading import kept_index
from clip_finetuning.loading.sample import Attributes, SampleError, parse_sample, product_hash
from clip_finetuning.loading.tar_contents import ShardReadError
from clip_finetuning.loading.tar_index import LONG_START, TarIndex, rules_of
from clip_finetuning.runtime.wording import wording_key

ENDING = "labels"
READING = 1  # how they are made of a sample; another way needs another number
NONE = -1  # the category of a sample without one
SIZES = frozenset(["xxs", "xs", "s", "m", "l", "xl", "xxl", "xxxl", "2xl", "3xl"])
log = logging.getLogger(__name__)


class Labels(NamedTuple):
    """Of N samples; a category that differs in case or blanks alone is the same."""

    names: list[str]
    category: np.ndarray  # int64 (N,): numbers in `names`, or NONE
    caption: np.ndarray  # int64 (N,), equal for captions of the same words
    attributes: np.ndarray  # int64 (N,), equal for the same attributes, 0 where there are none


def words_of(caption: str) -> str:
    """Equal for captions of the same words, in whatever order: sizes and numbers, which no picture shows, do not count.

    One other word makes another caption: "a red shirt" and "a blue shirt" are what is to be told apart.
    """
    wording = wording_key(caption)
    words = {word for word in wording.split() if word not in SIZES and not any(map(str.isdigit, word))} - {"."}
    return " ".join(sorted(words)) or wording


def labels_of(index: TarIndex) -> Labels:
    """The labels of all samples of an index, in its order. A sample that cannot be read any more has no category."""
    began, unusable, kept_in = time.monotonic(), collections.Counter(), set()
    parts, first = [], 0
    for path, stamp, count in index.shards():
        rules = {**rules_of(index.fields), ENDING: READING}
        part, reason = _kept(path, stamp, rules, count)
        if part is None:
            unusable.update([reason] if reason else [])
            part, is_whole = _read_labels(index, range(first, first + count))
            kept_in |= {_keep(path, _encoded(part, stamp, rules))} if is_whole else set()
        parts.append(part)
        first += count
    if unusable:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in unusable.items())
        log.warning("the kept categories of %d shards cannot be used (%s): read anew", unusable.total(), reasons)
    if (seconds := time.monotonic() - began) > LONG_START:
        log.warning(
            "the categories of the shards took %.0f s; kept %s", seconds, ", ".join(sorted(kept_in)) or "nowhere"
        )
    return _joined(parts)


def _read_labels(index: TarIndex, numbers: range) -> tuple[Labels, bool]:
    """The labels of some samples, and whether all of them could be read."""
    known: dict[str, int] = {}
    names, rows, is_whole = [], [], True
    for number in numbers:
        try:
            sample = parse_sample(index.read(number, pictures=False), index.fields)
        except (SampleError, ShardReadError):
            is_whole = False
            rows.append((NONE, number, 0))
            continue
        category = NONE
        if sample.category:
            category = known.setdefault(_same_name(sample.category), len(known))
            names += [sample.category] if category == len(names) else []
        rows.append((category, product_hash(words_of(sample.captions[0])), _attributes(sample.attributes)))
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 3)
    return Labels(names, *(np.ascontiguousarray(column) for column in table.T)), is_whole


def _same_name(category: str) -> str:
    return " ".join(category.casefold().split())


def _attributes(attributes: Attributes) -> int:
    said = sorted((name.casefold(), text.casefold()) for name, text in attributes.items())
    return product_hash(json.dumps(said)) if said else 0


def _joined(parts: list[Labels]) -> Labels:
    """The labels of several shards under common numbers: names in the order in which they are first met."""
    known: dict[str, int] = {}
    names: dict[int, str] = {}
    categories = []
    for part in parts:
        numbers = [known.setdefault(_same_name(name), len(known)) for name in part.names]
        names = dict(zip(numbers, part.names)) | names
        categories.append(np.array([*numbers, NONE], dtype=np.int64)[part.category])  # the last one, by NONE = -1
    columns = (np.concatenate([np.empty(0, np.int64), *column]) for column in zip(*(part[2:] for part in parts)))
    return Labels(
        [names[number] for number in range(len(known))], np.concatenate([np.empty(0, np.int64), *categories]), *columns
    )


# ---------------------------------------------------------------------------------------------------------- kept


def _kept(path: str, stamp: tuple[int, int], rules: Mapping[str, Any], count: int) -> tuple[Labels | None, str | None]:
    """(the labels that are kept of a tar, None) or (None, why those that are kept will not do, if there are any)."""
    try:
        return kept_index.read(path, stamp, lambda data: _decoded(data, stamp, rules, count), ENDING), None
    except kept_index.Unusable as error:
        return None, error.reason


def _keep(path: str, data: bytes) -> str:
    try:
        return f"in {kept_index.write(path, data, ENDING).parent}"
    except OSError as error:
        return f"nowhere ({error})"


def _encoded(labels: Labels, stamp: tuple[int, int], rules: Mapping[str, Any]) -> bytes:
    head = {"format": kept_index.FORMAT, "rules": dict(rules), "stamp": stamp, "names": labels.names}
    return kept_index.pack(head, [kept_index.narrow(labels.category + 1), labels.caption, labels.attributes])


def _decoded(data: bytes, stamp: tuple[int, int], rules: Mapping[str, Any], count: int) -> Labels:
    """What `_encoded` wrote of a tar of `count` samples. Raises kept_index.Unusable for anything else."""
    with kept_index.damaged_is_unusable():
        head, columns = kept_index.unpack(data, stamp, rules)
        names = [kept_index.text_in(name) for name in head["names"]]
        category, caption, attributes = (column.astype(np.int64) for column in columns)
        category -= 1
        if {len(category), len(caption), len(attributes)} != {count}:
            raise ValueError(count)
        if category.min(initial=NONE) < NONE or category.max(initial=NONE) >= len(names):
            raise ValueError(names)
    return Labels(names, category, caption, attributes)
