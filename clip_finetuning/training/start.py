"""The weights that a run begins with, kept as long as the run: what ANCHOR and START_SHARE measure and mix by.

`start.pt` is written once, before the first step, and is a checkpoint like any other. Every checkpoint of the run holds
the start's fingerprint, so that a resumed run has the very same start, also on a machine that never saw MODEL_PRETRAINED.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_finetuning.model import building
from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.fingerprint import SCALARS, fingerprint
from clip_finetuning.model.weights import load_weights, read_checkpoint
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.text import printable
from clip_finetuning.training.anchor import frozen
from clip_finetuning.training.plan import Plan
from clip_finetuning.training.run_folder import START, CheckpointFolder


@dataclass(frozen=True)
class Start:
    """The frozen model of before the first step."""

    clip_model: clip.ClipModel
    fingerprint: str

    @property
    def record(self) -> dict[str, Any]:
        """What every checkpoint says of it."""
        numbers = {name: float(value) for name in SCALARS if (value := _tensor(self.clip_model, name)) is not None}
        return {"fingerprint": self.fingerprint, **numbers}


def of_run(
    plan: Plan,
    clip_model: clip.ClipModel,
    checkpoint: Mapping[str, Any] | None,
    folder: CheckpointFolder,
    cache_dir: str | None = None,
    image: dict | None = None,
) -> Start | None:
    """The start of a run, or None where nothing asks for it: a new run's model as it is now, a resumed run's as it was."""
    if not (plan.anchor or plan.start_share):
        return None
    if checkpoint is not None:
        return resumed(clip_model, checkpoint, folder, cache_dir, image)
    start = frozen(clip_model)
    return Start(start, fingerprint(start.model.state_dict()))


def keep(start: Start, folder: CheckpointFolder) -> None:
    """Write `start.pt`, unless it is there."""
    path = folder.path / START
    if path.is_file():
        with contextlib.suppress(ValueError):  # a damaged one is replaced too
            if read_checkpoint(path, mapped=True).get("start") == start.record:
                return
        folder.set_aside_start()
    folder.save(path, start.clip_model, needed=True, start=start.record)


def resumed(
    clip_model: clip.ClipModel,
    checkpoint: Mapping[str, Any],
    folder: CheckpointFolder,
    cache_dir: str | None = None,
    image: dict | None = None,
) -> Start:
    """The start of the run that goes on from a checkpoint; `clip_model` is that checkpoint's, whole.

    It is `start.pt` beside the checkpoint, or in the folder; else the weights that the run was told to begin with, if they
    still are what they were. Raises ValueError, on every rank, if it is none of them.
    """
    start, complaint, mark = frozen(clip_model), "", ""
    if distributed.rank() == 0:  # the file may be on this machine alone
        try:
            mark = _fill(start, checkpoint, folder, cache_dir, image)
        except (ValueError, OSError) as error:
            complaint = str(error)
    complaint, mark = distributed.agree((complaint, mark))
    if complaint:
        raise ValueError(complaint)
    distributed.broadcast([*start.model.parameters(), *start.model.buffers()])
    return Start(start, mark)


def _fill(start, checkpoint, folder, cache_dir, image):
    """Give a model the weights of a run's start -> their fingerprint; ValueError if they are not to be had."""
    record = checkpoint.get("start")
    record = record if isinstance(record, dict) else {}
    wanted, refused = record.get("fingerprint"), []
    # ---- the file that the run wrote, if it wrote one
    places = dict.fromkeys((Path(checkpoint["path"]).parent / START, folder.path / START)) if wanted else ()
    for path in places:
        if not path.is_file():
            refused.append(f"there is no {path}")
            continue
        try:
            load_weights(start, read_checkpoint(path, mapped=True), path)
        except (ValueError, OSError) as error:
            refused.append(str(error))
            continue
        if fingerprint(start.model.state_dict()) == wanted:
            return wanted
        refused.append(f"{path} is the start of another run")
    # ---- the weights that the run was told to begin with
    try:
        found: Any = building.create_start(start, dict(checkpoint), cache_dir, image).model
    except (ValueError, OSError) as error:
        refused.append(str(error))
    else:
        start.model.load_state_dict({**start.model.state_dict(), **found.state_dict()})
        for name in SCALARS:
            if isinstance(record.get(name), float):
                getattr(start.model, name).fill_(record[name])
        mark = fingerprint(start.model.state_dict())
        if wanted in (None, mark):
            print(printable(f"the start of this run is read again from {checkpoint['pretrained']}"))
            return mark
        refused.append(f"{checkpoint['pretrained']} is not, or no longer, what the run began with")
    raise ValueError(
        printable(
            f"{checkpoint['path']} cannot be resumed with ANCHOR or START_SHARE, which need the weights that its run began with: "
            f"{'; '.join(refused)}; put {START} back, or go on without by --anchor=0 --start-share=0 --force"
        )
    )


def _tensor(clip_model, name):
    value = getattr(clip_model.model, name, None)
    return value.detach() if isinstance(value, torch.Tensor) else None
