"""What a resumed run takes from its checkpoint, and which flags the command needs that goes on with a run.

What the command line, the environment or Python code set counts most, then the checkpoint, then the page of settings.
"""

import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.knobs import Knob, ValueRefused, as_text
from clip_finetuning.runtime.text import printable
from clip_finetuning.training import knobs

# A checkpoint may be from elsewhere: it is not for it to say where files are written or what is fetched.
OF_THE_CALL = ("RESUME", "CHECKPOINT_DIR", "MODEL_CACHE_DIR")
LENGTH = ("EPOCHS", "MAX_STEPS")  # one decision: who sets one of them means both


class Resumed(NamedTuple):
    """The settings of a resumed run."""

    values: dict[str, Any]  # {knob: value}
    given: set[str]  # the knobs that were set: for this call, or in the checkpoint
    remarks: list[str]  # what to say, lines


def take_up(
    values: Mapping[str, Any],
    given: Collection[str],
    saved: Mapping[str, Any],
    known: Mapping[str, Knob],
    names_url: Callable[[str], bool],
    path: str,
) -> Resumed:
    """The settings of a run that goes on from the checkpoint at `path`, whose settings are `saved`.

    values, given: {knob: value} of this call, and which of them were set for it; known: the page's knobs, which say what
    they take; names_url: whether the shards of a pattern would be fetched. Raises ValueError for what cannot be used.
    """
    asked = set(given) - {name for name, unset in knobs.OPEN.items() if values[name] == unset}
    if asked & set(LENGTH):
        asked |= set(LENGTH)
    taken: dict[str, Any] = {}
    complaints: list[str] = []
    for name in knobs.ALL:
        if name in asked or name in OF_THE_CALL or name not in saved:
            continue
        try:
            replaced = name == "EPOCHS" and saved[name] is None and saved.get("MAX_STEPS") is not None
            value: Any = None if replaced else known[name].value(saved[name])
        except ValueRefused as refusal:
            complaints.append(str(refusal))
            continue
        if name in knobs.PATTERNS and value != values[name] and names_url(str(value)):
            flag = f"{known[name].flag}={shlex.quote(str(value))}"
            complaints.append(f"{name} would be fetched, which is not for a file to say; if you trust it, add {flag}")
            continue
        taken[name] = value
    if complaints:
        raise ValueError(printable(f"the settings in {path} cannot be used: {'; '.join(complaints)}"))
    differing = [name for name, value in taken.items() if value != values[name] and values[name] != _open(name)]
    remarks = [f"  {name}={as_text(taken[name])} (not {as_text(values[name])})" for name in differing]
    if remarks:
        remarks.insert(0, "as the checkpoint says, not settings.py; a flag overrules both:")
    return Resumed({**values, **taken}, {*given, *(taken.keys() & set(LENGTH))}, list(map(printable, remarks)))


def _open(name):
    return knobs.OPEN.get(name, object())


def flags_to_go_on(
    values: Mapping[str, Any],
    page: Mapping[str, Any],
    known: Mapping[str, Knob],
    config: Mapping[str, Any],
    names_url: Callable[[str], bool],
) -> list[str]:
    """`--resume`, and a flag for each knob of a run that its checkpoint does not settle.

    values: {knob: value} of the run; page: what they are where nothing is set; config: the model's architecture. A knob
    that is as the page says needs no flag.
    """
    names = ["CHECKPOINT_DIR", *(name for name in knobs.PATTERNS if values[name] and names_url(values[name]))]
    if distributed.world_size() > 1:
        names.append("DEVICE")  # by it they meet, before they know of the checkpoint
    differing = flags_of(values, [name for name in names if values[name] != page[name]], known)
    return ["--resume", *flags_for_model(values, page, known, config), *differing]


def flags_for_model(
    values: Mapping[str, Any], page: Mapping[str, Any], known: Mapping[str, Knob], config: Mapping[str, Any]
) -> list[str]:
    """The flags without which a checkpoint's model cannot be built: where its parts are fetched from, and to."""
    names = ["MODEL_CACHE_DIR", *(["MODEL_NAME"] if _is_from_elsewhere(values["MODEL_NAME"], config) else [])]
    return flags_of(values, [name for name in names if values[name] != page[name]], known)


def flags_of(values: Mapping[str, Any], names: Collection[str], known: Mapping[str, Knob]) -> list[str]:
    """`--batch-size=64` and the like."""
    return [f"{known[name].flag}={as_text(values[name])}" for name in knobs.ALL if name in names]


def _is_from_elsewhere(name, config):
    """Whether a part of the model is fetched from where the user, and no file, may point."""
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    fetched = text.get("hf_tokenizer_name") or text.get("hf_model_name") or vision.get("timm_model_name")
    return name.startswith(("hf-hub:", "local-dir:")) or bool(fetched and name.endswith(".json"))
