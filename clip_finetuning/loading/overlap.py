"""Whether shards that are to tell what a model forgot hold what it is trained or evaluated on, under whatever names."""

from collections.abc import Mapping

import numpy as np

from clip_finetuning.loading.sample import USUAL, Fields, SampleError, parse_sample
from clip_finetuning.loading.shard_list import expand_pattern, in_common, is_url
from clip_finetuning.loading.tar_contents import ShardReadError
from clip_finetuning.loading.tar_index import TarIndex

LOOKED_AT = 20  # pairs of samples whose pictures are compared byte by byte
REMEDY = "which cannot tell what it forgot; name shards of other data"


def check(called: str, pattern: str, others: Mapping[str, str], fields: Fields = USUAL) -> list[str]:
    """ValueError if the shards of a pattern are in part, or their samples all, those of another one -> remarks on some that are.

    `called` is what a message calls the pattern; others: {what the model is ("trained on"): pattern}.
    """
    remarks = []
    for what, other in others.items():
        check_names(called, pattern, what, other)
        twins, samples = count_twins(pattern, other, fields)
        if twins and twins == samples:
            raise ValueError(
                f"{called}: all {samples:,} samples are also in the shards that the model is {what} ({other}), {REMEDY}"
            )
        if twins:
            remarks.append(
                f"{called}: {twins:,} of the {samples:,} samples are also in the shards that the model is {what} ({other}): "
                "what it forgot is more than these numbers say"
            )
    return remarks


def check_names(called: str, pattern: str, what: str, other: str) -> None:
    """ValueError if a shard of a pattern is one of another's, by whatever path; `other` may be what a file says."""
    if shared := in_common(pattern, other):
        raise ValueError(f"{called}: {shared[0]} is one of the shards that the model is {what}, {REMEDY}")


def count_twins(pattern: str, other: str, fields: Fields = USUAL) -> tuple[int, int]:
    """(how many samples of local shards are in other ones too, how many there are); (0, 0) for streams, which are read once.

    Twins are of one product and have pictures of one size in bytes, as the index says of all; of some the pictures are
    compared. So it does not matter how the samples are called, ordered and cut into shards.
    """
    shards, others = expand_pattern(pattern), expand_pattern(other)
    if any(map(is_url, [*shards, *others])):
        return 0, 0
    mine, theirs = TarIndex(shards, fields), TarIndex(others, fields)
    place = {pair: number for number, pair in enumerate(_pairs(theirs))}
    twins = [(number, place[pair]) for number, pair in enumerate(_pairs(mine)) if pair in place]
    looked_at = np.unique(np.linspace(0, len(twins) - 1, min(LOOKED_AT, len(twins)), dtype=int))
    is_same = any(_picture(mine, twins[n][0]) == _picture(theirs, twins[n][1]) for n in looked_at)
    return len(twins) if is_same else 0, len(mine)


def _pairs(index):
    return zip(index.products.tolist(), index.picture_bytes().tolist())


def _picture(index, number):
    """The encoded picture of a sample; a value like no other if it cannot be read."""
    try:
        return parse_sample(index.read(number), index.fields).picture
    except (SampleError, ShardReadError):
        return object()
