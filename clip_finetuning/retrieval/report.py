"""One self-contained HTML page of an evaluation, for who owns the catalogue and for who trains the model.

The verdict and two figures come first, then tables, categories, confusions, and queries with what they should have found.
`render` makes the page of what `examples.pick` chose; the pictures in between come from the caller, since only it knows
the shards. No script and no outside file: the page opens from disk, light or dark, on paper too, at any width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_finetuning.retrieval import citation, comparability, names, report_categories, report_numbers, table
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.examples import Examples, name_of
from clip_finetuning.retrieval.report_cards import SIZES, Cards
from clip_finetuning.runtime.pages import templates

LARGEST = 2_000_000  # bytes of the page; pictures become smaller until it fits
OPEN_CARDS = {"sample": 4, "worst": 2}  # of each direction: 12 in all
TEMPLATES = templates(Path(__file__).parent)


def render(
    results: dict[str, Any],
    embeddings: Embeddings,
    examples: Examples,
    pictures: Mapping[int, bytes],
    baseline: dict[str, Any] | None = None,
) -> str:
    """The page as text. `pictures`: {image: encoded picture}; `baseline`: another result of the same data."""
    context = _context(results, embeddings, examples, baseline)
    cards = Cards(embeddings, examples, pictures)
    template = TEMPLATES.get_template("report.html.j2")
    page = ""
    for size, quality in SIZES:
        page = template.render(context | cards.made(size, quality))
        if len(page.encode("utf-8", "replace")) <= LARGEST:
            break
    return page


def before_of(baseline: dict[str, Any] | None, results: dict[str, Any], protocol: str) -> dict[str, Any] | None:
    """A protocol's numbers in the baseline, None if they cannot be compared."""
    if not baseline or not comparability.comparable(baseline, results, protocol):
        return None
    return baseline["protocols"][protocol]


def _context(results, embeddings, examples, baseline):
    """What the template shows, but for the cards."""
    headline, before = results["protocols"]["product"], before_of(baseline, results, "product")
    model = results.get("model")
    figures = report_numbers.figures(headline, before)
    context = {
        "title": f"Retrieval with {model['name']}" if model else "Retrieval with given embeddings",
        "verdict": report_numbers.verdict(figures, before is not None, results["num_products"]),
        "figures": figures,
        "is_compared": before is not None,
        "notes": _notes(results, baseline, before),
        "blocks": [report_numbers.block(way, headline[way], before and before[way]) for way in names.DIRECTIONS],
        "smallest": f"{table.power_sentence(results['statistics'])}." if "statistics" in results else "",
        "truth": report_numbers.truths(headline.get("truth")),
        "charts": report_categories.charts(headline, before),
        "open_categories": report_categories.OPEN,
        "confusions": report_categories.confusions(examples.confusions),
        "open_cards": OPEN_CARDS,
        "before_hint": _before_hint(examples, embeddings, before),
        "protocols": [_protocol(name, results, baseline) for name in results["protocols"] if name != "product"],
        "zero_shot": report_numbers.zero_shot(results.get("zero_shot"), (baseline or {}).get("zero_shot")),
        "retention": _retention(results.get("retention")),
        "note": f"{headline['protocol']}. Intervals: 95 %, over products. A positive that ties with negatives counts after them.",
        "facts": _facts(results, baseline, before is not None),
    }
    return context | {"contents": list(_contents(context))}


def _contents(context):
    """(anchor, words) of the sections that the page has."""
    yield "numbers", "Recall"
    yield "categories", "By category"
    yield "confusions", "Confusions"
    yield "sample", "Sample"
    yield "failures", "Failures"
    for part, words in (("protocols", "Other protocols"), ("zero_shot", "Zero-shot"), ("retention", "Other data")):
        if context[part]:
            yield part.replace("_", "-"), words
    yield "about", "About"


def _notes(results, baseline, before):
    """What one must know before one reads on: why nothing is compared, and what makes the numbers mean something else."""
    notes = list(results.get("warnings", []))
    if baseline and before is None:
        notes.insert(0, f"Not compared: {_why_not(baseline, results, 'product')}.")
    return notes


def _why_not(baseline, results, protocol):
    """Why a protocol is not compared, in the words of the comparison."""
    try:
        reasons = comparability.check(baseline, {"name": "this result", **results})[1]
    except ValueError as error:
        return str(error)
    return "; ".join(reason for reason in reasons if protocol in reason)


def _before_hint(examples, embeddings, before):
    """What to do where the answers before are not known; blank where they are, or nothing is compared."""
    shown = [*examples.sample, *examples.worst]
    if before is None or not shown:
        return ""
    if not any(examples.before.values()):
        return (
            "What the model before answered is not in the baseline's file: measure it anew, or give its embeddings "
            "(--save-embeddings FILE.npz, then --baseline FILE.npz)."
        )
    known = {way: {entry["query"] for entry in entries} for way, entries in examples.before.items()}
    if any(name_of(embeddings, e.direction, e.query) not in known.get(e.direction, ()) for e in shown):
        return (
            "A result file holds the answers before of this sample alone; with --baseline FILE.npz all cards have them."
        )
    return ""


def _protocol(name, results, baseline):
    """A protocol beside the headline, compared with the baseline's if that has it."""
    numbers, before = results["protocols"][name], before_of(baseline, results, name)
    ways = [way for way in names.DIRECTIONS_OF[name] if way in numbers]
    blocks = [report_numbers.block(way, numbers[way], before and before.get(way)) for way in ways]
    return {
        "name": name,
        "sentence": numbers["protocol"],
        "lacking": f"Not compared: {_why_not(baseline, results, name)}." if baseline and before is None else "",
        "is_compared": before is not None,
        "short": [
            {"title": block["title"], "value": report_numbers.percent(numbers[way][report_numbers.KEY])}
            for way, block in zip(ways, blocks)
            if report_numbers.KEY in numbers[way]
        ],
        "blocks": blocks,
        "truth": report_numbers.truths(numbers.get("truth")),
        "languages": report_numbers.languages(numbers.get("languages"), ways),
        "cite": citation.of(results, name),
    }


def _retention(results):
    """What the model still knows of other data: the change of the first protocol there, or all that was measured."""
    if not results:
        return None
    rows = list(report_numbers.changes(results.get("change", {})))
    known = [] if rows else [_protocol(name, results, None) for name in results.get("protocols", {})]
    return {"pattern": results["pattern"], "sentence": results.get("sentence", ""), "rows": rows, "protocols": known}


def _facts(results, baseline, is_compared):
    """{name: text} of what was measured, on what."""
    model, data = results.get("model", {}), results.get("data", {})
    counted = {"left out": data.get("skipped"), "by a guess": data.get("guessed")}
    facts = {
        "to cite": citation.of(results, "product"),
        "weights": model.get("weights") or results.get("embeddings"),
        "precision": model.get("precision"),
        "shards": data.get("pattern"),
        "data": f"{results['num_samples']:,} images, {results['num_products']:,} products, {results['num_captions']:,} captions",
        **{
            name: ", ".join(f"{count:,} {reason}" for reason, count in (found or {}).items())
            for name, found in counted.items()
        },
        "compared with" if is_compared else "not comparable with": baseline and baseline["name"],
    }
    return {name: str(value) for name, value in facts.items() if value}
