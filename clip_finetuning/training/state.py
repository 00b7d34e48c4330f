"""What changes while a run goes on, what a checkpoint holds of it, and how a resumed run gets it back."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model import lora_file, tuning
from clip_finetuning.model.weights import read_checkpoint
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.console import warn
from clip_finetuning.runtime.text import printable
from clip_finetuning.runtime.version import version
from clip_finetuning.training import average as averages
from clip_finetuning.training import knobs
from clip_finetuning.training import log as training_log
from clip_finetuning.training import optimizer as optimizers
from clip_finetuning.training.anchor import Anchor
from clip_finetuning.training.plan import Plan
from clip_finetuning.training.run_folder import CheckpointFolder
from clip_finetuning.training.start import Start
from clip_finetuning.training.step import Step

MAX_SKIPPED_IN_A_ROW = 10
# What a training did before these were settings.
WITHOUT_A_CHOICE = {
    "OPTIMIZER": "adamw", "TUNE": "full", "LAYER_DECAY": 1.0, "IMAGE_RATE": 1.0, "TEXT_RATE": 1.0,
    "ANCHOR": 0.0, "START_SHARE": 0.0, "FIT_TEMPERATURE": False, "WARM_STATISTICS": 0, "CROP_SCALE": 0.9, "FLIP": False,
    "RETENTION_DATASET_PATTERN": None, "KEEP": "gain",
}  # fmt: skip


class Diverged(ValueError):
    """The training cannot go on: its loss, its gradients or its weights are not finite."""


@dataclass
class Progress:
    """Where the training is; every checkpoint holds it."""

    step: int = 0  # steps done, skipped ones included
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    evaluated_step: int = -1  # the step of the last evaluation
    learns_statistics: bool = False  # of BatchNorm layers: only where they start from nothing
    first_score: float | None = None  # mean Recall@10 before the first step
    first_retention: float | None = None  # the same on the retention shards
    keep: str = (
        "gain"  # what `best_score` is of: the validation shards, or (both) the mean of these and the retention shards
    )
    best_score: float | None = None  # of the steps since
    evaluations_since_best: int = 0

    def count(self, done: Step) -> None:
        """Go on by a step; Diverged after ten in a row without an update."""
        self.step, self.batch = self.step + 1, self.batch + 1
        if done.updated:
            self.skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        what = "gradient" if torch.isfinite(done.loss) else "loss"
        print(f"step {self.step}: the {what} is not finite, so the weights stay as they were")
        if self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            return
        first = self.step - MAX_SKIPPED_IN_A_ROW + 1
        raise Diverged(
            f"the loss or its gradient was not finite in steps {first} to {self.step}, so the training stops; lower "
            "LEARNING_RATE, lengthen WARMUP_STEPS, or set PRECISION=fp32, with --resume --force or in a new run"
        )

    def score(self, gain: float, retention: float | None = None) -> bool:
        """Note the mean Recall@10 of an evaluation, and that on the retention shards -> whether it is the best since the first step."""
        self.evaluated_step = self.step
        if self.step == 0:
            self.first_score, self.first_retention = gain, retention
            return False
        score = self.kept_score(gain, retention)
        better = self.best_score is None or score > self.best_score
        self.best_score = score if better else self.best_score
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    def kept_score(self, gain: float, retention: float | None) -> float:
        """What the best checkpoint is the best of."""
        return (gain + retention) / 2 if self.keep == "both" and retention is not None else gain

    def choose_anew(self, keep: str) -> None:
        """What was the best until now is forgotten, since it was the best of something else."""
        self.keep, self.best_score, self.evaluations_since_best = keep, None, 0


@dataclass
class Run:
    """A run under way: its plan, which stays as it is, and all that a step changes."""

    plan: Plan
    clip_model: clip.ClipModel
    loader: Any  # clip_finetuning.loading.loader.Loader
    valid_loader: Any | None
    retention_loader: Any | None  # of what the model knew before
    optimizer: torch.optim.Optimizer | optimizers.CombinedOptimizer
    scaler: torch.amp.GradScaler
    average: averages.Average | None
    folder: CheckpointFolder
    recorder: training_log.Recorder
    progress: Progress
    micro_batch_size: int  # samples of this process on the device at once
    is_main: bool  # rank 0: the one that writes
    first_evaluation: dict[str, Any] | None = (
        None  # by product, before the first step: what later ones are compared with
    )
    start: Start | None = None  # what ANCHOR and START_SHARE go by
    anchor: Anchor | None = None
    fitted: str | None = None  # what FIT_TEMPERATURE did
    first_retention: dict[str, Any] | None = None  # as `first_evaluation`, on the retention shards
    last_evaluation: dict[str, Any] | None = None  # of the validation shards, by product
    last_scores: tuple[float, float | None] | None = None  # mean Recall@10 on the validation and the retention shards

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last PATIENCE evaluations were no better than one before them."""
        return self.plan.patience is not None and self.progress.evaluations_since_best >= self.plan.patience

    def batches(self, until: int) -> Iterator[Any]:
        """Batches from the current position on, epoch after epoch, until so many steps are done; `Progress.count` counts them."""
        progress = self.progress
        while progress.step < until:
            self.loader.set_epoch(progress.epoch, progress.batch)
            for batch in self.loader:
                yield batch
                if progress.step == until:
                    return
            progress.epoch, progress.batch = progress.epoch + 1, 0


def planned_optimizer(plan: Plan, clip_model: clip.ClipModel) -> torch.optim.Optimizer | optimizers.CombinedOptimizer:
    """The optimizer of a plan, before its first step."""
    return optimizers.create_optimizer(
        clip_model.model,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        betas=plan.betas,
        eps=plan.eps,
        kind=plan.optimizer,
        rates=tuning.rates_of(clip_model.model, plan.tuning),
    )


def start_run(
    plan: Plan,
    clip_model: clip.ClipModel,
    loader: Any,
    valid_loader: Any | None,
    folder: CheckpointFolder,
    *,
    retention_loader: Any | None,
    tensorboard: bool,
    learns_statistics: bool,
    start: Start | None = None,
) -> Run:
    """A run before its first step; `start` is for a plan with an anchor or a share of the start."""
    is_main = distributed.rank() == 0
    return Run(
        plan=plan,
        clip_model=clip_model,
        loader=loader,
        valid_loader=valid_loader,
        retention_loader=retention_loader,
        optimizer=planned_optimizer(plan, clip_model),
        scaler=_scaler(plan, clip_model),
        average=_average(plan, clip_model, start),
        folder=folder,
        recorder=training_log.Recorder(folder if is_main else None, tensorboard),
        progress=Progress(learns_statistics=learns_statistics, keep=plan.keep),
        micro_batch_size=plan.micro_batch_size,
        is_main=is_main,
        start=start,
        anchor=Anchor(start.clip_model, plan.anchor) if start is not None and plan.anchor else None,
    )


def start_again(run: Run, plan: Plan, folder: CheckpointFolder) -> Run:
    """A run with the model, as it now is, and the data of another, before its first step; its numbers go into `folder`."""
    return replace(
        run,
        plan=plan,
        optimizer=planned_optimizer(plan, run.clip_model),
        scaler=_scaler(plan, run.clip_model),
        average=_average(plan, run.clip_model, run.start),
        folder=folder,
        recorder=training_log.Recorder(folder if run.is_main else None),
        progress=Progress(learns_statistics=run.progress.learns_statistics, keep=plan.keep),
        first_evaluation=None,
        first_retention=None,
        last_evaluation=None,
        last_scores=None,
    )


def _scaler(plan, clip_model):
    return torch.amp.GradScaler(clip_model.device.type, enabled=plan.precision == "fp16")


def _average(plan, clip_model, start):
    began = None if start is None else start.clip_model.model
    return averages.create(clip_model.model, plan.ema_decay, began, plan.start_share)


# ---------------------------------------------------------------------------------------------------- resuming


def find_checkpoint(resume: str, folder: CheckpointFolder) -> dict | None:
    """The checkpoint that RESUME asks for, with its `path`, or None for a new run."""
    if resume == "none":
        return None
    if resume == "auto":
        found = folder.newest()
        if found is None:
            print(f"nothing to resume in {folder.path}: this is a new run")
            return None
        path, checkpoint = found
    else:
        path, checkpoint = resume, read_checkpoint(resume, mapped=True)
    absent = [key for key in ("step", "optimizer", "progress", "data", "settings") if key not in checkpoint]
    if absent:
        raise ValueError(f"{path} cannot be resumed: it has no {', '.join(absent)}; use it as MODEL_PRETRAINED instead")
    _check_fields(path, checkpoint)
    # What checkpoints did not say before there was a choice.
    settings = {**WITHOUT_A_CHOICE, **checkpoint["settings"]}
    progress = {"evaluated_step": checkpoint["step"], "learns_statistics": True, **checkpoint["progress"]}
    return {**checkpoint, "path": str(path), "settings": settings, "progress": progress}


def _check_fields(path, checkpoint):
    """ValueError unless what a checkpoint says of sizes and counts can be one."""
    for field, lowest in (("step", 0), ("total_steps", 1), ("micro_batch_size", 1)):
        value = checkpoint.get(field)
        if value is not None and (type(value) is not int or value < lowest):
            raise ValueError(printable(f"{path} cannot be resumed: {field}={value} is no whole number >= {lowest}"))
    for field in ("progress", "data", "settings", "optimizer"):
        if not isinstance(checkpoint[field], dict):
            raise ValueError(f"{path} cannot be resumed: its {field} is no object")
    unknown = sorted(map(str, set(checkpoint["progress"]) - {field.name for field in fields(Progress)}))
    if unknown:
        theirs = checkpoint.get("version", "0.1.0")
        raise ValueError(
            printable(
                f"{path} cannot be resumed: its progress has {', '.join(unknown)}, which this version, {version()}, does not "
                f"know; it was written by version {theirs}"
            )
        )


def restore(run: Run, checkpoint: Mapping[str, Any], force: bool) -> None:
    """Put a run back to where the checkpoint was written; settings that differ are listed, grave ones refused."""
    _check_settings(run, checkpoint, force)
    if changed := run.loader.changed_order(checkpoint["data"]):
        warn(changed)
    # ---- weights and their average, moments, loss scale
    checkpoint = lora_file.whole(run.clip_model.model, checkpoint)
    averages.restore(run.average, run.clip_model.model, checkpoint)
    spared = optimizers.load_state(run.optimizer, run.clip_model.model, checkpoint["optimizer"])
    if spared:
        print(f"no longer with weight decay, which is for matrices alone: {', '.join(spared)}")
    if checkpoint["scaler"]:  # empty if it was not fp16
        run.scaler.load_state_dict(checkpoint["scaler"])
    # ---- position and log
    run.progress = Progress(**checkpoint["progress"])
    run.progress.skipped_in_a_row = 0
    firsts = (checkpoint.get(name) for name in ("first_evaluation", "first_retention"))
    run.first_evaluation, run.first_retention = (first if isinstance(first, dict) else None for first in firsts)
    _compare_retention(run, checkpoint)
    run.recorder.go_on(checkpoint["step"], checkpoint.get("metrics", {}))
    if run.plan.settings["MICRO_BATCH_SIZE"] is None and checkpoint["micro_batch_size"] is not None:
        run.micro_batch_size = min(checkpoint["micro_batch_size"], run.micro_batch_size)
    if run.is_main:
        # An earlier checkpoint, by its path: what came after it is another run.
        if run.plan.settings["RESUME"] not in ("auto", "none"):
            run.folder.set_aside_after(run.progress.step)
        run.folder.forget_after(run.progress.step, run.progress.evaluated_step)
    print(f"resumed {checkpoint['path']}: step {run.progress.step}, epoch {run.progress.epoch + 1}")


def _compare_retention(run, checkpoint):
    """Forget what a checkpoint knows of other retention shards than now, and of a best that was the best of something else."""
    progress, keep, before = run.progress, run.plan.keep, checkpoint.get("retention_data")
    others = run.retention_loader is not None and before not in (None, _retention_data(run))
    if others:
        print(
            "the retention shards are others than before: what the model knew of them before the training is not known"
        )
        progress.first_retention = run.first_retention = None
    if progress.keep != keep or (keep == "both" and others):
        if progress.best_score is not None:
            why = "" if progress.keep == keep else f"KEEP was {progress.keep}, is {keep}: "
            print(f"{why}the best checkpoint is chosen anew from step {progress.step} on")
        progress.choose_anew(keep)


def _retention_data(run):
    """What tells the samples of the retention shards from others; None if there are none."""
    return None if run.retention_loader is None else run.retention_loader.state()["data"]


def _check_settings(run, checkpoint, force):
    """Say which settings differ from the checkpoint's; ValueError for those that make it another training."""
    saved, now, path = checkpoint["settings"], run.plan.settings, checkpoint["path"]
    different = [name for name in now if name != "RESUME" and saved.get(name, now[name]) != now[name]]
    fixed = [f"{name} was {saved[name]}, is {now[name]}" for name in different if name in knobs.FIXED]
    if fixed:
        raise ValueError(
            f"{path} was written by another kind of training: {'; '.join(fixed)}; restore that, or start a new "
            "run with this file as MODEL_PRETRAINED"
        )
    grave = [f"{name} was {saved[name]}, is {now[name]}" for name in different if name in knobs.MATHEMATICAL]
    grave += run.loader.check_state(checkpoint["data"])
    total_steps = run.plan.total_steps
    planned = checkpoint.get("total_steps", total_steps)
    if total_steps != planned > checkpoint["step"] and now["LR_SCHEDULE"] != "constant":
        grave.append(f"the learning rate falls over {planned} steps in the checkpoint, over {total_steps} now")
    if grave and not force:
        raise ValueError(
            f"{path} was written by another training: {'; '.join(grave)}; restore these, or add --force to go "
            "on all the same"
        )
    for name in different:
        print(printable(f"resuming with another {name}: was {saved[name]}, is {now[name]}"))
    for line in grave:
        warn(printable(f"forced: {line}"))


# ------------------------------------------------------------------------------------------------------ saving


def checkpoint_fields(run: Run) -> dict[str, Any]:
    """What a checkpoint holds beside the weights of the model."""
    progress = run.progress
    content = {
        "step": progress.step,
        "epoch": progress.epoch,
        "total_steps": run.plan.total_steps,
        "progress": asdict(progress),
        "data": run.loader.state(),
        "settings": dict(run.plan.settings),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        # Before each step torch is seeded from these two and the rank: they are the whole random state.
        "random": {"seed": run.plan.seed, "step": progress.step},
        "micro_batch_size": _micro_batch_size(run),
        "metrics": run.recorder.last,
        "first_evaluation": run.first_evaluation,
        "first_retention": run.first_retention,
        "retention_data": _retention_data(run),
    }
    if run.start is not None:
        content["start"] = run.start.record
    if run.average is not None:
        content |= run.average.checkpoint_fields(run.clip_model.model)
    return content


def _micro_batch_size(run):
    """None for a whole batch at once, whatever share of it a process then has."""
    share = run.plan.batch_size // distributed.world_size()
    return None if run.micro_batch_size >= share else run.micro_batch_size


def save(run: Run, path: Path, needed: bool = False) -> bool:
    """Write a checkpoint -> whether this process did; only rank 0 does. A failed write is a warning, an error if `needed`."""
    written = run.is_main and run.folder.save(path, run.clip_model, needed, **checkpoint_fields(run))
    if written:
        print(f"saved {path}")
    return written
