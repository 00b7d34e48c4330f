"""What a run says at its start and at its end."""

import shutil
from collections import Counter
from collections.abc import Sequence

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model import tuning
from clip_finetuning.model.low_rank import low_ranks
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.console import warn
from clip_finetuning.training import curves
from clip_finetuning.training import optimizer as optimizers
from clip_finetuning.training.run_folder import BEST, CURVES, START
from clip_finetuning.training.state import Run


def announce(run: Run, tried: Sequence[float] = ()) -> None:
    """One block that says what will happen; `tried`: rates of which one is to be chosen first."""
    plan, clip_model, processes = run.plan, run.clip_model, distributed.world_size()
    everything, trainable = clip.count_parameters(clip_model.model)
    tuned = tuning.summary(clip_model.model, plan.tuning)
    sizes = _checkpoints(run, everything)
    number = ", ".join(f"{count} of {size / 2**20:,.0f} MiB" for size, count in Counter(sizes).items())
    start = _start_bytes(run)
    number += f", {START} of {start / 2**20:,.0f} MiB" if start else ""
    free = shutil.disk_usage(run.folder.path).free
    best_of = f"the best of {', '.join(f'{rate:g}' for rate in tried)}" if tried else ""
    together = f", {processes} processes" if processes > 1 else ""
    lines = {
        "model": f"{clip_model.name}, from {clip_model.pretrained or 'random weights'}",
        "parameters": f"{everything:,}, trainable {trainable:,}",
        **({"tuning": tuned} if tuned else {}),
        **({"LoRA": str(clip_model.lora)} if clip_model.lora else {}),
        "device": f"{clip_model.device}, {plan.precision}{together}",
        "data": f"{run.loader.num_samples:,} samples, {len(run.loader):,} batches an epoch",
        "pictures": run.loader.dataset.transform.what_it_does,
        "validation": f"{run.valid_loader.num_samples:,} samples" if run.valid_loader else "none",
        **_retention(run),
        "steps": f"{plan.total_steps:,} of {plan.batch_size} samples, {run.micro_batch_size} on the device at once",
        "learning rate": f"{best_of or f'{plan.learning_rate:g}'} for {plan.optimizer}, {plan.warmup_steps} steps of warmup, "
        f"then {plan.schedule}",
        **_start(run),
        "checkpoints": f"{number} in {run.folder.path}, {free / 2**20:,.0f} MiB free",
    }
    print("\n".join(f"{name:>14}  {text}" for name, text in lines.items()), flush=True)
    if plan.tuning.tune != "full" and clip.is_untrained(clip_model.model):
        warn(f"TUNE={plan.tuning.tune} locks weights that are random, and learns around them: TUNE=full trains all")
    start *= not (run.folder.path / START).is_file()  # what is there takes no more of what is free
    if start + sum(sizes) + max(sizes) > free:  # the one that is being written lies beside the older ones
        warn(
            f"checkpoints, {number}, and one more while writing, may not fit into {run.folder.path}: "
            "free some space, or lower KEEP_CHECKPOINTS"
        )


def _start(run):
    """What is done with the weights that the run began with, for the start block."""
    plan, told = run.plan, []
    if plan.anchor:
        told.append(f"held to by ANCHOR={plan.anchor:g}")
    if plan.start_share:
        told.append(f"{plan.start_share:.0%} of what is evaluated and saved")
    lines = {"start": f"{', '.join(told)}; kept in {run.folder.path / START}"} if told else {}
    if run.fitted:
        lines["temperature"] = run.fitted
    if plan.warm_statistics:
        lines["statistics"] = (
            f"the first {plan.warm_statistics} of the steps fill the optimizer's moments and move no weight"
        )
    return lines


def _retention(run):
    """The line of the retention shards, if there are any."""
    loader, progress = run.retention_loader, run.progress
    if loader is None:
        return {}
    told = f"{loader.num_samples:,} samples"
    if progress.step > 0 and progress.first_retention is None:
        told += ", not measured before the training: what was forgotten since is not known"
    if run.plan.keep == "both":
        told += f"; {BEST} is the best mean of validation and retention"
    return {"retention": told}


def _checkpoints(run, parameters):
    """Bytes of each checkpoint that there will be at most."""
    periodic = min(run.folder.keep, (run.plan.total_steps - 1) // run.plan.checkpoint_interval)
    others = 1 + (run.valid_loader is not None)
    if run.clip_model.lora is None:
        return [state_bytes(run)] * (periodic + others)
    added = sum(p.numel() for low_rank in low_ranks(run.clip_model.model) for p in low_rank.parameters())
    small = 4 * (added * _copies(run) + optimizers.count_moments(run.optimizer))
    return [small] * periodic + [small + 4 * parameters, 4 * added] * others  # merged, and the additions beside it


def _start_bytes(run):
    """The size of the file that keeps the start, 0 if there will be none."""
    return 0 if run.start is None else 4 * clip.count_parameters(run.start.clip_model.model)[0]


def state_bytes(run: Run) -> int:
    """The size of one checkpoint that holds all the weights of a run, about."""
    parameters, _ = clip.count_parameters(run.clip_model.model)
    return 4 * (parameters * _copies(run) + optimizers.count_moments(run.optimizer))


def _copies(run):
    average = run.average
    return 1 if average is None else 2 + (average.moving is not None and average.start is not None)


def conclude(run: Run, lost: Counter[str]) -> None:
    """Say how it went and draw the curves; `lost`: training samples that could not be used, by reason."""
    progress, folder = run.progress, run.folder
    if run.is_main:
        try:
            curves.draw(folder.records(), folder.path / CURVES)
        except OSError as error:
            warn(f"{folder.path / CURVES} could not be written ({error}); the numbers are in metrics.jsonl")
    if progress.best_score is not None:
        first, what = progress.first_score, "mean Recall@10"
        if progress.keep == "both":
            retained = progress.first_retention
            first = None if first is None or retained is None else progress.kept_score(first, retained)
            what = "mean Recall@10 of validation and retention"
        start = "" if first is None else f", at the start {first:.4f}"
        print(
            f"{progress.step} steps done, {progress.skipped_steps} skipped; best {what} {progress.best_score:.4f}{start}"
        )
    if lost:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.most_common())
        warn(f"{lost.total()} training samples could not be used: {reasons}")
