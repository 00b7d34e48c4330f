"""Results as tables for the console, within 80 columns."""

import textwrap
from pathlib import Path
from typing import Any

from clip_finetuning.retrieval import names

WIDTH = 80


def render(results: dict[str, Any]) -> str:
    """Model, data and what one should know of them, then a table for each protocol."""
    lines = [*_about(results), "each cell: value [95 % interval over products] (chance)"]
    for name, protocol in results["protocols"].items():
        lines += ["", *_wrapped(f"{name}: {protocol['protocol']}"), *_protocol(protocol, names.DIRECTIONS_OF[name])]
    if "zero_shot" in results:
        lines += ["", *_zero_shot(results["zero_shot"])]
    return "\n".join(lines)


def _about(results):
    lines, model, data = [], results.get("model"), results.get("data", {})
    if model:
        lines.append(f"{model['name']} ({Path(model['weights']).name}), {model['precision']}"[:WIDTH])
    lines.append(
        f"{results['num_samples']:,} images, {results['num_products']:,} products, {results['num_captions']:,} distinct captions"
    )
    if skipped := data.get("skipped"):
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        lines += _wrapped(f"left out: {left_out}")
    if guessed := data.get("guessed"):
        lines += _wrapped(f"by a guess: {', '.join(f'{count} {reason}' for reason, count in guessed.items())}")
    if again := {what: count for what, count in data.get("again_in_fp32", {}).items() if count}:
        lines.append(f"overflowed, embedded again in fp32: {', '.join(f'{n} {what}' for what, n in again.items())}")
    for warning in results["warnings"]:
        lines += _wrapped(f"warning: {warning}")
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
    yield from _wrapped(truth["sentence"])
    for name in (name for name in names.TRUTHS if name in truth):
        for key in names.recalls(truth[name][ways[0]]):
            cells = [_with_interval(truth[name][way], key) for way in ways]
            label = f"  {names.label(key)} {name}"
            yield label.ljust(24) + "".join(cell.rjust(width) for cell, width in zip(cells, (24, 30)))


def _cell(numbers, key):
    return f"{_with_interval(numbers, key)} ({numbers['chance'][key]:.3f})"


def _with_interval(numbers, key):
    low, high = numbers["intervals"][key]
    return f"{numbers[key]:.4f} [{low:.3f}, {high:.3f}]"


def _zero_shot(result):
    yield (
        f"zero-shot, {result['classes']} categories: top-1 {result['top1']:.4f}, top-5 {result['top5']:.4f}, "
        f"macro {result['macro']:.4f}"
    )
    broken = result["without_embedding"]
    if broken:
        yield from textwrap.wrap(f"left out, since the name's embedding is not finite: {', '.join(broken)}", WIDTH)


def _wrapped(text):
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
