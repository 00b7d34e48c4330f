"""What a fine-tuned model still knows: the same protocols on other data, and what changed there since the model before.

The model before is the one that the checkpoint began as, or a baseline whose file has its numbers of the same data.
"""

from collections.abc import Mapping
from typing import Any

from clip_finetuning.retrieval import comparability, comparison, names

HOW = "give results of the model before on these shards: --baseline FILE, which evaluate_clip.py --retention writes"


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
