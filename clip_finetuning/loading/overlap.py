"""Whether shards that are to tell what a model forgot hold what it is trained or evaluated on, under whatever names."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from clip_finetuning.loading.sample import USUAL, Fields, SampleError, ShardSample, parse_sample
from clip_finetuning.loading.shard_list import expand_pattern, in_common, is_url
from clip_finetuning.loading.tar_contents import ShardReadError
from clip_finetuning.loading.tar_index import TarIndex
from clip_finetuning.runtime.text import same_caption_key

LOOKED_AT = 20  # pairs of samples that are read and compared
REMEDY = "which cannot tell what it forgot; name shards of other data"


class Shared(NamedTuple):
    """How many samples of some shards others have too."""

    samples: int = 0  # that there are
    twins: int = 0  # the same picture of the same product
    relatives: int = 0  # another picture, or the same one encoded anew, of a product with the same caption


def check(called: str, pattern: str, others: Mapping[str, str], fields: Fields = USUAL) -> list[str]:
    """ValueError if the shards of a pattern are in part, or their samples all, those of another one -> remarks on some that are.

    `called` is what a message calls the pattern; others: {what the model is ("trained on"): pattern}.
    """
    remarks = []
    for what, other in others.items():
        check_names(called, pattern, what, other)
        samples, twins, relatives = shared(pattern, other, fields)
        if twins and twins == samples:
            raise ValueError(
                f"{called}: all {samples:,} samples are also in the shards that the model is {what} ({other}), {REMEDY}"
            )
        kinds = {"are also in": twins, "show, in other pictures or the same encoded anew, products of": relatives}
        remarks += [
            f"{called}: {count:,} of the {samples:,} samples {are} the shards that the model is {what} ({other}): of "
            "these it can hardly forget anything"
            for are, count in kinds.items()
            if count
        ]
    return remarks


def check_names(called: str, pattern: str, what: str, other: str) -> None:
    """ValueError if a shard of a pattern is one of another's, by whatever path; `other` may be what a file says."""
    if same := in_common(pattern, other):
        raise ValueError(f"{called}: {same[0]} is one of the shards that the model is {what}, {REMEDY}")


def shared(pattern: str, other: str, fields: Fields = USUAL) -> Shared:
    """What local shards have in common; of streams, which are read once, nothing is known.

    The index tells the product of every sample and how many bytes its picture has; a few of those that are alike are read
    and compared. So it does not matter how the samples are called, ordered and cut into shards.
    """
    shards, others = expand_pattern(pattern), expand_pattern(other)
    if any(map(is_url, [*shards, *others])):
        return Shared()
    mine, theirs = TarIndex(shards, fields), TarIndex(others, fields)
    of_picture = {pair: number for number, pair in enumerate(_pairs(theirs))}
    of_product = {product: number for (product, _), number in of_picture.items()}
    twins, relatives = [], []
    for number, pair in enumerate(_pairs(mine)):
        if pair in of_picture:
            twins.append((number, of_picture[pair]))
        elif pair[0] in of_product:
            relatives.append((number, of_product[pair[0]]))
    is_same = _some_alike(mine, theirs, twins, lambda sample: sample.picture)
    are_related = _some_alike(mine, theirs, relatives, lambda sample: same_caption_key(sample.captions[0]))
    return Shared(len(mine), len(twins) * is_same, len(relatives) * are_related)


def _pairs(index):
    return zip(index.products.tolist(), index.picture_bytes().tolist())


def _some_alike(mine, theirs, pairs, what: Callable[[ShardSample], object]) -> bool:
    """Whether some of the pairs of samples have the same of `what`: two catalogues may number their products alike."""
    places = np.unique(np.linspace(0, len(pairs) - 1, min(LOOKED_AT, len(pairs)), dtype=int))
    for one, other in (pairs[place] for place in places):
        try:
            samples = [parse_sample(index.read(n), index.fields) for index, n in ((mine, one), (theirs, other))]
        except (SampleError, ShardReadError):
            continue
        if what(samples[0]) == what(samples[1]):
            return True
    return False
