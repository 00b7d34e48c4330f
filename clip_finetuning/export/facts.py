"""What is known of a model's past: its base, its recipe, its data, its numbers - from the files that lie about.

What a file says is somebody's text. It is shown, never followed: paths lose their folders, and results count only where they
name this very checkpoint and are younger than it.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval import result_file
from clip_finetuning.runtime.text import printable

RECIPE = (
    "LOSS", "OPTIMIZER", "LEARNING_RATE", "LR_SCHEDULE", "WARMUP_STEPS", "WEIGHT_DECAY", "BATCH_SIZE", "VIEWS", "EPOCHS",
    "MAX_STEPS", "PRECISION", "EMA_DECAY", "GRAD_CLIP_NORM", "REDUCED_DECODE", "SEED", "TUNE", "ANCHOR", "START_SHARE",
)  # fmt: skip
RESULT_FILES = "evaluation_results*.json"


class Past(NamedTuple):
    """A model's past as far as it is known; what is not is None or empty."""

    base: str  # in words
    base_model: str | None  # its repository on Hugging Face
    trained: bool  # it is a checkpoint's, not the base model itself
    recipe: dict[str, Any]
    data: list[str]  # sentences
    results: list[dict[str, Any]]  # of this model, as result files hold them
    before: list[dict[str, Any]]  # of its base on the same samples
    left_out: list[str]  # result files that are not used, with the reason


def gather(clip_model: ClipModel, path: str | None, checkpoint: dict[str, Any], named: Sequence[str] | None) -> Past:
    """The past of the model of a checkpoint file, or of a base model (`path` is None and `checkpoint` empty).

    `named` are result files that the user vouches for; else those of the current folder that fit are taken.
    """
    tag = checkpoint.get("pretrained") if path else clip_model.pretrained
    tag = tag if isinstance(tag, str) else ""
    settings = checkpoint.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    recipe = {name: settings[name] for name in RECIPE if settings.get(name) is not None}
    if isinstance(checkpoint.get("step"), int):
        recipe["steps trained"] = checkpoint["step"]
    mix = checkpoint.get("interpolated")
    if isinstance(mix, dict) and type(mix.get("share")) in (int, float):
        recipe["share of the trained weights, the rest being those of before"] = mix["share"]
    files = sorted(str(file) for file in Path(".").glob(RESULT_FILES)) if named is None else list(named)
    results, before, left_out = _results(files, clip_model, path, tag, vouched=named is not None)
    base, base_model = _base(clip_model.name, tag, bool(path) and "pretrained" not in checkpoint)
    return Past(
        base,
        base_model,
        path is not None,
        recipe,
        _data(settings.get("TRAIN_DATASET_PATTERN")),
        results,
        before,
        left_out,
    )


def _base(name: str, tag: str, unknown: bool) -> tuple[str, str | None]:
    """(the starting weights in words, their repository)."""
    if name.startswith("hf-hub:"):
        return name, name.removeprefix("hf-hub:")
    if unknown:
        return f"{name}; the file does not say which weights it began with", None
    if not tag:
        return f"{name}, from random weights", None
    known = open_clip.get_pretrained_cfg(name, tag)
    repository = str(known.get("hf_hub") or "").rstrip("/") or None
    return f"{name}, weights `{Path(tag).name}`", repository


def _results(
    files: Iterable[str], clip_model: ClipModel, path: str | None, tag: str, vouched: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    results, others, left_out = [], [], []
    for file in files:
        try:
            result = result_file.read(file)
        except (ValueError, OSError) as error:
            if vouched:
                raise
            left_out.append(f"{file}: {error}")
            continue
        about = result.get("model")
        weights = str(about.get("weights")) if isinstance(about, dict) else ""
        if path is not None and _is_same_file(weights, path):
            stale = not vouched and Path(file).stat().st_mtime < Path(path).stat().st_mtime
            if stale:
                left_out.append(f"{file}: it is older than {path}; evaluate again")
            else:
                results.append(result)
        elif weights == (tag or "random") and isinstance(about, dict) and about.get("name") == clip_model.name:
            (others if path else results).append(result)
        elif vouched:
            raise ValueError(f"--results {file} measures {weights or 'another model'}, not {path or tag}; leave it out")
        else:
            left_out.append(f"{file}: it measures {printable(weights) or 'embeddings'}")
    prints = {result["data"].get("fingerprint") for result in results}
    return results, [result for result in others if result["data"].get("fingerprint") in prints], left_out


def _is_same_file(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _data(pattern: Any) -> list[str]:
    """What shards' manifest or sizes.json say of the training data, in sentences."""
    if not isinstance(pattern, str) or not pattern:
        return ["The checkpoint does not say what it was trained on."]
    folder, name = Path(pattern).parent, Path(pattern).name
    stem = re.split(r"\.[\d{*?\[]", name)[0]
    told = [f"Trained on the shards `{name}`."]
    manifest = _read(folder / f"{stem}.manifest.json")
    sizes = _read(folder / "sizes.json")
    if isinstance(manifest.get("samples"), int):
        told.append(
            f"Their manifest counts {manifest['samples']:,} samples in {_count(manifest.get('shards')):,} shards."
        )
        skipped = manifest.get("skipped")
        for reason, about in skipped.items() if isinstance(skipped, dict) else ():
            count = about.get("count") if isinstance(about, dict) else None
            told.append(f"Left out: {count} ({reason}).")
    elif mine := [size for shard, size in sizes.items() if shard.startswith(f"{stem}.") and isinstance(size, int)]:
        told.append(f"sizes.json counts {sum(mine):,} samples in {len(mine):,} shards of that name.")
    else:
        told.append("Neither their manifest nor sizes.json is in reach, so their number is not known here.")
    return told


def _count(listed: Any) -> int:
    return len(listed) if isinstance(listed, list | dict) else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
