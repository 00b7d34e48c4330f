"""The page's cards: a query, the right answer where it was missed, and what was found, before and now."""

from collections.abc import Mapping
from typing import Any

from clip_finetuning.pictures.thumbnails import jpeg_url, thumbnail
from clip_finetuning.retrieval import examples as chosen
from clip_finetuning.retrieval import names
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.examples import Example, Examples

SIZES = (
    (144, 78),
    (112, 72),
    (88, 65),
    (64, 55),
    (48, 40),
)  # pixels of the longer side, JPEG quality: the first that fits
LONGEST = 1_500  # characters of a caption; the rest is counted
ALT = 120  # characters of what is read out for a picture


class Cards:
    """Examples as the template takes them, with pictures of one of `SIZES`."""

    def __init__(self, embeddings: Embeddings, examples: Examples, pictures: Mapping[int, bytes]) -> None:
        self._embeddings, self._examples = embeddings, examples
        self._places = chosen.image_places(embeddings)
        self._thumbnails = {image: small for image, data in pictures.items() if (small := thumbnail(data, SIZES[0][0]))}
        self._urls: dict[int, str] = {}
        self._before = {way: {entry["query"]: entry for entry in entries} for way, entries in examples.before.items()}

    def made(self, size: int, quality: int) -> dict[str, Any]:
        """{sample, worst: [(direction, its title, its cards)]}; a direction that has none is left out."""
        self._urls = {image: _data_url(picture, size, quality) for image, picture in self._thumbnails.items()}
        return {part: self._by_direction(getattr(self._examples, part)) for part in ("sample", "worst")}

    def _by_direction(self, examples):
        cards = {way: [self._card(e) for e in examples if e.direction == way] for way in names.DIRECTIONS}
        return [(way, title(way), mine) for way, mine in cards.items() if mine]

    def _card(self, example: Example):
        answer, query = (self._picture, self._caption)
        if example.direction == "image_to_text":
            answer, query = query, answer
        answers = [
            answer(number) | {"score": score, "is_hit": is_hit}
            for (number, score), is_hit in zip(example.answers, example.hits)
        ]
        return {
            "direction": example.direction,
            "query": query(example.query),
            "rank": example.rank,
            "answers": answers,
            "wanted": answer(example.wanted.item) | {"score": example.wanted.score} if example.is_failed else None,
            "before": self._past(example),
        }

    def _past(self, example):
        """{rank, answers} of the model before, None if they are not known."""
        name = chosen.name_of(self._embeddings, example.direction, example.query)
        entry = self._before.get(example.direction, {}).get(name)
        if entry is None:
            return None
        answers = [
            (_text(answer["name"]) if example.direction == "image_to_text" else self._picture_named(answer["name"]))
            | {"score": answer["score"], "is_hit": answer["hit"]}
            for answer in entry["answers"][: chosen.SHOWN]
        ]
        return {"rank": entry["rank"], "answers": answers}

    def _caption(self, text):
        return _text(str(self._embeddings.captions[text]))

    def _picture(self, image):
        key = str(self._embeddings.image_key[image])
        caption = str(self._embeddings.captions[self._embeddings.image_text[image]])
        words = f"{key}: {caption}"
        alt = words if len(words) <= ALT else f"{words[:ALT]}…"
        return {"kind": "picture", "text": key, "alt": alt, "url": self._urls.get(image)}

    def _picture_named(self, key):
        if key in self._places:
            return self._picture(self._places[key])
        return {"kind": "picture", "text": key, "alt": key, "url": None}


def title(direction: str) -> str:
    """A direction as the page writes it: Text → image."""
    return names.title(direction).replace("->", " → ").capitalize()


def _text(caption):
    more = len(caption) - LONGEST
    return {"kind": "caption", "text": f"{caption[:LONGEST]} … ({more:,} more characters)" if more > 0 else caption}


def _data_url(picture, size, quality):
    small = picture.copy()
    small.thumbnail((size, size))
    return jpeg_url(small, quality)
