"""Recalls beside the strict ones: what of a model's misses is the catalogue's, which names one product where five look alike.

strict    look-alikes of other products (see `alike`) are misses; the headline
tolerant  they are hits
without   they are not in the gallery of the query that they are alike to

All three come of one pass over the gallery. What people judged right (see `judgements`) is a hit in every one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import alike, intervals, judgements, positives, ranking
from clip_finetuning.retrieval.alike import Alike, Likeness
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.judgements import Judgements
from clip_finetuning.retrieval.names import TRUTHS
from clip_finetuning.retrieval.positives import (
    Positives,
    by_group,
    from_pairs,
    is_among,
    joined,
    keys_of,
    pair_keys,
    without,
)
from clip_finetuning.runtime.text import caption_numbers

MEANING = {
    "strict": "look-alikes of other products are misses",
    "tolerant": "they are hits",
    "without": "they are left out of the gallery",
}
CAPTIONS_AND_PICTURES = "captions and pictures of different products"
NAMES_AND_PICTURES = "names and pictures of different categories"
WHATS = {"pictures": "near-duplicate pictures", "captions": "captions of one wording", "attributes": "equal attributes"}


@dataclass(frozen=True)
class Truth:
    """Which truths are wanted of a data set, and what is known of it."""

    wanted: tuple[str, ...]  # strict, and those beside it
    caption: np.ndarray  # (M,) the number of each text's caption
    likeness: Likeness | None = None  # None where strict alone is wanted
    judged: Judgements | None = None


class Marked(NamedTuple):
    """Who is right for whom in a direction, and who is alike; None where nobody asked."""

    positives: Positives
    alike: Positives | None


def truth_of(embeddings: Embeddings, choice: str = "strict", judged: Judgements | None = None) -> Truth:
    """The Truth that `--truth` names: one of TRUTHS, beside strict, or all of them."""
    wanted = tuple(name for name in TRUTHS if name == "strict" or choice in (name, "all"))
    known = alike.likeness_of(embeddings) if len(wanted) > 1 else None
    return Truth(wanted, np.array(caption_numbers(embeddings.captions)[0]), known, judged)


def of_texts(truth: Truth, captions: np.ndarray) -> Truth:
    """The Truth where other texts than the captions ask, (M,): they are worded alike, and no verdict is on them."""
    known = truth.likeness and replace(truth.likeness, wording=alike.wordings_of(captions))
    return Truth(truth.wanted, np.array(caption_numbers(captions)[0]), known)


def mark(truth: Truth, own: Positives, texts: np.ndarray, images: np.ndarray) -> tuple[Marked, Alike | None]:
    """(Marked, what is alike) of queries with `own`, all items of their products.

    `texts` (Q,) are the numbers of the queries' texts, `images` (G,) those of the gallery's images.
    """
    width, empty = len(images), np.empty(0, np.int64)
    right, wrong = empty, empty
    if truth.judged:
        right, wrong = (
            judgements.keys_in(pairs, truth.caption, texts, images)
            for pairs in (truth.judged.right, truth.judged.wrong)
        )
    positives = judgements.with_judged(own, right, width)
    if truth.likeness is None:
        return Marked(positives, None), None
    found = alike.related(truth.likeness, own, images, texts, np.union1d(right, wrong))
    return Marked(positives, found.pairs), found


def transposed(marked: Marked, width: int) -> Marked:
    """The other direction: the gallery of `width` items asks."""
    back = None if marked.alike is None else positives.transposed(marked.alike, width)
    return Marked(positives.transposed(marked.positives, width), back)


def marked_tasks(
    truth: Truth | None, tasks: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Positives | None], dict[str, int]]:
    """(tasks with what was judged right among the positives, what is alike by direction, pairs by reason) of a protocol."""
    if truth is None:
        return dict(tasks), dict.fromkeys(tasks), {}
    forward = tasks["text_to_image"]
    marked, related = mark(truth, forward.positives, forward.query_items, forward.gallery_items)
    found = {"text_to_image": marked, "image_to_text": transposed(marked, len(forward.gallery_items))}
    return (
        {direction: replace(task, positives=found[direction].positives) for direction, task in tasks.items()},
        {direction: found[direction].alike for direction in tasks},
        related.counts() if related else {},
    )


def alike_texts(truth: Truth | None, e: Embeddings, texts: np.ndarray) -> Alike | None:
    """For each of some distinct texts the images of other products that are alike, for `pair` and `sampled101`.

    There one sample alone is a hit, so what was judged right is no positive but alike. None where nobody asked.
    """
    if truth is None or truth.likeness is None:
        return None
    codes = np.unique(np.concatenate([e.text_product, e.image_product]), return_inverse=True)[1]
    of_text, of_image = codes[: len(e.text_product)], codes[len(e.text_product) :]
    said = np.flatnonzero(np.isin(truth.caption, truth.caption[texts]))  # a caption may be several products'
    query = np.searchsorted(np.sort(truth.caption[texts]), truth.caption[said])
    query = np.argsort(truth.caption[texts], kind="stable")[query]
    own = by_group(of_text[said], of_image)
    own = from_pairs(query[own.queries()], own.items, len(texts))
    marked, related = mark(truth, own, texts, np.arange(len(of_image)))
    assert related is not None
    return related._replace(pairs=joined(related.pairs, without(marked.positives, own, len(of_image))))


def alike_candidates(
    truth: Truth | None, e: Embeddings, lists: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]] | None:
    """({direction: which are alike of lists of image numbers (..., 1 + negatives), the positive first}, pairs by reason).

    In text->image the text is the positive's and the images are the candidates', else the other way round.
    """
    numbers, first = caption_numbers(e.captions)
    related = alike_texts(truth, e, np.array(first))
    if related is None:
        return None
    text_of, width = np.array(numbers)[e.image_text], len(e.image_text)
    known = {**related.keys, "all": keys_of(related.pairs, width)}
    found, counts = {}, dict.fromkeys(known, 0)
    for direction, rows in lists.items():
        first_place = np.broadcast_to(rows[..., :1], rows.shape)
        texts, images = (first_place, rows) if direction == "text_to_image" else (rows, first_place)
        keys = np.where(rows >= 0, pair_keys(text_of[texts], images, width), -1)
        for reason, pairs in known.items():
            found[direction] = is_among(keys, np.sort(pairs))
            counts[reason] += int(found[direction].sum())
    return found, counts


def alike_groups(
    truth: Truth | None, e: Embeddings, own: Positives, asking: np.ndarray
) -> tuple[Positives, dict[str, int]] | None:
    """(for each group of images with `own`, its members, the images that are alike to one of them, pairs by reason).

    Pairs are those of the `asking` (groups,) members of each group with what is alike to the group.
    """
    if truth is None or truth.likeness is None:
        return None
    related = alike.related_to_groups(truth.likeness, own, e.image_text)
    known = related.keys | {"all": keys_of(related.pairs, len(e.image_text))}
    counts = {reason: int(asking[keys // len(e.image_text)].sum()) for reason, keys in known.items()}
    return related.pairs, counts


# --------------------------------------------------------------------------------------------------- numbers


def by_truth(ranks: ranking.Ranks, truth: Truth, products: np.ndarray, ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """{truth: the numbers of a direction} of the queries that have a positive."""
    found = ranks.best != ranking.NEVER
    best = {name: column[found] for name, column in best_ranks(ranks).items()}
    return by_truth_of_best(truth, best, products[found], ks)


def best_ranks(ranks: ranking.Ranks) -> dict[str, np.ndarray]:
    """{truth: (Q,) rank of each query's best right item} where alike ones were told to `rank_positives`."""
    columns = {"strict": ranks.best, "tolerant": ranks.best_tolerant, "without": ranks.best_without}
    return {name: column for name, column in columns.items() if column is not None}


def by_truth_of_best(
    truth: Truth, best: Mapping[str, np.ndarray], products: np.ndarray, ks: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """{truth: the numbers of a direction} of `best_ranks`, (Q,) of queries with a positive, and their products."""
    return {name: _of_best(best[name], products, ks) for name in truth.wanted}


def by_truth_of_pairs(
    truth: Truth, found: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], products: Mapping[str, np.ndarray]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{direction: {truth: numbers}} of what `pairs.pair_truths` found; `products` are those of the samples, by direction."""
    return {
        direction: {name: _of_values(by_name[name], products[direction]) for name in truth.wanted}
        for direction, by_name in found.items()
    }


def _of_best(best, products, ks):
    values = {f"recall@{k}": (best <= k).astype(np.float64) for k in ks} | {"mrr": 1.0 / best}
    return _of_values(values | {"mean_rank": best}, products)


def _of_values(values, products):
    """Means of {name: (Q,)} shares with their intervals over products, and the median of the ranks."""
    shares = {name: column for name, column in values.items() if name.startswith("recall@") or name == "mrr"}
    sums, counts, _ = intervals.product_sums(shares, products)
    return {
        "queries": len(products),
        "median_rank": float(np.median(values["mean_rank"])),
        **{name: float(column.mean()) for name, column in shares.items()},
        "intervals": {
            name: intervals.share_interval(column, counts, 1.0 if name.startswith("recall") else 0.0)
            for name, column in sums.items()
        },
    }


def entry(
    truth: Truth, numbers: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], of: str = CAPTIONS_AND_PICTURES
) -> dict[str, Any]:
    """The `truth` of a protocol's results: {truth: {direction: numbers}}, the pairs concerned, and what they are in words."""
    by_name = {name: {direction: of[name] for direction, of in numbers.items()} for name in truth.wanted}
    return {**by_name, "pairs": dict(counts), "sentence": sentence(truth, counts, of)}


def sentence(truth: Truth, counts: Mapping[str, int], of: str = CAPTIONS_AND_PICTURES) -> str:
    """What the truths are and how many pairs, `of` what, they concern, in words."""
    known = truth.likeness
    assert known is not None
    what = "; ".join(f"{name}: {MEANING[name]}" for name in truth.wanted)
    reasons = [f"{counts[reason]:,} by {WHATS[reason]}" for reason in alike.REASONS if reason in counts]
    if known.names:
        reasons[-1] += f" ({', '.join(known.names[:5])}{', ...' if len(known.names) > 5 else ''})"
    missing = ["pictures were not compared, since there are no fingerprints of them"] if known.look is None else []
    missing += ["there are no attributes to compare"] if known.kind is None else []
    if known.incomplete:
        missing.append(f"{known.incomplete:,} samples lack an attribute of their category and are like none by these")
    pairs = f"{counts['all']:,} pairs of {of} are alike"
    return "; ".join([f"{what}. {pairs}: {', '.join(reasons)}", *missing])
