"""Results as tables for the console, within 80 columns."""

from pathlib import Path
from typing import Any

from clip_finetuning.retrieval import citation, comparison, names
from clip_finetuning.runtime.text import printable, wrapped

WIDTH = 80
CONFUSIONS = 5  # that are named


def render(results: dict[str, Any]) -> str:
    """Model, data and what one should know of them, then a table for each protocol."""
    lines = [*_about(results), "each cell: value [95 % interval over products] (chance)"]
    for name, protocol in results["protocols"].items():
        lines += ["", *wrapped(f"{name}: {protocol['protocol']}"), *_protocol(protocol, names.DIRECTIONS_OF[name])]
        if cite := citation.of(results, name):
            lines.append(f"protocol: {cite}")
        lines += _hubness(protocol, names.DIRECTIONS_OF[name])
        lines += _by_language(protocol.get("languages", {}), names.DIRECTIONS_OF[name])
    for why in results.get("not_measured", {}).values():
        lines += ["", *wrapped(f"not measured: {why}")]
    if "statistics" in results:
        lines += ["", *wrapped(power_sentence(results["statistics"]))]
    if "zero_shot" in results:
        lines += ["", *_zero_shot(results["zero_shot"])]
    if results.get("retention"):
        lines += ["", *_retention(results["retention"])]
    return "\n".join(lines)


def power_sentence(statistics: dict[str, Any]) -> str:
    """From which difference on another model can be told from this one, in words."""
    smallest = statistics["smallest_difference"]
    keys = list(next(iter(smallest.values())))
    key = "recall@10" if "recall@10" in keys else keys[-1]
    told = ", ".join(f"{numbers[key]:.3f} {names.title(way)}" for way, numbers in smallest.items())
    return (
        f"{100 * statistics['power']:.0f} % of comparisons would show a difference in {names.label(key)} of {told} (two-sided 5 %, "
        f"paired; assumed: the two models' hits correlate by {statistics['correlation']:g})"
    )


def _about(results):
    lines, model, data = [], results.get("model"), results.get("data", {})
    if model:
        lines.append(f"{model['name']} ({Path(model['weights']).name}), {model['precision']}"[:WIDTH])
    lines.append(
        f"{results['num_samples']:,} images, {results['num_products']:,} products, {results['num_captions']:,} distinct captions"
    )
    if skipped := data.get("skipped"):
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        lines += wrapped(f"left out: {left_out}")
    if guessed := data.get("guessed"):
        lines += wrapped(f"by a guess: {', '.join(f'{count} {reason}' for reason, count in guessed.items())}")
    if again := {what: count for what, count in data.get("again_in_fp32", {}).items() if count}:
        lines.append(f"overflowed, embedded again in fp32: {', '.join(f'{n} {what}' for what, n in again.items())}")
    for warning in results["warnings"]:
        lines += wrapped(f"warning: {warning}")
    return lines


def _protocol(protocol, ways):
    """A line for each number, a column for each direction."""
    directions = [protocol[way] for way in ways]
    yield "".join(names.title(way).rjust(width) for way, width in zip(ways, (48, 30)))
    beside = dict.fromkeys(key for numbers in directions for key in names.beside(numbers))
    for key in [*names.recalls(directions[0]), *beside]:
        cells = [_cell(numbers, key) if key.startswith("recall") else f"{numbers[key]:.4g}" for numbers in directions]
        yield f"  {names.label(key)}".ljust(16) + "".join(cell.rjust(width) for cell, width in zip(cells, (32, 30)))
    if "truth" in protocol:
        yield from _truth(protocol["truth"], ways)


def _truth(truth, ways):
    """The recalls by each truth that was asked for, and what these are."""
    yield from wrapped(truth["sentence"])
    for name in (name for name in names.TRUTHS if name in truth):
        for key in names.recalls(truth[name][ways[0]]):
            cells = [_with_interval(truth[name][way], key) for way in ways]
            label = f"  {names.label(key)} {name}"
            yield label.ljust(24) + "".join(cell.rjust(width) for cell, width in zip(cells, (24, 30)))


def _hubness(protocol, ways):
    """A sentence on items that come up again and again, where that was measured."""
    found = [(names.title(way), protocol[way]["hubness"]) for way in ways if "hubness" in protocol[way]]
    parts = [
        f"{way} skew {hubness['skew_at_10']:.2f}, {hubness['never_in_top_10']:.1%} of products never in a top 10"
        for way, hubness in found
    ]
    return wrapped(f"  hubness: {'; '.join(parts)}") if parts else []


def _by_language(languages, ways):
    """A line for each language: the recall of the largest k that is shown."""
    for language, directions in languages.items():
        key = names.recalls(directions[ways[0]])[-1]
        yield f"  {names.label(key)} {printable(language)}"[:16].ljust(16) + "".join(
            _cell(directions[way], key).rjust(width) for way, width in zip(ways, (32, 30))
        )


def _cell(numbers, key):
    return f"{_with_interval(numbers, key)} ({numbers['chance'][key]:.3f})"


def _with_interval(numbers, key):
    low, high = numbers["intervals"][key]
    return f"{numbers[key]:.4f} [{low:.3f}, {high:.3f}]"


def _zero_shot(result):
    """Accuracy with what chance and the largest class alone would give, and the most frequent mistakes."""
    yield from wrapped(
        f"zero-shot: {result['images']:,} images, {result['classes']} classes named by {len(result['prompts'])} prompts; "
        f"always saying {printable(result['majority']['class'])[:40]!r}, the largest, gives top-1 {result['majority']['top1']:.4f}"
    )
    for key, label in (("top1", "top-1"), ("top5", "top-5"), ("macro", "top-1, macro")):
        yield f"  {label}".ljust(16) + _cell(result, key).rjust(32)
    yield "  F1".ljust(16) + f"macro {result['f1']['macro']:.4f}, weighted {result['f1']['weighted']:.4f}".rjust(32)
    told = [
        f"{_named(row['class'])} for {_named(row['taken_for'])} {row['share']:.0%}"
        for row in result["confusion"]["top"]
    ]
    if told:
        yield from wrapped(f"  taken for another: {', '.join(told[:CONFUSIONS])}")
    if left_out := result["without_category"]:
        yield from wrapped(f"  left out: {left_out:,} images without a category")
    if spellings := result.get("other_spellings"):
        yield from wrapped(
            f"  {spellings:,} other spellings of categories that differ in case alone, taken for one class"
        )
    if broken := result["without_embedding"]:
        yield from wrapped(f"  left out, since the name's embedding is not finite: {', '.join(map(_named, broken))}")


def _retention(results):
    """The same protocols on other data, and what changed there, if that is known."""
    yield from wrapped(
        f"retention: {Path(results['pattern']).name}: {results['num_samples']:,} images, {results['num_products']:,} "
        f"products; {results['sentence']}"
    )
    if skipped := results["data"].get("skipped"):
        yield from wrapped(f"  left out: {', '.join(f'{count} {reason}' for reason, count in skipped.items())}")
    changed = {results["protocol"]: results["change"], **results.get("other_changes", {})}
    for name, protocol in results["protocols"].items():
        if changed.get(name):
            for way, changes in changed[name].items():
                yield comparison.heading(f"{name}, {names.title(way)}", "before", "after", "change")
                for key, change in changes.items():
                    values = (change[what] for what in ("before", "after", "gain", "interval"))
                    yield comparison.difference(names.label(key), *values)
        else:
            yield f"{name}"
            yield from _protocol(protocol, names.DIRECTIONS_OF[name])
        yield f"protocol: {citation.of(results, name)}"


def _named(category):
    return printable(category)[:30]
