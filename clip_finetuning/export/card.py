"""README.md of an exported folder: a model card with Hugging Face's YAML header, how to use it before all else."""

import html
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from clip_finetuning.export.check import K, Report
from clip_finetuning.export.facts import Past
from clip_finetuning.export.form import Facts, Options
from clip_finetuning.retrieval import citation
from clip_finetuning.retrieval.names import DIRECTIONS_OF, label, recalls, title
from clip_finetuning.runtime.text import printable
from clip_finetuning.runtime.version import version

LIBRARY = {
    "open_clip": "open_clip",
    "transformers": "transformers",
    "onnx": "onnx",
    "sentence-transformers": "sentence-transformers",
}


def render(
    name: str, form: str, options: Options, usage: str, past: Past, facts: Facts, report: Report, eight_bit: Report | None,
    license_name: str | None, pattern: str, versions: str,
) -> str:  # fmt: skip
    """The page; `name` is what the model is called."""
    parts = [
        f"# {_text(name)}",
        f"An OpenCLIP model in the form `{form}` ({options.dtype} weights): pictures and texts to embeddings that are compared by cosine.",
        "## Use it",
        f"```python\n{usage}```",
        _why_preprocess(form, report, versions),
        *facts.notes,
        "## Where it comes from",
        f"Base: {_text(past.base)}.",
        " ".join(map(_text, past.data)),
        _recipe(past.recipe),
        "## Numbers",
        _numbers(past),
        "## How this folder was checked",
        _checked(report, eight_bit, options, _text(pattern), versions),
        f"Written by clip-finetuning {version()}.",
    ]
    return (
        f"---\n{_header(name, form, past, license_name)}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    )


def _header(name: str, form: str, past: Past, license_name: str | None) -> str:
    """The YAML; Hugging Face's own class writes it."""
    found = [entry for result in past.results for entry in _entries(result)]
    card = ModelCardData(
        base_model=past.base_model,
        base_model_relation="finetune" if past.base_model and past.trained else None,
        license=license_name,
        library_name=LIBRARY[form],
        pipeline_tag="sentence-similarity" if form == "sentence-transformers" else "zero-shot-image-classification",
        tags=["clip", "image-text-retrieval", form],
        model_name=printable(name) if found else None,
        eval_results=found or None,
    )
    return card.to_yaml().strip()


def _entries(result: dict[str, Any]) -> list[EvalResult]:
    """The recalls of a result's headline protocol; a direction and the samples tell one entry of the hub from another."""
    protocol = _headline(result)
    entries = []
    for direction in DIRECTIONS_OF[protocol]:
        numbers = result["protocols"][protocol][direction]
        for key in recalls(numbers):
            pair = _interval(numbers, key)
            entry = EvalResult(
                task_type="image-text-retrieval",
                task_name=f"{title(direction)} retrieval, protocol {protocol}",
                dataset_type="image-caption-pairs",
                dataset_name=_data_name(result),
                dataset_config=f"{protocol}, {title(direction)}",
                dataset_revision=printable(result["data"].get("fingerprint") or "") or None,
                metric_type=key,
                metric_name=f"{label(key)}, {title(direction)}",
                metric_value=round(float(numbers[key]), 4),
                metric_args={"interval_95": [round(float(end), 4) for end in pair]} if pair else None,
            )
            entries.append(entry)
    return entries


def _headline(result: dict[str, Any]) -> str:
    protocols = result["protocols"]
    return result["protocol"] if result.get("protocol") in protocols else next(iter(protocols))


def _data_name(result: dict[str, Any]) -> str:
    pattern = str(result["data"].get("pattern") or "embeddings")
    return printable(pattern.replace("\\", "/").rsplit("/", 1)[-1])[:200]


def _why_preprocess(form: str, report: Report, versions: str) -> str:
    """The skew of the form's own preprocessing, kind by kind."""
    rows = [
        "`preprocess.py` prepares pictures as they were in training: first frame, EXIF-turned, transparency on white, the same "
        "resize. Copy it, or write the same in your language.",
    ]
    if form == "onnx":
        return rows[0] + " The form has no preprocessing of its own."
    if report.skewed:
        rows.append(
            f"Without it, {versions} would see something else where pictures are: {', '.join(report.skewed)}. "
            f"{report.made} Cosine is between its embedding and the trained model's; Recall@{K} is that of the original, "
            "with the form's own preprocessing, and with preprocess.py:"
        )
        rows.append(kinds_table(report))
    if report.misread:
        rows.append(
            f"`clean` does the same for captions; the tokenizer alone reads some otherwise: {', '.join(report.misread)}."
        )
    return "\n\n".join(rows)


def kinds_table(report: Report) -> str:
    """The kinds of pictures as a Markdown table, which reads well on a console too."""
    header = ["pictures", "number", "cosine, mean", "lowest", f"Recall@{K}", "own preprocessing", "preprocess.py"]
    rows = [header]
    for kind in report.kinds:
        own = [f"fails: {kind.failure}", "", kind.prepared.recall]
        if kind.own is not None:
            own = [f"{kind.own.mean:.4f}", f"{kind.own.least:.4f}", kind.own.recall]
        recall = "fails" if kind.own is None else f"{kind.own.recall:.3f}"
        row = [
            kind.name,
            str(kind.count),
            str(own[0]),
            str(own[1]),
            f"{kind.recall:.3f}",
            recall,
            f"{kind.prepared.recall:.3f}",
        ]
        rows.append([_text(cell) for cell in row])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _recipe(recipe: dict[str, Any]) -> str:
    if not recipe:
        return "How it was trained is not known."
    return "Recipe: " + ", ".join(f"`{_text(name)}` {_text(value)}" for name, value in recipe.items()) + "."


def _numbers(past: Past) -> str:
    if not past.results:
        return "It was not measured where it was exported; `evaluate_clip.py` does that."
    return "\n\n".join(_result(result, past.before) for result in past.results)


def _result(result: dict[str, Any], before: list[dict[str, Any]]) -> str:
    """One result as a table, with the base model's numbers on the same samples."""
    protocol = _headline(result)
    base = [other for other in before if other["data"].get("fingerprint") == result["data"].get("fingerprint")]
    base = [other for other in base if protocol in other["protocols"]]
    rows = [["", *(["base model"] if base else []), "this model", "95 % interval"]]
    for direction in DIRECTIONS_OF[protocol]:
        numbers = result["protocols"][protocol][direction]
        for key in recalls(numbers):
            row = [f"{label(key)}, {title(direction)}"]
            if base:
                other = base[0]["protocols"][protocol][direction].get(key)
                row.append("" if other is None else f"{other:.3f}")
            rows.append([*row, f"{numbers[key]:.3f}", _span(_interval(numbers, key))])
    words = result["protocols"][protocol].get("protocol", protocol)
    samples = result.get("num_samples")
    told = f"On {_text(samples)} samples of `{_text(_data_name(result))}`; {_text(words)}.\n\n{_table(rows)}"
    if cite := citation.of(result, protocol):
        told += f"\n\nTo cite: protocol: {_text(cite)}"
    return told + (_retention(result["retention"]) if result.get("retention") else "")


def _retention(result: dict[str, Any]) -> str:
    """What the model still knows of other data, against the one before if that was measured."""
    protocol, change = result["protocol"], result.get("change", {})
    rows = [["", "before", "this model", "change, 95 %", ""]] if change else [["", "this model", "95 % interval"]]
    for direction in DIRECTIONS_OF[protocol]:
        numbers = result["protocols"][protocol][direction]
        for key in recalls(numbers):
            row, changed = [f"{label(key)}, {title(direction)}"], change.get(direction, {}).get(key)
            if changed:
                low, high = changed["interval"]
                told = f"{changed['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
                rows.append([*row, f"{changed['before']:.3f}", f"{changed['after']:.3f}", told, changed["verdict"]])
            elif not change:
                rows.append([*row, f"{numbers[key]:.3f}", _span(_interval(numbers, key))])
    before = f", against the model before ({_text(_base_name(result.get('base', {})))})" if change else ""
    unknown = "" if change else " What it forgot is not known: the model before was not measured there."
    samples, data = _text(result.get("num_samples")), _text(_data_name(result))
    return f"\n\nWhat it still knows of other data, {samples} samples of `{data}`{before}:{unknown}\n\n{_table(rows)}"


def _base_name(base: dict[str, str]) -> str:
    """The model before in words, without folders."""
    return ", ".join(value.replace("\\", "/").rsplit("/", 1)[-1] for value in base.values()) or "not named"


def _interval(numbers: dict[str, Any], key: str) -> list[float] | None:
    intervals = numbers.get("intervals")
    return _pair(intervals.get(key) if isinstance(intervals, dict) else None)


def _pair(value: Any) -> list[float] | None:
    """Two numbers, as somebody's file may hold them."""
    fits = isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return value if fits else None


def _span(pair: list[float] | None) -> str:
    return f"{pair[0]:.3f} to {pair[1]:.3f}" if pair else ""


def _checked(report: Report, eight_bit: Report | None, options: Options, pattern: str, versions: str) -> str:
    lines = [
        f"{report.kinds[0].count} pictures of `{pattern}` and their captions went through this folder ({versions}) and through the "
        f"model that it was made of. Equal pixels give embeddings that differ by at most {report.pictures:.1e} in any component, "
        f"equal texts by at most {report.captions:.1e}.",
    ]
    if eight_bit is not None:
        was, now = eight_bit.recall
        lines.append(
            f"In eight bits the lowest cosine is {eight_bit.least:.4f}, and Recall@{K} among these pictures is {now:.3f} where "
            f"it was {was:.3f}."
        )
    return "\n\n".join(lines)


def _text(value: object) -> str:
    """Somebody's text for a page of Markdown: one line, without markup."""
    return html.escape(printable(value)[:300], quote=False).replace("|", "\\|")
