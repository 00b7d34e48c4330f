"""One self-contained HTML page of an evaluation: numbers, categories, examples with pictures, failures, confusions.

`pick_examples` says which queries are shown, `render` makes the page of them by the template `report.html.j2`; the
pictures in between come from the caller, since only it knows the shards. No script and no outside file: the page opens
from disk, light or dark, on any screen.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_finetuning.pictures.decode import PictureError, load_picture
from clip_finetuning.retrieval import comparison, metrics, names, protocols
from clip_finetuning.retrieval.embeddings import Embeddings, texts
from clip_finetuning.runtime.pages import templates

QUERIES = 60  # shown in all: two thirds a random sample, one third the worst
SHOWN = 5  # answers of each query
THUMBNAIL = 160  # pixels of the longer side
BARS = 40  # categories in the chart
CONFUSIONS = 12
TEMPLATES = templates(Path(__file__).parent)


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


@dataclass
class Examples:
    """What the page shows of the product protocol."""

    sample: list[Example] = field(default_factory=list)  # drawn at random, by seed
    worst: list[Example] = field(default_factory=list)  # by the rank of the best positive
    confusions: list[Confusion] = field(default_factory=list)

    def images(self) -> list[int]:
        """Numbers of all images on the page."""
        return sorted({image for example in [*self.sample, *self.worst] for image in example.images()})

    def keys(self, embeddings: Embeddings) -> dict[int, str]:
        """{image: the key of its sample}, by which shards have its picture; a key of several samples names none."""
        keys, counts = np.unique(embeddings.image_key, return_counts=True)
        single = set(keys[counts == 1].tolist())
        return {image: key for image in self.images() if (key := str(embeddings.image_key[image])) in single}


# ------------------------------------------------------------------------------------------- what is shown


def pick_examples(embeddings: Embeddings, queries: int = QUERIES, seed: int = 0) -> Examples:
    """Queries of both directions in the product protocol, and what pictures are confused with."""
    examples = Examples()
    for direction, task in protocols.tasks(embeddings, "product").items():
        best = metrics.rank_positives(task.queries, task.gallery, task.positives).best
        answerable = np.flatnonzero(best != metrics.NEVER)
        random = np.random.Generator(np.random.PCG64(seed))
        drawn = random.permutation(answerable)[: max(1, queries // 3)]
        hardest = answerable[np.argsort(-best[answerable], kind="stable")]
        hardest = hardest[best[hardest] > 1][: max(1, queries // 6)]
        examples.sample += _examples(direction, task, drawn, best)
        examples.worst += _examples(direction, task, hardest, best)
        if direction == "image_to_text":
            examples.confusions = _confusions(embeddings, task)
    return examples


def _examples(direction, task, chosen, best):
    items, scores = metrics.top_items(task.queries[chosen], task.gallery, SHOWN)
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


def _confusions(embeddings, task):
    """Pictures whose nearest caption belongs to a product of another category, the most frequent first."""
    category_of = dict(zip(embeddings.image_product.tolist(), embeddings.category.tolist()))
    categories = texts(category_of.get(product, "") for product in embeddings.text_product.tolist())
    answered = categories[task.gallery_items[metrics.nearest_items(task.queries, task.gallery)]]
    wrong = (answered != task.query_categories) & (answered != "") & (task.query_categories != "")
    pairs = Counter(zip(task.query_categories[wrong].tolist(), answered[wrong].tolist()))
    asked = Counter(task.query_categories.tolist())
    return [Confusion(*pair, count, count / asked[pair[0]]) for pair, count in pairs.most_common(CONFUSIONS)]


# ------------------------------------------------------------------------------------------------ the page


def render(
    results: dict[str, Any],
    embeddings: Embeddings,
    examples: Examples,
    pictures: Mapping[int, bytes],
    baseline: dict[str, Any] | None = None,
) -> str:
    """The page as text. `pictures`: {image: encoded picture}; `baseline`: another result of the same data."""
    headline = results["protocols"]["product"]
    is_compared = bool(baseline) and comparison.comparable(baseline, results, "product")
    before = baseline["protocols"]["product"] if baseline and is_compared else None
    show = _Shown(embeddings, pictures).example
    model = results.get("model")
    return TEMPLATES.get_template("report.html.j2").render(
        title=f"Retrieval with {model['name']}" if model else "Retrieval with given embeddings",
        facts=_facts(results, baseline, is_compared),
        note=f"{headline['protocol']}. Intervals: 95 %, over products. A positive that ties with negatives counts after them.",
        is_compared=is_compared,
        rows=list(_headline(headline, before)),
        charts=[_chart(direction, headline, before) for direction in names.DIRECTIONS],
        sample=_by_direction(examples.sample, show),
        worst=_by_direction(examples.worst, show),
        confusions=examples.confusions,
    )


def _facts(results, baseline, is_compared):
    """{name: text} of what was measured, on what."""
    model, data = results.get("model", {}), results.get("data", {})
    left_out = ", ".join(f"{count} {reason}" for reason, count in (data.get("skipped") or {}).items())
    facts = {
        "weights": model.get("weights") or results.get("embeddings"),
        "shards": data.get("pattern"),
        "data": f"{results['num_samples']:,} images, {results['num_products']:,} products, {results['num_captions']:,} captions",
        "left out": left_out,
        "compared with" if is_compared else "not comparable with": baseline and baseline["name"],
    }
    return {name: str(value) for name, value in facts.items() if value}


def _headline(headline, before):
    """Rows of the table: the recalls with intervals, chance, and what was gained."""
    for direction in names.DIRECTIONS:
        numbers = headline[direction]
        for key in [*names.recalls(numbers), *names.OTHER_NUMBERS]:
            low, high = numbers["intervals"][key]
            yield {
                "direction": _title(direction),
                "label": names.label(key),
                "value": _number(key, numbers[key]),
                "low": _number(key, low),
                "high": _number(key, high),
                "chance": f"{numbers['chance'][key]:.3f}" if key in numbers["chance"] else "",
                "before": _number(key, before[direction][key]) if before and key in before[direction] else "",
                "gain": _gain(before[direction], numbers, key) if before else None,
            }


def _gain(before, numbers, key):
    """{difference, low, high, verdict} of what both results know by product, else None."""
    if key not in before["by_product"] or key not in numbers["by_product"]:
        return None
    gain, (low, high) = comparison.paired_difference(before, numbers, key)
    signed = {"difference": f"{gain:+.3f}", "low": f"{low:+.3f}", "high": f"{high:+.3f}"}
    return signed | {"verdict": comparison.verdict(low, high)}


def _title(direction):
    return names.title(direction).replace("->", " → ")


def _number(key, value):
    return f"{value:,.0f}" if key.endswith("rank") else f"{value:.3f}"


def _chart(direction, headline, before):
    """Recall@10 of the largest categories as bars: shares of the full width."""
    key, categories = "recall@10", headline[direction]["categories"]
    bars = []
    for name, numbers in list(categories.items())[:BARS]:
        low, high = numbers["intervals"][key]
        known = before[direction].get("categories", {}).get(name, {}) if before else {}
        bars.append(
            {
                "name": name or "(none)",
                "products": numbers["products"],
                "value": numbers[key],
                "low": low,
                "width": high - low,
                "before": known.get(key),
            }
        )
    return {"title": _title(direction), "bars": bars, "left_out": len(categories) - len(bars)}


def _by_direction(examples, show):
    """[(title, the examples of a direction)], none for a direction that has none."""
    shown = {way: [show(example) for example in examples if example.direction == way] for way in names.DIRECTIONS}
    return [(_title(way), mine) for way, mine in shown.items() if mine]


class _Shown:
    """Examples as the template takes them."""

    def __init__(self, embeddings, pictures):
        self.embeddings = embeddings
        self.urls = {image: _data_url(data) for image, data in pictures.items()}

    def example(self, example):
        query, answer = self._caption, self._picture
        if example.direction == "image_to_text":
            query, answer = answer, query
        return {
            "direction": example.direction,
            "query": query(example.query),
            "rank": example.rank,
            "answers": [
                answer(number) | {"score": score, "is_hit": is_hit}
                for (number, score), is_hit in zip(example.answers, example.hits)
            ],
            "wanted": answer(example.wanted.item) | {"score": example.wanted.score} if example.is_failed else None,
        }

    def _caption(self, text):
        return {"kind": "caption", "text": str(self.embeddings.captions[text])}

    def _picture(self, image):
        return {"kind": "picture", "text": str(self.embeddings.image_key[image]), "url": self.urls.get(image)}


def _data_url(data):
    """Encoded picture -> a small JPEG within an address, or None if it cannot be read."""
    try:
        picture = load_picture(data)
    except PictureError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
