"""What a fine-tuned model still knows: the same protocols on other data, and what changed there since the model before.

The model before is the one that the checkpoint began as, or a baseline whose file has its numbers of the same data.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval import comparability, comparison, names
from clip_finetuning.runtime import distributed

HOW = "give results of the model before on these shards: --baseline FILE, which evaluate_clip.py --retention writes"


class Start(NamedTuple):
    """The model before, or why there is none."""

    clip_model: ClipModel | None
    missing: str = ""


def measure(
    clip_model: ClipModel,
    measured: Callable[[ClipModel], dict[str, Any]],
    start: Callable[[], Start],
    baseline: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The `report` of a model on rank 0, None on others; all ranks call this.

    `measured` gives a model's results on the other data, on rank 0; `start` the model before, asked for only where the
    baseline does not know of these data.
    """
    after = measured(clip_model)
    before = of_baseline(baseline, after) if after else None
    if distributed.agree(before is not None):
        return before and report(after, before, {"results": before["name"]})
    base = start()
    if base.clip_model is None:
        return report(after, None, {}, base.missing) if after else None
    before = measured(base.clip_model)
    about = {"name": base.clip_model.name, "weights": base.clip_model.pretrained or "its own"}
    return report(after, before, about) if after else None


def of_baseline(baseline: Mapping[str, Any] | None, after: dict[str, Any]) -> dict[str, Any] | None:
    """The retention of a baseline with its `name`, if it can be compared with that of a model; else None."""
    before = (baseline or {}).get("retention")
    if not baseline or before is None or not comparability.comparable(before, after, after["protocol"]):
        return None
    return before | {"name": baseline["name"]}


def report(
    after: dict[str, Any], before: dict[str, Any] | None, base: Mapping[str, str], missing: str = ""
) -> dict[str, Any]:
    """What results hold of a model on other data: its own results there, and its change.

    `base` says what the model before is, and `missing` why there is none.
    """
    reported = {key: value for key, value in after.items() if key != "model"}
    if before is None:
        return reported | {"base": {}, "change": {}, "sentence": f"what was forgotten is not known: {missing}; {HOW}"}
    protocol = after["protocol"]
    change = {
        way: {
            key: comparison.measures(before["protocols"][protocol][way], numbers, key)
            for key in names.recalls(numbers["by_product"])
            if key in before["protocols"][protocol][way]["by_product"]
        }
        for way in names.DIRECTIONS_OF[protocol]
        for numbers in [after["protocols"][protocol][way]]
    }
    return reported | {"base": dict(base), "change": change, "sentence": f"before: {', '.join(base.values())}"}
