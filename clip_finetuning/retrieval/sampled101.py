"""`sampled101`: each query against its positive and 100 negatives, in lists that are frozen by a seed.

A file of lists (`.npz`) can be passed on, so that others rank the very same candidates. The protocol is that of
FashionBERT (Gao et al. 2020) and those after it, who published no lists.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import metrics, ranking, summary
from clip_finetuning.retrieval.embeddings import Embeddings, numbered, packed, texts
from clip_finetuning.retrieval.names import DIRECTIONS
from clip_finetuning.retrieval.positives import Positives, by_group, from_pairs, transposed
from clip_finetuning.retrieval.truth import CAPTIONS_AND_PICTURES, Truth, alike_candidates, by_truth, entry
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import caption_numbers

QUERIES, NEGATIVES, DRAWS = 1000, 100, 5
CHUNK = 100  # queries that are ranked at a time
SAME_SUBCATEGORY, SAME_CATEGORY, ANY = range(3)  # where negatives come from, the best first


class Candidates(NamedTuple):
    """The lists: what each query is ranked against."""

    lists: dict[str, np.ndarray]  # {direction: (draws, queries, 1 + negatives) of image numbers}, -1 where none is
    topped_up: int  # how many of the lists had too few negatives in the subcategory


# ------------------------------------------------------------------------------------------------- drawing


class _Products(NamedTuple):
    """The data by product, as P numbers of products."""

    of_image: np.ndarray  # (N,) the product of each image
    views: Positives  # the images of each product
    subcategory: np.ndarray  # (P,) numbers, -1 where it is not named
    category: np.ndarray  # (P,) the same
    texts: Positives  # the distinct captions of each product
    with_text: Positives  # the products of each distinct caption


def draw_candidates(embeddings: Embeddings, seed: int = 0) -> Candidates:
    """The frozen lists. Column 0 is the positive sample; each negative is the image, or its caption, of another product.

    The lists depend on the data and the seed alone: they are made of PCG64's raw numbers, the same on every machine.
    """
    products = _products(embeddings)
    lists, topped_up = {}, 0
    for number, direction in enumerate(DIRECTIONS):
        draws = []
        for draw in range(DRAWS):
            random = np.random.PCG64(np.random.SeedSequence([seed, number, draw]))
            queries = np.argsort(random.random_raw(len(products.of_image)), kind="stable")[:QUERIES]
            rows = [_draw_list(image, products, random) for image in queries]
            topped_up += sum(is_topped_up for _, is_topped_up in rows)
            draws.append(np.stack([row for row, _ in rows]))
        lists[direction] = np.stack(draws)
    return Candidates(lists, topped_up)


def _products(e):
    names, of_image = np.unique(e.image_product, return_inverse=True)
    views = by_group(np.arange(len(names)), of_image)
    first = views.items[views.offsets[:-1]]  # images that say the categories of their products
    subcategories = texts(f"{c}\0{s}" if s else "" for c, s in zip(e.category[first], e.subcategory[first]))
    text_of = _texts_of_images(e)
    said = from_pairs(of_image, text_of, len(names))
    return _Products(
        of_image=of_image,
        views=views,
        subcategory=numbered(subcategories),
        category=numbered(e.category[first]),
        texts=said,
        with_text=transposed(said, text_of.max() + 1),
    )


def _texts_of_images(e):
    """(N,) the number of each image's own caption, the same for the same caption."""
    return np.array(caption_numbers(e.captions)[0])[e.image_text]


def _draw_list(image, products, random):
    """((1 + NEGATIVES,) image numbers, whether the subcategory was too small) for the query of one image."""
    own = products.of_image[image]
    others = np.argsort(random.random_raw(len(products.category)), kind="stable")
    may_be_negative = np.full(len(others), True)
    for text in products.texts.of(own):  # of the product itself too
        may_be_negative[products.with_text.of(text)] = False
    others = others[may_be_negative[others]]
    source = _sources(own, others, products)
    best = np.argsort(source, kind="stable")[:NEGATIVES]
    negatives, topped_up = others[best], len(best) == 0 or source[best].max() > SAME_SUBCATEGORY
    view = random.random_raw(len(negatives)) % np.diff(products.views.offsets)[negatives].astype(np.uint64)
    row = np.full(1 + NEGATIVES, -1)
    row[0] = image
    row[1 : 1 + len(negatives)] = products.views.items[products.views.offsets[negatives] + view.astype(np.int64)]
    return row, bool(topped_up)


def _sources(own, others, products):
    """For each of the other products, what it has in common with `own`: SAME_SUBCATEGORY, SAME_CATEGORY or ANY."""
    source = np.full(len(others), ANY)
    for level, numbers in ((SAME_CATEGORY, products.category), (SAME_SUBCATEGORY, products.subcategory)):
        if numbers[own] >= 0:
            source[numbers[others] == numbers[own]] = level
    return source


# ------------------------------------------------------------------------------------------------- ranking


def evaluate(
    embeddings: Embeddings,
    ks: Sequence[int],
    seed: int,
    candidates: Candidates,
    shared: bool = False,
    truth: Truth | None = None,
) -> dict[str, Any]:
    """The numbers averaged over the draws, with intervals over the products of all draws together.

    `shared`: all processes of a run rank a part; rank 0 alone has the numbers, the others {}.
    """
    e = embeddings
    lists, left_out = _without_shared_captions(e, candidates.lists)
    draws, queries, _ = lists[DIRECTIONS[0]].shape
    sizes = [(rows >= 0).sum(2) - 1 for rows in lists.values()]
    smallest, largest = int(min(size.min() for size in sizes)), int(max(size.max() for size in sizes))
    few = "" if smallest == largest else f"{smallest} to "
    result: dict[str, Any] = {
        "protocol": f"{queries:,} queries a direction, each against its positive and {few}{largest} negatives of the same "
        f"subcategory, other products; {draws} draws averaged; {candidates.topped_up:,} of {2 * draws * queries:,} lists "
        f"topped up with products of the same category, or of any, since fewer than {NEGATIVES} others are known to be of "
        "the subcategory; the same caption is never a negative"
        + (f", for which {left_out:,} candidates of these lists were left out" if left_out else ""),
        "draws": draws,
        "fewest_negatives": smallest,
        "topped_up": candidates.topped_up,
    }
    alike, counts = alike_candidates(truth, e, lists) or (dict.fromkeys(lists), {})
    ranked = {direction: _ranked(e, direction, rows, alike[direction], shared) for direction, rows in lists.items()}
    if shared and distributed.rank() > 0:
        return {}
    for direction, rows in lists.items():
        asked, sizes = rows[:, :, 0].ravel(), (rows >= 0).sum(2)
        result[direction] = summary.of_ranks(ranked[direction], e.image_product[asked], e.category[asked], ks, seed)
        result[direction]["queries"] = queries
        result[direction]["chance"] = metrics.chance_of_counts(np.ones(sizes.size, int), sizes.ravel(), ks)
    if truth and counts:
        numbers = {
            way: by_truth(ranked[way], truth, e.image_product[rows[:, :, 0].ravel()], ks) for way, rows in lists.items()
        }
        for of in (of for by_name in numbers.values() for of in by_name.values()):
            of["queries"] = queries
        result["truth"] = entry(truth, numbers, counts, f"{CAPTIONS_AND_PICTURES} that meet in a list")
    return result


def _without_shared_captions(e, lists):
    """The lists with -1 for negatives whose caption the query's product has, and how many: a file's may hold such."""
    text_of, product_of = _texts_of_images(e), np.unique(e.image_product, return_inverse=True)[1]
    width = text_of.max() + 1
    said = np.unique(product_of * width + text_of)  # which product has which caption
    cleaned, left_out = {}, 0
    for direction, rows in lists.items():
        shared = (rows >= 0) & np.isin(product_of[rows[:, :, :1]] * width + text_of[rows], said)
        shared[:, :, 0] = False
        cleaned[direction], left_out = np.where(shared, -1, rows), left_out + int(shared.sum())
    return cleaned, left_out


def _ranked(e, direction, lists, alike, shared):
    """The ranks of all draws one after another, `CHUNK` queries at a time."""
    rows = lists.reshape(-1, lists.shape[2])
    alike = None if alike is None else alike.reshape(rows.shape)
    first, last = distributed.part_of(len(rows)) if shared else (0, len(rows))
    chunks = [slice(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
    parts = [_rank_lists(e, direction, rows[part], None if alike is None else alike[part]) for part in chunks]
    if shared:
        parts = [part for parts in distributed.gather_objects(parts) for part in parts]
    return ranking.concatenated(parts)


def _rank_lists(e, direction, rows, alike):
    if direction == "text_to_image":
        queries, candidates = e.text_embeddings[e.image_text[rows[:, 0]]], e.image_embeddings[rows]
    else:
        queries, candidates = e.image_embeddings[rows[:, 0]], e.text_embeddings[e.image_text[rows]]
    is_there, zero = rows >= 0, ~queries.any(1)
    if zero.any():  # all that is there has the score 0 with such a query; what is not there must not
        queries, candidates = queries.copy(), np.where(zero[:, None, None], np.float32(0), candidates)
        queries[zero, 0] = 1
    candidates = np.where(is_there[:, :, None], candidates, -np.sign(queries)[:, None] * 1e6)  # no rival at all
    return ranking.rank_candidates(queries, candidates, alike)


# ------------------------------------------------------------------------------------------------ the file


def read_or_draw(path: str | os.PathLike | None, embeddings: Embeddings, seed: int) -> Candidates:
    """The lists of a file, if it is there; else they are drawn, and written there if a file is named.

    Raises ValueError if the file's are damaged, or not of this data.
    """
    fingerprint = embeddings.fingerprint()
    if path and Path(path).exists():
        return _read(path, fingerprint, len(embeddings.image_key))
    candidates = draw_candidates(embeddings, seed)
    if not path:
        return candidates
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            fingerprint=np.array(fingerprint),
            topped_up=np.array(candidates.topped_up),
            image_key=packed(embeddings.image_key),
            text_to_image=candidates.lists["text_to_image"],
            image_to_text=candidates.lists["image_to_text"],
        )
    return candidates


def _read(path, fingerprint, images):
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in {*DIRECTIONS, "topped_up", "fingerprint"} & {*file}}
        drawn_for = str(arrays["fingerprint"])
    except Exception as error:  # zip and npy errors have no common class
        raise ValueError(f"{path} holds no candidate lists; name another file to draw new ones") from error
    if drawn_for != fingerprint:
        raise ValueError(f"{path} holds candidate lists of other data; name another file to draw new ones")
    try:
        check_candidates(arrays, images)
    except ValueError as error:
        raise ValueError(f"{path} holds damaged candidate lists: {error}; name another file to draw new ones") from None
    return Candidates({way: arrays[way].astype(np.int64) for way in DIRECTIONS}, int(arrays["topped_up"]))


def check_candidates(arrays: dict[str, np.ndarray], images: int) -> None:
    """ValueError unless the arrays of a file are lists, as `draw_candidates` makes them, of so many images."""
    for way in DIRECTIONS:
        rows = arrays.get(way)
        if rows is None or rows.ndim != 3 or rows.dtype.kind not in "iu" or not rows.size:
            raise ValueError(f"{way!r} must be whole numbers of images (draws, queries, 1 + negatives)")
        if rows.min() < -1 or rows.max() >= images or rows[:, :, 0].min() < 0:
            raise ValueError(f"{way!r} has numbers of images that are not there; there are {images}")
    if arrays[DIRECTIONS[0]].shape[:2] != arrays[DIRECTIONS[1]].shape[:2]:
        raise ValueError("the two directions have other numbers of draws or queries")
    topped_up = arrays.get("topped_up", np.array(None))
    if topped_up.shape != () or topped_up.dtype.kind not in "iu":
        raise ValueError("'topped_up' must be a whole number")
