"""One self-contained HTML page of an evaluation: numbers, categories, examples with pictures, failures, confusions.

`pick_examples` says which queries are shown, `render` makes the page; the pictures in between come from the caller,
since only it knows the shards. No script and no outside file: the page opens from disk, light or dark, on any screen.
"""

import base64
import io
from collections import Counter
from html import escape
from typing import NamedTuple

import numpy as np

from clip_finetuning.pictures.decode import PictureError, load_picture
from clip_finetuning.retrieval import metrics
from clip_finetuning.retrieval.comparison import paired_difference, verdict
from clip_finetuning.retrieval.embeddings import Embeddings, texts
from clip_finetuning.retrieval.protocols import DIRECTIONS, tasks

QUERIES = 60  # shown in all: two thirds a random sample, one third the worst
SHOWN = 5  # answers of each query
THUMBNAIL = 160  # pixels of the longer side
BARS = 40  # categories in the chart
CONFUSIONS = 12
WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}


class Example(NamedTuple):
    """A query with its best answers; numbers are those of texts or images in the Embeddings."""

    direction: str
    query: int
    rank: int  # of its best positive, from 1
    answers: list[int]
    hits: list[bool]
    scores: list[float]
    wanted: int  # one of its positives


class Examples(NamedTuple):
    """What the page shows of the product protocol."""

    sample: list[Example]  # drawn at random, by seed
    worst: list[Example]  # by the rank of the best positive
    confusions: list[tuple[str, str, int, float]]  # category asked, category answered, queries, share of its queries

    def images(self):
        """Numbers of all images on the page."""
        return sorted({image for example in [*self.sample, *self.worst] for image in _images(example)})


def _images(example):
    return [*example.answers, example.wanted] if example.direction == "text_to_image" else [example.query]


# ------------------------------------------------------------------------------------------- what is shown


def pick_examples(embeddings: Embeddings, queries=QUERIES, seed=0):
    """Queries of both directions in the product protocol -> Examples."""
    sample, worst, confused = [], [], Counter()
    asked = Counter()
    for direction, task in tasks(embeddings, "product").items():
        best = metrics.rank_positives(task.queries, task.gallery, task.positives).best
        answerable = np.flatnonzero(best != metrics.NEVER)
        random = np.random.Generator(np.random.PCG64(seed))
        drawn = random.permutation(answerable)[: max(1, queries // 3)]
        hardest = answerable[np.argsort(-best[answerable], kind="stable")]
        hardest = hardest[best[hardest] > 1][: max(1, queries // 6)]
        sample += _examples(direction, task, drawn, best)
        worst += _examples(direction, task, hardest, best)
        if direction == "image_to_text":
            _count_confusions(embeddings, task, confused, asked)
    pairs = [(a, b, count, count / asked[a]) for (a, b), count in confused.most_common(CONFUSIONS)]
    return Examples(sample, worst, pairs)


def _examples(direction, task, chosen, best):
    items, scores = metrics.top_items(task.queries[chosen], task.gallery, SHOWN)
    for row, query in enumerate(chosen):
        own = task.positives.items[slice(*task.positives.offsets[query : query + 2])].tolist()
        yield Example(
            direction=direction,
            query=int(task.query_items[query]),
            rank=int(best[query]),
            answers=task.gallery_items[items[row]].tolist(),
            hits=[item in own for item in items[row].tolist()],
            scores=scores[row].tolist(),
            wanted=int(task.gallery_items[own[0]]),
        )


def _count_confusions(embeddings, task, confused, asked):
    """Pictures whose nearest caption belongs to a product of another category."""
    category_of = dict(zip(embeddings.image_product.tolist(), embeddings.category.tolist()))
    categories = texts(category_of.get(product, "") for product in embeddings.text_product.tolist())
    answered = categories[task.gallery_items[metrics.nearest_items(task.queries, task.gallery)]]
    asked.update(task.query_categories.tolist())
    wrong = (answered != task.query_categories) & (answered != "") & (task.query_categories != "")
    confused.update(zip(task.query_categories[wrong].tolist(), answered[wrong].tolist()))


def thumbnail(data):
    """Encoded picture -> small JPEG, or None if it cannot be read."""
    try:
        picture = load_picture(data)
    except PictureError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80, optimize=True)
    return encoded.getvalue()


# ------------------------------------------------------------------------------------------------ the page


def render(results, embeddings, examples, thumbnails, baseline=None):
    """The page as text. `thumbnails`: image number -> JPEG bytes; `baseline`: another result of the same data."""
    headline = results["protocols"]["product"]
    before = baseline["protocols"]["product"] if baseline else None
    show = _Shown(embeddings, {n: _data_url(jpeg) for n, jpeg in thumbnails.items() if jpeg}).example
    sections = [
        ("Recall", _headline(headline, before)),
        ("By category", _bars(headline, before)),
        ("A sample of queries", _by_direction(examples.sample, show)),
        ("The worst failures", _by_direction(examples.worst, show) or "<p>Every query has a hit in first place.</p>"),
        ("Most confused categories", _confusions(examples.confusions)),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>\n{content}\n</section>" for title, content in sections)
    return PAGE.format(
        style=STYLE,
        title=escape(_title(results)),
        facts=_facts(results, baseline),
        body=body,
        note=escape(_note(headline)),
    )


def _title(results):
    model = results.get("model")
    return f"Retrieval with {model['name']}" if model else "Retrieval with given embeddings"


def _facts(results, baseline):
    model, data = results.get("model", {}), results.get("data", {})
    left_out = ", ".join(f"{count} {reason}" for reason, count in (data.get("skipped") or {}).items())
    facts = {
        "weights": model.get("weights") or results.get("embeddings"),
        "shards": data.get("pattern"),
        "data": f"{results['num_samples']:,} images, {results['num_products']:,} products, {results['num_captions']:,} captions",
        "left out": left_out,
        "compared with": baseline["name"] if baseline else None,
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items() if value)


def _note(headline):
    return f"{headline['protocol']}. Intervals: 95 %, over products. A positive that ties with negatives counts after them."


def _headline(headline, before):
    """A table of the recalls with intervals, chance, and what was gained."""
    head = "<th>direction</th><th>measure</th><th>value</th><th>95 % interval</th><th>chance</th>"
    head += "<th>before</th><th>gain, paired</th>" if before else ""
    rows = []
    for direction in DIRECTIONS:
        numbers = headline[direction]
        recalls = [key for key in numbers if key.startswith("recall@")]
        for key in [*recalls, "median_rank", "mrr", "map"]:
            low, high = numbers["intervals"][key]
            chance = numbers["chance"].get(key)
            cells = [WAYS[direction], _label(key), f"<b>{_number(key, numbers[key])}</b>"]
            cells += [f"{_number(key, low)} – {_number(key, high)}", "" if chance is None else f"{chance:.3f}"]
            if before:
                cells += _gain(before[direction], numbers, key)
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _gain(before, numbers, key):
    old = _number(key, before[key]) if key in before else ""
    if key not in before["by_product"] or key not in numbers["by_product"]:
        return [old, ""]
    gain, (low, high) = paired_difference(before, numbers, key)
    word = verdict(low, high)
    return [old, f'<span class="{word.split()[0]}">{gain:+.3f} [{low:+.3f}, {high:+.3f}] {word}</span>']


def _label(key):
    names = {"median_rank": "median rank", "mrr": "MRR", "map": "mAP"}
    return names.get(key) or f"Recall{key[6:]}"


def _number(key, value):
    return f"{value:,.0f}" if key.endswith("rank") else f"{value:.3f}"


def _bars(headline, before):
    """Recall@10 of each category as bars with intervals, a mark where the other result stood."""
    mark = ", mark: before" if before else ""
    blocks = [
        f"<p><small>Bar: Recall@10, line: its 95 % interval{mark}. Beside each name its number of products.</small></p>"
    ]
    for direction in DIRECTIONS:
        categories = headline[direction]["categories"]
        rows = [
            _bar(name, numbers, before and before[direction]["categories"].get(name))
            for name, numbers in categories.items()
        ]
        more = f"<p>{len(rows) - BARS} smaller categories are left out.</p>" if len(rows) > BARS else ""
        blocks.append(f'<h3>{WAYS[direction]}</h3><div class="bars">{"".join(rows[:BARS])}</div>{more}')
    return "\n".join(blocks)


def _bar(name, numbers, before):
    value, (low, high) = numbers["recall@10"], numbers["intervals"]["recall@10"]
    mark = f'<i class="before" style="left:{before["recall@10"]:.1%}"></i>' if before else ""
    return (
        f'<div class="name">{escape(name or "(none)")} <small>{numbers["products"]:,}</small></div>'
        f'<div class="track"><i class="bar" style="width:{value:.1%}"></i>'
        f'<i class="range" style="left:{low:.1%};width:{high - low:.1%}"></i>{mark}</div><div class="value">{value:.2f}</div>'
    )


def _by_direction(examples, show):
    blocks = []
    for direction in DIRECTIONS:
        mine = [show(example) for example in examples if example.direction == direction]
        if mine:
            blocks.append(f'<h3>{WAYS[direction]}</h3><div class="examples">{"".join(mine)}</div>')
    return "\n".join(blocks)


class _Shown:
    """Queries and answers as HTML."""

    def __init__(self, embeddings, urls):
        self.embeddings, self.urls = embeddings, urls

    def example(self, example):
        rank = "hit in first place" if example.rank == 1 else f"first hit at rank {example.rank:,}"
        if example.direction == "text_to_image":
            query, answer = self._caption(example.query), self._picture
        else:
            query, answer = self._picture(example.query), self._caption
        answers = "".join(
            f'<li class="{"hit" if hit else "miss"}"><span class="mark">{"✓ hit" if hit else "✗"} {score:.3f}</span>'
            f"{answer(number)}</li>"
            for number, hit, score in zip(example.answers, example.hits, example.scores)
        )
        return f'<article class="{example.direction}"><header>{query}<small>{rank}</small></header><ol>{answers}</ol></article>'

    def _caption(self, text):
        return f"<p>{escape(str(self.embeddings.captions[text]))}</p>"

    def _picture(self, image):
        key = escape(str(self.embeddings.image_key[image]), quote=True)
        if image not in self.urls:
            return f'<span class="gone">{key}</span>'
        return f'<img src="{self.urls[image]}" alt="{key}" title="{key}">'


def _confusions(confusions):
    if not confusions:
        return "<p>No picture is nearest to a caption of another category.</p>"
    rows = "".join(
        f"<tr><td>{escape(asked)}</td><td>{escape(answered)}</td><td>{count:,}</td><td>{share:.1%}</td></tr>"
        for asked, answered, count, share in confusions
    )
    head = "<th>picture of</th><th>nearest caption is of</th><th>pictures</th><th>share of the category</th>"
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _data_url(jpeg):
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header class="top"><h1>{title}</h1><dl>{facts}</dl><p>{note}</p></header>
{body}
</body>
</html>
"""
STYLE = """
:root { --ink: #1c2024; --soft: #60646c; --paper: #fcfcfd; --card: #fff; --line: #d9d9e0; --bar: #3e63dd; --hit: #18794e;
  --hit-paper: #e6f6eb; --miss: #b0423c; --before: #ad5700 }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --paper: #111113; --card: #18191b;
  --line: #393a40; --bar: #849dff; --hit: #5bd98f; --hit-paper: #132d21; --miss: #ff9592; --before: #ffca16 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
small, .top p, dt { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0 } dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--soft) } .better { color: var(--hit) } .worse { color: var(--miss) }
.bars { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr max-content; gap: .3rem .7rem; align-items: center }
.name { overflow-wrap: anywhere } .value { font-variant-numeric: tabular-nums }
.track { position: relative; height: 1rem; background: var(--line); border-radius: 3px } .track i { position: absolute }
.bar { inset: 0 auto 0 0; background: var(--bar); border-radius: 3px }
.range { top: calc(50% - 1px); height: 2px; background: var(--ink) }
.before { top: -2px; bottom: -2px; width: 3px; margin-left: -1px; background: var(--before) }
.examples { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)) }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem; min-width: 0 }
article p { margin: 0; overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 6; -webkit-box-orient: vertical; overflow: hidden }
article header small { display: block; margin: .2rem 0 .5rem }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .4rem }
.text_to_image ol { grid-template-columns: repeat(5, 1fr) }
li { border: 2px solid transparent; border-radius: 6px; padding: .3rem; min-width: 0; font-size: .85rem }
li.hit { border-color: var(--hit); background: var(--hit-paper) } li.miss { border-color: var(--line) }
.mark { display: block; overflow: hidden; font-size: .75rem; color: var(--soft) } .hit .mark { color: var(--hit); font-weight: 600 }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: #fff } .gone { overflow-wrap: anywhere; color: var(--soft) }
.wanted { margin-top: .5rem; padding-left: .4rem; border-left: 3px solid var(--hit); font-size: .85rem } .wanted img { max-width: 20% }
.image_to_text header img { max-height: 10rem }
"""
