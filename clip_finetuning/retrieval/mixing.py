"""A fine-tuned model and the one it began as, mixed: the weights that are measured, and the checkpoint that holds them."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.interpolation import line_between
from clip_finetuning.model.weights import save_checkpoint
from clip_finetuning.retrieval import interpolation, plane
from clip_finetuning.retrieval.embed import Loader
from clip_finetuning.runtime import distributed


class Mixing:
    """The line between two models; what is measured of it, is measured of the fine-tuned one, which takes its weights.

    checkpoint: what was read of the fine-tuned one's file, with its `path`; save: the file that a mix is to be written to.
    Raises ValueError, before anything is measured, where there is no line, or that file cannot be written.
    """

    def __init__(self, start: ClipModel, tuned: ClipModel, checkpoint: Mapping[str, Any], save: str | None) -> None:
        self._ends: dict[str, Any] = {"start": start.pretrained or start.name, "tuned": str(checkpoint["path"])}
        if save:
            _check_place(Path(save), [start.pretrained, self._ends["tuned"]])
        self._line, self._model, self._save = line_between(start, tuned), tuned, save
        settings = checkpoint.get("settings")
        self._fields = {"settings": settings} if isinstance(settings, dict) else {}  # they say what it was trained on
        self._of_start = start.pretrained
        share = self._fields.get("settings", {}).get("START_SHARE")
        if isinstance(share, float) and 0 < share < 1:
            self._ends["start_share"] = share
            self._line.remarks.append(
                f"{self._ends['tuned']} holds {share:g} of its start already (START_SHARE): of the trained weights each mix has "
                f"{1 - share:g} of the share that is named"
            )

    def at(self, share: float) -> dict[str, Any]:
        """Take the weights of this mix, write them if that is wished -> what results say of it."""
        mix = self._take(share)
        self._write(mix)
        return {"interpolation": mix}

    def sweep(self, loaders: Mapping[str, Loader], precision: str, seed: int, picture: Path) -> dict[str, Any]:
        """Measure the line, say and draw what it shows, and take and write the mix that is named; without one, the fine-tuned.

        loaders: those of `interpolation.sweep`.
        """
        is_first = distributed.rank() == 0
        found = self._ends | interpolation.sweep(self._model, self._line, loaders, precision, seed, progress=is_first)
        if is_first:
            plane.draw(found, picture)
            print(f"{interpolation.render(found)}\ndrawn in {picture}")
        mix = self._take(1.0 if found["named"] is None else found["named"])
        if found["named"] is not None:
            self._write(mix)
        return {"interpolation": mix | found}

    def _take(self, share):
        self._line.put(self._model.model, share)
        start, tuned = self._ends["start"], self._ends["tuned"]
        if share < 1:
            self._model.pretrained = f"{share:g} of {tuned}, {1 - share:g} of {start}"
        if distributed.rank() == 0:
            for remark in self._line.remarks:
                print(remark)
            print(f"the weights that are measured: {share:g} of {tuned}, {1 - share:g} of {start}")
        return {"share": share, **self._ends}

    def _write(self, mix):
        """The mix, if that is wished, as a checkpoint that began with what the fine-tuned one began with."""
        if not self._save:
            return
        if distributed.rank() == 0:
            mixed = replace(self._model, pretrained=self._of_start)
            save_checkpoint(self._save, mixed, **{"interpolated": mix, **self._fields})  # type: ignore[arg-type]
        self._model.pretrained = self._save


def check_saved(path: str | os.PathLike, mix: Mapping[str, Any]) -> None:
    """ValueError if a sweep had no mix to write, of which the caller asks for the file."""
    if mix.get("named", mix["share"]) is None:
        raise ValueError(
            f"--save-checkpoint {path} is not written: {mix['sentence']}; --interpolate SHARE writes the mix that you choose"
        )


def _check_place(path, sources):
    if any(path.exists() and Path(source).is_file() and path.samefile(source) for source in sources):
        raise ValueError(f"--save-checkpoint {path} would overwrite one of the two that are mixed; name another file")
    if path.is_dir():
        raise ValueError(f"--save-checkpoint {path} is a folder; name a file in it")
