"""The folder of a training run: one trainer at a time, the newest checkpoint that can be read, and the run's numbers.

checkpoint_00001000.pt   every CHECKPOINT_INTERVAL steps, the newest KEEP_CHECKPOINTS of them
best_checkpoint.pt       the best mean Recall@10 on the validation shards so far
final_checkpoint.pt      the end of the training
start.pt                 the weights it began with, where the training is held to them or they are mixed in
best_lora.pt             with TUNE=lora the additions of these two alone, as the periodic ones hold them
final_lora.pt
metrics.jsonl            one JSON object a line: everything that was logged
training_curves.png      the same as a picture
"""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.weights import START, read_checkpoint, save_checkpoint
from clip_finetuning.runtime.atomic_write import atomic_write, remove_leftovers
from clip_finetuning.runtime.console import warn

FINAL, BEST = "final_checkpoint.pt", "best_checkpoint.pt"
ADDITIONS = {BEST: "best_lora.pt", FINAL: "final_lora.pt"}
METRICS, CURVES = "metrics.jsonl", "training_curves.png"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NeededCheckpointFailed(OSError):
    """A checkpoint could not be written without which the run is no success."""


class CheckpointFolder:
    """The checkpoints and metrics of one run."""

    def __init__(self, path: str | os.PathLike, keep: int = 3) -> None:
        self.path, self.keep = Path(path), keep
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(f"CHECKPOINT_DIR={path} is a file: choose a folder, or move the file away") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; ValueError if another trainer holds it. A killed one's lock is void."""
        file = open(self.path / ".lock", "a+")  # noqa: SIM115 - it stays open as long as the lock is held
        try:
            _lock_file(file)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"another trainer is writing to {self.path}; wait for it, or choose another CHECKPOINT_DIR"
            ) from None
        except OSError as error:  # network folders such as Google Drive may not know locks
            warn(f"{self.path} cannot be locked ({error}): make sure that no other trainer writes there")
        else:
            remove_leftovers(self.path)
        with file:
            yield

    # ------------------------------------------------------------------------------------------ writing

    def periodic(self, step: int) -> Path:
        """The path of the checkpoint of a step."""
        return self.path / f"checkpoint_{step:08d}.pt"

    def save(self, path: Path, clip_model: ClipModel, needed: bool = False, **fields: Any) -> bool:
        """Write a checkpoint whole or not at all -> True; if the disk does not take it, warn, keep the older ones -> False.

        One that is `needed` makes room for itself, and raises NeededCheckpointFailed if that does not help.
        """
        beside = ADDITIONS.get(path.name)
        options = {"alone": beside is None, **fields}
        failure = _failure(self._write, path, clip_model, **options)
        if needed and failure and failure.errno in NO_ROOM:
            self._make_room()
            failure = _failure(self._write, path, clip_model, **options)
        if failure is None:
            self._prune(path)
            if beside and clip_model.lora is not None:
                told = {name: fields[name] for name in ("settings", "start") if name in fields}
                self.save(path.with_name(beside), clip_model, state_dict=fields.get("state_dict"), **told)
            return True
        what = f"{path} could not be written ({failure.strerror or failure}{self._free_space()})"
        if needed:
            raise NeededCheckpointFailed(
                f"{what}: earlier checkpoints are whole; free some space, or choose another CHECKPOINT_DIR, then --resume"
            ) from failure
        warn(f"{what}: earlier checkpoints are whole, training goes on; free some space, or lower KEEP_CHECKPOINTS")
        return False

    def _write(self, path, clip_model, **fields):
        save_checkpoint(path, clip_model, **fields)

    def _free_space(self):
        with contextlib.suppress(OSError):  # a folder that is gone has none
            return f"; {shutil.disk_usage(self.path).free / 2**20:,.0f} MiB free"
        return ""

    def _make_room(self):
        """Delete all periodic checkpoints but the newest that can be read."""
        files = self._periodic_files()
        newest = next((path for path in files if self.step_of(path) is not None), None)
        _delete(path for path in files if path != newest)

    def _prune(self, written):
        """Delete the periodic checkpoints that were written first: a damaged one may be of a later step than `written`."""
        with contextlib.suppress(OSError):
            files = self._periodic_files()
            files.sort(key=lambda path: (path == written, path.stat().st_mtime_ns, path.name))
            _delete(files[: -self.keep])

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            warn(f"{self.path / METRICS} could not be written ({error}); training goes on")

    # ------------------------------------------------------------------------------------------ reading

    def _periodic_files(self):
        """Periodic checkpoints, the furthest step first; a copy under a name of the user's is no business of ours."""
        names = re.compile(r"checkpoint_\d{8,}\.pt")
        return sorted(
            (p for p in self.path.glob("checkpoint_*.pt") if names.fullmatch(p.name)), key=_step_in, reverse=True
        )

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """(path, checkpoint) of the furthest step that can be read, or None; damaged files are passed over loudly.

        The checkpoint is mapped, not read: see `read_checkpoint`.
        """
        found, furthest = None, -1
        for path in [self.path / FINAL, self.path / BEST, *self._periodic_files()]:
            if not path.exists():
                continue
            try:
                checkpoint = read_checkpoint(path, mapped=True)
                step = checkpoint["step"]
                if type(step) is not int:
                    raise ValueError("its step is no whole number")
            except (ValueError, KeyError) as error:
                warn(f"{path} is damaged and passed over: {error}")
                continue
            if step > furthest:
                found, furthest = (path, checkpoint), step
            if path.name not in (FINAL, BEST):
                break
        return found

    @staticmethod
    def step_of(path: Path) -> int | None:
        """The step that a checkpoint file was written after, or None if there is none that can be read."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            step = read_checkpoint(path, mapped=True).get("step")
            return step if type(step) is int else None
        return None

    def records(self) -> list[dict[str, Any]]:
        """The objects of metrics.jsonl; a last line that was cut by a crash is left out."""
        try:
            lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def forget_after(self, step: int, evaluated_step: int) -> None:
        """Drop the lines of metrics.jsonl behind a step, and evaluations behind another: the resumed run writes them again."""

        def is_done(record):
            return record.get("step", 0) <= (evaluated_step if "mean_recall@10" in record else step)

        kept = [record for record in self.records() if is_done(record)]
        with atomic_write(self.path / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def set_aside(self) -> dict[Path, Path]:
        """Move an earlier run's files into a folder of their own, so that a new run neither mixes with nor loses them.

        -> where each of them now is.
        """
        names = [FINAL, BEST, *ADDITIONS.values(), METRICS, CURVES, *(path.name for path in self._periodic_files())]
        events = self.path.glob("events.out.tfevents.*")  # TensorBoard's
        present = [*(self.path / name for name in names if (self.path / name).exists()), *events]
        if present and (self.path / START).exists():  # alone it is that of a run which has not done a step
            present.append(self.path / START)
        return self._move_aside(present)

    def set_aside_start(self) -> None:
        """Move the start of another run out of the way of this one's."""
        self._move_aside([self.path / START])

    def set_aside_after(self, step: int) -> None:
        """Move checkpoints of later steps out of the way of a run that goes on from this one."""
        later = []
        for path in [self.path / FINAL, self.path / BEST, *self._periodic_files()]:
            if (self.step_of(path) or 0) > step:
                later.append(path)
        self._move_aside(later)

    def _move_aside(self, present):
        if not present:
            return {}
        number = next(n for n in itertools.count(1) if not (self.path / f"earlier_run_{n}").exists())
        aside = self.path / f"earlier_run_{number}"
        aside.mkdir()
        for path in present:
            path.rename(aside / path.name)
        names = ", ".join(path.name for path in present)
        print(f"{self.path} held another run: {names} are now in {aside} (delete it if you do not need it)")
        return {path: aside / path.name for path in present}


def _failure(function, *arguments, **options):
    """The OSError of a call, or None."""
    try:
        function(*arguments, **options)
    except OSError as error:
        return error
    return None


def _delete(paths):
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _step_in(path):
    return int(path.stem.removeprefix("checkpoint_"))


def _lock_file(file):
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # lockf, not flock: workers would inherit that one, and hold it for seconds after their trainer was killed
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
