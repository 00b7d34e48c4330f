"""Pairs of a caption and a picture that the catalogue calls wrong and that may well be right: a list for people to judge.

Disputed is what a model puts among its first answers, if the pictures look alike and category and all attributes are equal.
How alike pictures look is told by their fingerprints, not by the model's embeddings: a pair is here because the model likes
it, so its own opinion would say nothing. The limits are wider than those of near-duplicates, since a person looks again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.pictures.near_duplicates import differences
from clip_finetuning.pictures.thumbnails import data_url
from clip_finetuning.retrieval import alike, judgements, names, positives, protocols, ranking
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.truth import Truth
from clip_finetuning.runtime import spreadsheet
from clip_finetuning.runtime.pages import templates

TOP = 10  # answers of each query that are looked at
MAX_DISTANCE, MAX_COLOUR = 20, 24.0  # bits of 64, levels of 256: 24 % of the views of a drawn product, 2 % of others
THUMBNAIL = 144  # pixels of the longer side
PAGE_BYTES = 1_800_000  # of pictures on the page
HEADER = (
    "verdict",
    "caption",
    "image_key",
    "product",
    "image_product",
    *names.DIRECTIONS,
    "bits",
    "levels",
    "attributes",
)
NO_ATTRIBUTES = (
    "--disputed goes by attributes, and no sample has any: keep some with --attributes of clip_prep.py, or name fields of "
    "the .json with --attributes"
)
TEMPLATES = templates(Path(__file__).parent)


class Pair(NamedTuple):
    """A caption and a picture of another product."""

    text: int  # numbers in the Embeddings
    image: int
    own: int  # the caption's own picture that looks most like it
    ranks: dict[str, int]  # {direction: the rank at which the one found the other}
    bits: int  # by which the two pictures' hashes differ
    levels: float  # by which their colours do


def check(embeddings: Embeddings) -> None:
    """ValueError where there is nothing by which pairs could be disputed."""
    if embeddings.attributes is None:
        raise ValueError(NO_ATTRIBUTES)
    if embeddings.looks is None:
        raise ValueError(
            "--disputed compares pictures, and the embeddings file has no fingerprints of them: write it anew with "
            "--save-embeddings and --truth all"
        )


def find(embeddings: Embeddings, truth: Truth, kept: Mapping[str, ranking.Ranks] | None = None) -> list[Pair]:
    """The disputed pairs of the product protocol, those that look most alike first; judged ones are left out.

    Of embeddings that pass `check`. `kept`: what `protocols.evaluate` kept of the protocol.
    """
    tasks = protocols.tasks(embeddings, "product")
    forward = tasks["text_to_image"]
    texts, images = forward.query_items, forward.gallery_items
    known = alike.likeness_of(embeddings)
    kinds_alone = replace(known, look=None, near=None, wording=np.arange(len(known.wording)))
    judged = alike.NONE
    if truth.judged:
        pairs = (truth.judged.right, truth.judged.wrong)
        judged = np.union1d(*(judgements.keys_in(one, truth.caption, texts, images) for one in pairs))
    allowed = positives.keys_of(alike.related(kinds_alone, forward.positives, images, texts, judged).pairs, len(images))
    ranks: dict[int, dict[str, int]] = {}
    for direction, task in tasks.items():
        answered = (
            kept[direction] if kept else ranking.rank_positives(task.queries, task.gallery, task.positives, top=TOP)
        )
        assert answered.top_items is not None  # they were asked for
        items = answered.top_items[:, :TOP]
        asking, rank = np.divmod(np.arange(items.size), items.shape[1])
        pair = (asking, items.ravel()) if direction == "text_to_image" else (items.ravel(), asking)
        keys = pair[0] * np.int64(len(images)) + pair[1]
        for key, place in zip(keys[np.isin(keys, allowed)].tolist(), rank[np.isin(keys, allowed)].tolist()):
            ranks.setdefault(key, {})[direction] = place + 1
    found = [_pair(embeddings, forward, *divmod(key, len(images)), of) for key, of in ranks.items()]
    near = [pair for pair in found if pair.bits <= MAX_DISTANCE and pair.levels <= MAX_COLOUR]
    return sorted(near, key=lambda pair: (pair.bits + pair.levels, min(pair.ranks.values()), pair.text, pair.image))


def _pair(e, task, query, item, ranks):
    own = task.gallery_items[task.positives.of(query)]
    image = int(task.gallery_items[item])
    bits, levels = differences(e.looks[own], e.looks[image])
    best = int(np.argmin(bits + levels))
    return Pair(int(task.query_items[query]), image, int(own[best]), ranks, int(bits[best]), float(levels[best]))


def table(embeddings: Embeddings, pairs: Sequence[Pair]) -> list[list[object]]:
    """A row for each pair, as HEADER says; its verdict is blank."""
    e = embeddings
    assert e.attributes is not None
    return [
        [
            "",
            e.captions[pair.text],
            e.image_key[pair.image],
            e.text_product[pair.text],
            e.image_product[pair.image],
            *(pair.ranks.get(direction, "") for direction in names.DIRECTIONS),
            pair.bits,
            round(pair.levels, 1),
            "; ".join(f"{name}: {text}" for name, text in e.attributes[pair.image].items()),
        ]
        for pair in pairs
    ]


def csv(embeddings: Embeddings, pairs: Sequence[Pair]) -> str:
    """The pairs as a table whose column `verdict` is to be filled with right or wrong."""
    return spreadsheet.written(HEADER, table(embeddings, pairs))


def images_of(pairs: Sequence[Pair]) -> list[int]:
    """The numbers of the pictures that a page of pairs shows."""
    return list(dict.fromkeys(image for pair in pairs for image in (pair.own, pair.image)))


def page(embeddings: Embeddings, pairs: Sequence[Pair], pictures: Mapping[int, bytes], csv_name: str) -> str:
    """One page that shows the pairs side by side, takes a verdict for each and writes them as `csv_name`.

    `pictures`: {image: encoded picture}. Pairs for whose pictures there is no room are in the table alone.
    """
    shown: list[dict[str, Any]] = []
    urls: dict[int, str | None] = {}
    size = 0
    rows = table(embeddings, pairs)
    for pair, row in zip(pairs, rows):
        for image in (pair.own, pair.image):
            if image not in urls:
                urls[image] = data_url(pictures.get(image), THUMBNAIL)
            size += len(urls[image] or "")  # as often as it is shown
        if size > PAGE_BYTES:
            break
        shown.append(_card(embeddings, pair, row, urls))
    cells = [[str(spreadsheet.cell(value)) for value in row] for row in rows[: len(shown)]]
    return TEMPLATES.get_template("disputed.html.j2").render(
        cards=shown,
        left_out=len(pairs) - len(shown),
        csv_name=csv_name,
        # In a script element nothing is escaped but what could end it.
        table=json.dumps({"name": csv_name, "header": HEADER, "rows": cells}).replace("<", "\\u003c"),
    )


def _card(e, pair, row, urls):
    return {
        "caption": str(e.captions[pair.text]),
        "other_caption": str(e.captions[e.image_text[pair.image]]),
        "own": {"key": str(e.image_key[pair.own]), "url": urls[pair.own], "product": str(e.image_product[pair.own])},
        "other": {
            "key": str(e.image_key[pair.image]),
            "url": urls[pair.image],
            "product": str(e.image_product[pair.image]),
        },
        "ranks": [f"{names.title(direction)}: rank {rank}" for direction, rank in pair.ranks.items()],
        "difference": f"{pair.bits} of 64 bits, {pair.levels:.1f} of 256 levels apart",
        "attributes": row[-1],
    }
