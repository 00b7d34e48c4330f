"""Texts that ask besides the captions: keyword captions, names of categories, further wordings; embedded, and in files.

They are made where the model is (`query_making`) and saved with the embeddings, in arrays named by their kind:
`short_queries` (texts, packed), `short_query_embeddings`, `short_query_groups` (the product, or category, of each),
`short_query_languages`, `short_query_note` (and the prompts, where they are not the usual ones). So a file can be asked later what the model was asked.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_finetuning.retrieval.embeddings import Embeddings, is_folder, packed, texts, unit, unpacked
from clip_finetuning.retrieval.names import OF_CATEGORIES, QUERIES_OF
from clip_finetuning.runtime.text import caption_numbers

FLAGS = {"short": "--queries short", "category": "--queries category", "wording": "--captions all"}


WHY_NONE = {
    "short": "no caption has a word to ask for, all are stop words and marks",
    "category": "the data name no categories",
    "wording": "the samples have no captions",
}


class NothingToAsk(ValueError):
    """The data have nothing that a protocol asks for; the message names the protocol, and what is missing."""


@dataclass
class QueryTexts:
    """T texts of one kind; a text is given once for each product, or category, that it asks for."""

    embeddings: np.ndarray  # (T, D) float32, unit length
    texts: np.ndarray  # (T,)
    groups: np.ndarray  # (T,) product ids, or names of categories as the shards have them
    languages: np.ndarray  # (T,) such as "de", "de en" where a text is both, blank where nobody says
    note: str  # how they were made, as the protocol's sentence says it
    prompts: tuple[str, ...] = ()  # in which each was asked, if in others than zero_shot.PROMPTS


def asked(embeddings: Embeddings, protocol: str, queries: Mapping[str, QueryTexts]) -> Embeddings:
    """The embeddings with the texts of a protocol, which `queries` holds, in the captions' place; else NothingToAsk."""
    kind = QUERIES_OF[protocol]
    if kind not in queries:
        raise NothingToAsk(f"{protocol} has nothing to ask: {WHY_NONE[kind]}")
    return with_texts(embeddings, queries[kind], by_category=kind == OF_CATEGORIES)


def what_decides(protocol: str, embeddings: Embeddings, queries: Mapping[str, QueryTexts]) -> dict[str, np.ndarray]:
    """What numbers of a protocol depend on besides the samples' keys, products and captions."""
    mine = queries[QUERIES_OF[protocol]]
    decides = {"texts": mine.texts, "groups": mine.groups, "languages": mine.languages}
    decides |= {"prompts": texts(mine.prompts)} if mine.prompts else {}
    return decides | ({"category": embeddings.category} if QUERIES_OF[protocol] == OF_CATEGORIES else {})


def with_texts(embeddings: Embeddings, queries: QueryTexts, by_category: bool = False) -> Embeddings:
    """The embeddings with these texts for captions; `by_category`, a category stands for a product."""
    groups = embeddings.category if by_category else embeddings.image_product
    first = {group: number for number, group in reversed(list(enumerate(queries.groups.tolist())))}
    return dataclasses.replace(
        embeddings,
        text_embeddings=queries.embeddings,
        text_product=queries.groups,
        captions=queries.texts,
        image_product=groups,
        image_text=np.array([first.get(group, 0) for group in groups.tolist()]),
    )


def by_language(queries: QueryTexts) -> dict[str, QueryTexts]:
    """{language: the texts in it}, those of most texts first; a text of two languages is in both."""
    spoken = [set(languages.split()) for languages in queries.languages.tolist()]
    counts = Counter(language for languages in spoken for language in sorted(languages))
    parts = {
        language: np.array([language in languages for languages in spoken]) for language, _ in counts.most_common()
    }
    return {
        language: QueryTexts(
            queries.embeddings[mine], queries.texts[mine], queries.groups[mine], queries.languages[mine], queries.note
        )
        for language, mine in parts.items()
    }


def describe(protocol: str, embeddings: Embeddings, note: str) -> str:
    """In words: what was queried against what; `embeddings` are those of `asked`."""
    images = len(embeddings.image_key)
    numbers, first = caption_numbers(embeddings.captions)
    if protocol == "category_to_product":
        return (
            f"each of {len(first):,} names of categories, {note}, against all {images:,} images; a hit is any product of "
            "the category; intervals are over categories"
        )
    products: list[set[str]] = [set() for _ in first]
    for number, product in zip(numbers, embeddings.text_product.tolist()):
        products[number].add(product)
    shared = [group for group in products if len(group) > 1]
    products_of_shared = len(set().union(*shared))
    several = f"shared by several products: {len(shared):,} ({products_of_shared:,} products), whose items are all hits"
    what = "keyword captions" if protocol == "short_queries" else "wordings"
    return (
        f"text->image: each of {len(first):,} distinct {what} against all {images:,} images; image->text: each image "
        f"against them; a hit is any item of the same product; {note}; {several if shared else 'none is shared by several products'}"
    )


# -------------------------------------------------------------------------------------------------- the file


def arrays(queries: Mapping[str, QueryTexts]) -> dict[str, np.ndarray]:
    """What an embeddings file holds of them."""
    return {
        name: array
        for kind, mine in queries.items()
        for name, array in (
            (f"{kind}_queries", packed(mine.texts)),
            (f"{kind}_query_embeddings", mine.embeddings),
            (f"{kind}_query_groups", packed(mine.groups)),
            (f"{kind}_query_languages", packed(mine.languages)),
            (f"{kind}_query_note", packed(texts([mine.note, *mine.prompts]))),
        )
    }


def load(path: str | os.PathLike, dimensions: int, protocols: Sequence[str]) -> dict[str, QueryTexts]:
    """The texts that an embeddings file holds besides the captions, {kind: QueryTexts}; of so many dimensions.

    Raises ValueError for those that are damaged, or that some of the protocols need and the file does not have.
    """
    try:
        stored = _stored(Path(path))
        found = {kind: _read(stored, kind, dimensions) for kind in FLAGS if f"{kind}_queries" in stored}
    except Exception as error:  # zip, npy and JSON errors have no common class
        raise ValueError(f"{path} holds damaged query texts: {error}; write it anew with --save-embeddings") from error
    for protocol in protocols:
        kind = QUERIES_OF.get(protocol)
        if kind and kind not in found:
            raise ValueError(
                f"{path} has no texts for {protocol}; write it anew from the shards with {FLAGS[kind]} --save-embeddings"
            )
    return found


def _stored(path):
    """{name: array} of what a file, or a folder of `.npy` files, holds of query texts."""
    if is_folder(path):
        return {file.stem: np.load(file, allow_pickle=False) for file in path.glob("*_quer*.npy")}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file if "_quer" in name}


def _read(file, kind, dimensions):
    columns = {name: unpacked(file[f"{kind}_{array}"]) for name, array in (
        ("texts", "queries"), ("groups", "query_groups"), ("languages", "query_languages"),
    )}  # fmt: skip
    rows = file[f"{kind}_query_embeddings"]
    if rows.ndim != 2 or rows.dtype.kind != "f" or rows.shape[1] != dimensions or not np.isfinite(rows).all():
        raise ValueError(
            f"{kind}_query_embeddings must be finite numbers (texts, {dimensions}), not {rows.dtype} {rows.shape}"
        )
    for name, column in columns.items():
        if len(column) != len(rows):
            raise ValueError(f"{kind} has {len(column)} {name}, but {len(rows)} embeddings")
    note, *prompts = unpacked(file[f"{kind}_query_note"])
    return QueryTexts(unit(rows), **columns, note=note, prompts=tuple(prompts))


def rows_of(embeddings: np.ndarray, found: Mapping[tuple[str, str], str], note: str) -> QueryTexts:
    """QueryTexts of {(text, group): language}, whose embeddings (T, D) are in this order."""
    return QueryTexts(
        embeddings=embeddings,
        texts=texts(text for text, _ in found),
        groups=texts(group for _, group in found),
        languages=texts(found.values()),
        note=note,
    )
