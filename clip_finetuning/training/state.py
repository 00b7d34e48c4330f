"""What a training run consists of, what a checkpoint holds of it, and how a resumed run gets it back."""

from dataclasses import asdict, dataclass

import torch
from torch.optim.swa_utils import AveragedModel

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.weights import read_checkpoint
from clip_finetuning.runtime.console import warn
from clip_finetuning.runtime.text import printable
from clip_finetuning.training import log as training_log
from clip_finetuning.training import optimizer as optimization
from clip_finetuning.training.run_folder import CheckpointFolder

IMAGE_KNOBS = ["IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION"]
# A resumed run with another value of one of these would no longer be the same training.
MATHEMATICAL_KNOBS = [
    "BATCH_SIZE", "VIEWS", "REDUCED_DECODE", "SEED", "PRECISION", "LOSS", "OPTIMIZER", "LEARNING_RATE", "LR_SCHEDULE", "WARMUP_STEPS",
    "WEIGHT_DECAY", "BETA1", "BETA2", "EPS", "GRAD_CLIP_NORM", "EMA_DECAY", *IMAGE_KNOBS,
]  # fmt: skip
FIXED_KNOBS = ["LOSS", "OPTIMIZER"]  # those among them that decide what a checkpoint holds


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
    best_score: float | None = None  # of the steps since
    evaluations_since_best: int = 0


@dataclass
class Training:
    """What a run consists of, made by `setup` and used by `fit`."""

    clip_model: clip.ClipModel
    loader: object
    valid_loader: object | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    folder: CheckpointFolder
    recorder: training_log.Recorder
    precision: str
    total_steps: int
    micro_batch_size: int | None
    progress: Progress
    settings: dict
    is_main: bool  # rank 0: the one that writes
    in_update: bool = False  # some weights may have moved already, others not


def find_checkpoint(args, folder):
    """The checkpoint that RESUME asks for, with its `path`, or None for a new run."""
    if args.resume == "none":
        return None
    if args.resume == "auto":
        found = folder.newest()
        if found is None:
            print(f"nothing to resume in {folder.path}: this is a new run")
            return None
        path, checkpoint = found
    else:
        path, checkpoint = args.resume, read_checkpoint(args.resume, mapped=True)
    absent = [key for key in ("step", "optimizer", "progress", "data", "settings") if key not in checkpoint]
    if absent:
        raise ValueError(f"{path} cannot be resumed: it has no {', '.join(absent)}; use it as MODEL_PRETRAINED instead")
    _check_fields(path, checkpoint)
    # What checkpoints did not say before there was a choice.
    settings = {"OPTIMIZER": "adamw", **checkpoint["settings"]}
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


def restore(training, checkpoint, force):
    """Put a run back to where the checkpoint was written; settings that differ are listed, grave ones refused."""
    saved, now = checkpoint["settings"], training.settings
    different = [name for name in now if name != "RESUME" and saved.get(name, now[name]) != now[name]]
    fixed = [f"{name} was {saved[name]}, is {now[name]}" for name in different if name in FIXED_KNOBS]
    if fixed:
        raise ValueError(
            f"{checkpoint['path']} was written by another kind of training: {'; '.join(fixed)}; restore that, or start a new "
            "run with this file as MODEL_PRETRAINED"
        )
    grave = [f"{name} was {saved[name]}, is {now[name]}" for name in different if name in MATHEMATICAL_KNOBS]
    grave += training.loader.check_state(checkpoint["data"])
    planned = checkpoint.get("total_steps", training.total_steps)
    if training.total_steps != planned > checkpoint["step"] and now["LR_SCHEDULE"] != "constant":
        grave.append(f"the learning rate falls over {planned} steps in the checkpoint, over {training.total_steps} now")
    if grave and not force:
        raise ValueError(
            f"{checkpoint['path']} was written by another training: {'; '.join(grave)}; restore these, or add --force to go "
            "on all the same"
        )
    for name in different:
        print(printable(f"resuming with another {name}: was {saved[name]}, is {now[name]}"))
    for line in grave:
        warn(printable(f"forced: {line}"))
    if changed := training.loader.changed_order(checkpoint["data"]):
        warn(changed)
    if "raw_state_dict" in checkpoint:
        # `state_dict` holds the average, which `load_model` put into the model that the average was copied from.
        training.clip_model.model.load_state_dict(checkpoint["raw_state_dict"])
        if training.average is not None:
            training.average.n_averaged.fill_(checkpoint["averaged_steps"])
    spared = optimization.load_state(training.optimizer, training.clip_model.model, checkpoint["optimizer"])
    if spared:
        print(f"no longer with weight decay, which is for matrices alone: {', '.join(spared)}")
    if checkpoint["scaler"]:  # empty if it was not fp16
        training.scaler.load_state_dict(checkpoint["scaler"])
    training.progress = Progress(**checkpoint["progress"])
    training.progress.skipped_in_a_row = 0
    training.recorder.go_on(checkpoint["step"], checkpoint.get("metrics", {}))
    training.micro_batch_size = (
        checkpoint["micro_batch_size"] if now["MICRO_BATCH_SIZE"] is None else training.micro_batch_size
    )
    if training.is_main:
        if now["RESUME"] not in ("auto", "none"):  # an earlier checkpoint, by its path: what came after is another run
            training.folder.set_aside_after(training.progress.step)
        training.folder.forget_after(training.progress.step, training.progress.evaluated_step)
    print(f"resumed {checkpoint['path']}: step {training.progress.step}, epoch {training.progress.epoch + 1}")


def checkpoint_fields(training):
    """What a checkpoint holds beside the weights of the model."""
    progress, model = training.progress, training.clip_model.model
    fields = {
        "step": progress.step,
        "epoch": progress.epoch,
        "total_steps": training.total_steps,
        "progress": asdict(progress),
        "data": training.loader.state(),
        "settings": training.settings,
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        # Before each step torch is seeded from these two and the rank: they are the whole random state.
        "random": {"seed": training.settings["SEED"], "step": progress.step},
        "micro_batch_size": training.micro_batch_size,
        "metrics": training.recorder.last,
    }
    if training.average is not None:
        fields["state_dict"] = training.average.module.state_dict()
        fields["raw_state_dict"] = model.state_dict()
        fields["averaged_steps"] = int(training.average.n_averaged)
    return fields


def save(training, path, needed=False):
    """Write a checkpoint -> whether this process did; only rank 0 does. A failed write is a warning, an error if `needed`."""
    written = training.is_main and training.folder.save(
        path, training.clip_model, needed, **checkpoint_fields(training)
    )
    if written:
        print(f"saved {path}")
    return written
