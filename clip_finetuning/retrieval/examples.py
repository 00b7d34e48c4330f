"""Which queries a page shows, with their answers now and before: a sample, the worst failures, and what is confused.

The sample is drawn by the data alone, so that two results of the same data have the same one: a result file keeps its
answers by name (`record`), and the page of a later model shows them beside its own. Embeddings know the answers before of
every query. A picture's name is the key of its sample, a caption's is the caption.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.retrieval import names, protocols, ranking
from clip_finetuning.retrieval.embeddings import Embeddings, texts
from clip_finetuning.retrieval.positives import Positives
from clip_finetuning.retrieval.truth import Truth, marked_tasks
from clip_finetuning.runtime.text import caption_numbers, same_caption_key

QUERIES = 60  # shown in all: two thirds the sample, one third the worst
SHOWN = 5  # answers of each query


class Answer(NamedTuple):
    """An item of the gallery: a picture if texts ask, a caption if pictures do."""

    item: int  # its number in the Embeddings
    score: float


class Example(NamedTuple):
    """A query with its best answers."""

    direction: str
    query: int  # the number of a text or an image in the Embeddings
    rank: int  # of its best positive, from 1
    answers: list[Answer]
    hits: list[bool]  # which of the answers are right
    wanted: Answer  # its best positive

    @property
    def is_failed(self) -> bool:
        """Whether none of the answers is right, so that the right one is shown too."""
        return not any(self.hits)

    def images(self) -> list[int]:
        """Numbers of the images that show it."""
        if self.direction == "image_to_text":
            return [self.query]
        return [answer.item for answer in [*self.answers, *([self.wanted] if self.is_failed else [])]]


class Confusion(NamedTuple):
    """Pictures of one category that are nearest to a caption of another."""

    asked: str
    answered: str
    pictures: int
    share: float  # of the pictures of the category
    products: int  # of the category


@dataclass
class Examples:
    """What the page shows of the product protocol."""

    sample: list[Example] = field(default_factory=list)  # drawn by the data
    worst: list[Example] = field(default_factory=list)  # by the rank of the best positive
    confusions: list[Confusion] = field(default_factory=list)  # the largest share first
    before: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # as `record` writes it, of a baseline

    def images(self, embeddings: Embeddings) -> list[int]:
        """Numbers of all images on the page, those that were answers before too."""
        shown = [*self.sample, *self.worst]
        asked = {name_of(embeddings, e.direction, e.query) for e in shown if e.direction == "text_to_image"}
        before = [entry for entry in self.before.get("text_to_image", []) if entry["query"] in asked]
        names_before = {answer["name"] for entry in before for answer in entry["answers"][:SHOWN]}
        places = image_places(embeddings)
        now = {image for example in shown for image in example.images()}
        return sorted(now | {places[key] for key in names_before if key in places})

    def keys(self, embeddings: Embeddings) -> dict[int, str]:
        """{image: the key of its sample}, by which shards have its picture; a key of several samples names none."""
        return embeddings.keys_of(self.images(embeddings))


def image_places(embeddings: Embeddings) -> dict[str, int]:
    """{key: number of its image} of the keys that one sample alone has."""
    return {key: image for image, key in embeddings.keys_of(range(len(embeddings.image_key))).items()}


def name_of(embeddings: Embeddings, direction: str, query: int) -> str:
    """The name of a query: its caption as `same_caption_key` has it, or the key of its sample."""
    if direction == "text_to_image":
        return same_caption_key(str(embeddings.captions[query]))
    return str(embeddings.image_key[query])


# ------------------------------------------------------------------------------------------- what is shown


def pick(
    embeddings: Embeddings,
    truth: Truth | None = None,
    queries: int = QUERIES,
    kept: Mapping[str, ranking.Ranks] | None = None,
) -> Examples:
    """Queries of both directions in the product protocol, and what pictures are confused with.

    What people judged right (`truth`) is right here too. `kept`: what `protocols.evaluate` kept of these, by the same truth.
    """
    examples = Examples()
    for direction, task in _tasks(embeddings, truth).items():
        ranks = kept[direction] if kept else ranking.rank_positives(task.queries, task.gallery, task.positives, top=1)
        best = ranks.best
        answerable = np.flatnonzero(best != ranking.NEVER)
        hardest = answerable[np.argsort(-best[answerable], kind="stable")]
        hardest = hardest[best[hardest] > 1][: max(1, queries // 6)]
        examples.sample += _examples(direction, task, _sample(embeddings, direction, task, queries), best)
        examples.worst += _examples(direction, task, hardest, best)
        if direction == "image_to_text":
            assert ranks.top_items is not None  # they were asked for
            examples.confusions = _confusions(embeddings, task, ranks.top_items[:, 0])
    return examples


def _tasks(embeddings, truth):
    strict = truth and replace(truth, likeness=None)
    return marked_tasks(strict, protocols.tasks(embeddings, "product"))[0]


def _sample(embeddings, direction, task, queries):
    """Rows of a task that the data alone draws, a third of `queries`: not the order of texts, nor NumPy's version."""
    rows = np.arange(len(task.queries))
    if direction == "text_to_image":  # captions in the order of their pictures, which the fingerprint knows
        own = np.array(caption_numbers(embeddings.captions)[0])[embeddings.image_text]
        rows = own[np.sort(np.unique(own, return_index=True)[1])]
    rows = rows[np.diff(task.positives.offsets)[rows] > 0]
    random = np.random.PCG64(int(embeddings.fingerprint(), 16)).random_raw(len(rows))
    return rows[np.argsort(random, kind="stable")[: max(1, queries // 3)]]


def _examples(direction, task, chosen, best):
    items, scores = ranking.top_items(task.queries[chosen], task.gallery, SHOWN)
    for query, found, found_scores in zip(chosen, items.tolist(), scores.tolist()):
        own = task.positives.of(query)  # numbers in the gallery
        own_scores = task.gallery[own] @ task.queries[query]
        yield Example(
            direction=direction,
            query=int(task.query_items[query]),
            rank=int(best[query]),
            answers=[Answer(int(task.gallery_items[item]), score) for item, score in zip(found, found_scores)],
            hits=np.isin(found, own).tolist(),
            wanted=Answer(int(task.gallery_items[own[own_scores.argmax()]]), float(own_scores.max())),
        )


def _confusions(embeddings, task, nearest):
    """Pictures whose nearest caption belongs to a product of another category, the largest share first."""
    category_of = dict(zip(embeddings.image_product.tolist(), embeddings.category.tolist()))
    categories = texts(category_of.get(product, "") for product in embeddings.text_product.tolist())
    answered = categories[task.gallery_items[nearest]]
    wrong = (answered != task.query_categories) & (answered != "") & (task.query_categories != "")
    pairs = Counter(zip(task.query_categories[wrong].tolist(), answered[wrong].tolist()))
    asked = Counter(task.query_categories.tolist())
    products = Counter(category_of.values())
    found = [Confusion(*pair, count, count / asked[pair[0]], products[pair[0]]) for pair, count in pairs.items()]
    return sorted(found, key=lambda confusion: (-confusion.share, -confusion.pictures, confusion[:2]))


# --------------------------------------------------------------------------------------------- by name


def record(
    embeddings: Embeddings, truth: Truth | None = None, wanted: Mapping[str, Iterable[str]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """{direction: [{query, rank, answers: [{name, score, hit}]}]} of the sample, or of the queries with these names."""
    found = {}
    for direction, task in _tasks(embeddings, truth).items():
        if wanted is None:
            rows = _sample(embeddings, direction, task, QUERIES)
        else:
            asked = set(wanted.get(direction, ()))
            of_rows = (name_of(embeddings, direction, item) for item in task.query_items)
            rows = np.array([row for row, name in enumerate(of_rows) if name in asked], dtype=np.int64)
            rows = rows[np.diff(task.positives.offsets)[rows] > 0]
        found[direction] = [
            _named(embeddings, example) for example in _examples(direction, task, rows, _best(task, rows))
        ]
    return found


def _best(task, rows):
    """(Q,) ranks of the best positives, of these rows alone."""
    own = [task.positives.of(row) for row in rows]
    positives = Positives(np.cumsum([0, *map(len, own)]), np.concatenate([*own, np.empty(0, np.int64)]))
    best = np.full(len(task.queries), ranking.NEVER)
    best[rows] = ranking.rank_positives(task.queries[rows], task.gallery, positives).best
    return best


def _named(embeddings, example):
    column = embeddings.image_key if example.direction == "text_to_image" else embeddings.captions
    return {
        "query": name_of(embeddings, example.direction, example.query),
        "rank": example.rank,
        "answers": [
            {"name": str(column[item]), "score": round(score, 4), "hit": hit}
            for (item, score), hit in zip(example.answers, example.hits)
        ],
    }


def before(baseline: Embeddings, truth: Truth | None, examples: Examples, now: Embeddings) -> dict[str, Any]:
    """What the `baseline`'s embeddings answered to these queries of `now`; of results `examples` are all that is known."""
    shown = [*examples.sample, *examples.worst]
    asked = {way: {name_of(now, way, e.query) for e in shown if e.direction == way} for way in names.DIRECTIONS}
    return record(baseline, truth, asked)
