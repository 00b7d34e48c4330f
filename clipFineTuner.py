"""Fine-tune an OpenCLIP model on the training shards.

    python clipFineTuner.py
    python clipFineTuner.py --max-steps 500 --batch-size 128
    python clipFineTuner.py --resume                                  # go on from the newest checkpoint
    python clipFineTuner.py --try-rates 3e-6 1e-5 3e-5 1e-4           # short pilots first, then the best of these rates
    torchrun --nproc-per-node=2 clipFineTuner.py                      # BATCH_SIZE is shared among the processes

CHECKPOINT_DIR receives checkpoint_NNNNNNNN.pt every CHECKPOINT_INTERVAL steps, best_checkpoint.pt, final_checkpoint.pt,
metrics.jsonl and training_curves.png, with ANCHOR or START_SHARE also start.pt, the weights it began with. Ctrl-C and
SIGTERM save a checkpoint and leave with exit code 130 and 143; the last line is the command that goes on. Ctrl-C twice
ends at once. --resume takes from the checkpoint what no flag says.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import settings
from clip_finetuning import loading, model, retrieval, runtime, training
from clip_finetuning.runtime import command_line, console

if TYPE_CHECKING:
    from clip_finetuning.model.clip_model import ClipModel
    from clip_finetuning.runtime.distributed import Ranks
    from clip_finetuning.training.pilots import Pilots
    from clip_finetuning.training.run_folder import CheckpointFolder
    from clip_finetuning.training.state import Run
    from clip_finetuning.training.step import Step
    from clip_finetuning.training.stop_signals import StopSignals


def main(argv: list[str] | None = None) -> int:
    """Settings, then everything the training needs, then the training -> exit code: that of the signal which ended it, or 0."""
    args = parse_arguments(argv)
    ranks = runtime.distributed.start(args.device)
    with contextlib.ExitStack() as stack:
        if ranks.rank > 0:  # one console, one writer
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        folder = training.run_folder.CheckpointFolder(args.checkpoint_dir, args.keep_checkpoints)
        if ranks.rank == 0:
            stack.enter_context(folder.lock())
        run = setup(args, ranks, folder)
        stop = stack.enter_context(training.stop_signals.StopSignals())
        if args.try_rates:
            training.summary.announce(run, args.try_rates)
            pilots = training.pilots.Pilots(run, args.try_rates, retrieval.drop.difference)
            outcome = try_rates(pilots, stop, args)
            if outcome == "stopped" or args.dry_run:
                close_loaders(run)
                if outcome == "stopped":
                    return training.last_lines.pilots_stopped(stop, args)
                return training.last_lines.chosen(args)
            run = pilots.start_training(args.settings["LEARNING_RATE"])
            take_folder(run)
            pilots.log_into(run.folder)
        training.summary.announce(run)
        outcome = fit(run, stop)
        close_loaders(run)
        if outcome == "stopped":
            return training.last_lines.stopped(run, stop, args, loading.shard_list.names_url)
        training.last_lines.over(run, args)
        return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The knobs of a training run; `settings` of the result are all of them by name."""
    parser = command_line.Parser(settings, __doc__, training.knobs.ALL)
    parser.add_argument(
        "--force", action="store_true", help="resume although settings differ that change the mathematics"
    )
    parser.add_argument(
        "--try-rates", nargs="+", type=training.halving.rate, metavar="RATE",
        help="train a little with each of these learning rates first, then all with the best of them",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="end after --try-rates with the command that trains")
    args = parser.parse_args(argv)
    args.page = parser.page
    args.settings = {name: getattr(args, name.lower()) for name in training.knobs.ALL}
    # Those of a resumed run depend on its checkpoint.
    contradictions = [] if args.resume != "none" else training.knobs.contradictions(args.settings)
    contradictions += training.halving.complaints(args.try_rates, args.dry_run, args.learning_rate, args.resume)
    if contradictions:
        parser.errors(contradictions)
    return args


# --------------------------------------------------------------------------------------------------- setup


def setup(args: argparse.Namespace, ranks: Ranks, folder: CheckpointFolder) -> Run:
    """Build or restore everything: model, data, plan, optimizer, progress."""
    checkpoint = training.state.find_checkpoint(args.resume, folder)
    if args.try_rates:
        training.pilots.settle(args, folder, checkpoint)
    take_settings_of(checkpoint, args)
    folder.keep = args.keep_checkpoints
    training.plan.check(args.settings, ranks.world_size)
    look_for_shards(args)
    device = runtime.device.prepare(args.device, ranks.local_rank)
    clip_model = load_start(args, checkpoint, device)
    needs_bias = args.loss == "siglip" and checkpoint is None and not model.clip_model.has_logit_bias(clip_model)
    if needs_bias:
        model.clip_model.add_logit_bias(clip_model)
    if args.grad_checkpointing:
        model.clip_model.checkpoint_gradients(clip_model)
    runtime.distributed.broadcast([*clip_model.model.parameters(), *clip_model.model.buffers()])
    untrained = model.clip_model.is_untrained(clip_model.model)  # of rank 0's weights, which all have now

    loader, valid_loader, retention_loader = load_data(args, ranks, clip_model)
    facts = training.plan.Facts(
        model=clip_model.model,
        untrained=untrained,
        device=device,
        processes=ranks.world_size,
        batches=len(loader),
        batch_size=loader.batch_size,
        validation=valid_loader is not None,
        first_step=checkpoint["step"] if checkpoint else 0,
    )
    plan = training.plan.resolve(args.settings, args.given, facts)
    for doubt in training.plan.doubts(plan, untrained):
        console.warn(doubt)
    fitted = None
    if plan.fit_temperature and checkpoint is None:
        fitted = training.temperature.fit(clip_model, loader, plan.loss, plan.precision, plan.micro_batch_size)
    elif needs_bias and not untrained:
        training.siglip_start.set_scale_and_bias(clip_model, loader, plan.precision, plan.micro_batch_size)
    image = model.image_recipe.image_settings(args)
    start = training.start.of_run(plan, clip_model, checkpoint, folder, args.model_cache_dir, image)
    model.tuning.apply(clip_model, plan.tuning, plan.seed)
    if checkpoint is not None and plan.tuning.lora is not None and "lora" in checkpoint:
        model.lora_file.resume(clip_model, checkpoint, checkpoint["path"])
    learns_statistics = untrained and plan.tuning.lora is None  # LoRA's checkpoints hold no statistics
    run = training.state.start_run(
        plan, clip_model, loader, valid_loader, folder, retention_loader=retention_loader,
        tensorboard=args.tensorboard, learns_statistics=learns_statistics, start=start,
    )  # fmt: skip
    run.fitted = fitted
    check_processes(run, facts.first_step)
    if checkpoint is not None:
        training.state.restore(run, checkpoint, args.force)
        keep_start(run)
    elif not args.try_rates:  # else once a rate is chosen
        take_folder(run)
    # What the run goes by: each process may have found another checkpoint of that step.
    run.progress, run.micro_batch_size = runtime.distributed.agree((run.progress, run.micro_batch_size))
    return run


def take_settings_of(checkpoint: dict[str, Any] | None, args: argparse.Namespace) -> None:
    """Let the checkpoint to go on from settle what was not set for this call; says where settings.py differs."""
    # One process may not see the checkpoint: settings are those of the first one, and `check_processes` refuses the rest.
    saved = runtime.distributed.agree(checkpoint and (checkpoint["settings"], checkpoint["path"]))
    if saved is None:
        return
    resumed = training.resumption.take_up(
        args.settings, args.given, saved[0], args.page.knobs, loading.shard_list.names_url, saved[1]
    )
    for remark in resumed.remarks:
        print(remark)
    args.settings, args.given = resumed.values, resumed.given
    for name, value in resumed.values.items():
        if name != "MODEL_NAME":  # of the user's alone: a file's own word for it counts for less
            setattr(args, name.lower(), value)


def look_for_shards(args: argparse.Namespace) -> None:
    """FileNotFoundError or ValueError for shards that do not serve: known before a model is built or downloaded."""
    fields = loading.sample.Fields(args.caption_key, args.product_key)
    loading.first_look.check_contrast(args.train_dataset_pattern, fields)
    if args.flip:
        warn_of_sides(args.train_dataset_pattern, fields)
    if args.eval_interval is not None and "VALID_DATASET_PATTERN" in args.given:
        loading.first_look.check_shards(args.valid_dataset_pattern)
    if args.retention_dataset_pattern is not None:
        loading.first_look.check_shards(args.valid_dataset_pattern)  # retention is measured beside these
        called = f"RETENTION_DATASET_PATTERN={args.retention_dataset_pattern}"
        others = {"trained on": args.train_dataset_pattern, "evaluated on": args.valid_dataset_pattern}
        for remark in loading.overlap.check(called, args.retention_dataset_pattern, others, fields):
            console.warn(remark)


def warn_of_sides(pattern: str, fields: Any) -> None:
    """Warn where captions that name a side would be shown with mirrored pictures; says how many of which."""
    found = loading.sides.look(pattern, fields)
    if runtime.distributed.rank() == 0 and found.naming:
        console.warn(
            f"FLIP: {found.naming:,} of {found.samples:,} samples that were looked at have captions that may name a side "
            f"({', '.join(found.examples)}), which is the wrong one on a mirrored picture"
        )


def load_start(args: argparse.Namespace, checkpoint: dict[str, Any] | None, device: Any) -> ClipModel:
    """The model that MODEL_NAME and MODEL_PRETRAINED name, or that of the checkpoint to go on from."""
    image = model.image_recipe.image_settings(args)
    if checkpoint is None:
        if args.tune == "lora":
            model.building.check_base(args.model_name, args.model_pretrained)
        return model.building.create_model(
            args.model_name, args.model_pretrained, args.model_cache_dir, device, args.seed, image
        )
    saved = checkpoint["settings"].get("MODEL_NAME", args.model_name)
    named = args.model_name if "MODEL_NAME" in args.given and saved != args.model_name else None
    path, cache_dir = checkpoint["path"], args.model_cache_dir
    if "lora" in checkpoint:  # its additions follow
        clip_model = model.building.load_base(path, checkpoint, device, cache_dir, named, args.model_name, image)
    else:
        clip_model = model.building.load_model(path, device, cache_dir, named, args.model_name, checkpoint, image)
    start = checkpoint.get("pretrained", clip_model.pretrained)
    return replace(clip_model, pretrained=runtime.text.printable(start))


def load_data(args: argparse.Namespace, ranks: Ranks, clip_model: ClipModel) -> tuple[Any, Any | None, Any | None]:
    """(training loader, validation loader or None, that of the retention shards or None), each giving this process its share."""
    size = args.batch_size // ranks.world_size
    mine = {"rank": ranks.rank, "world_size": ranks.world_size, "num_workers": args.num_workers}
    mine |= {"caption_key": args.caption_key, "product_key": args.product_key}
    loader = loading.loader.train_loader(
        args.train_dataset_pattern,
        model.clip_model.image_transform(
            clip_model, train=True, reduced_decode=args.reduced_decode, crop_scale=args.crop_scale, flip=args.flip
        ),
        clip_model.tokenizer,
        batch_size=size,
        seed=args.seed,
        views=args.views,
        **mine,
    )
    if args.eval_interval is None:
        return loader, None, None
    transform = model.clip_model.image_transform(clip_model, train=False)
    at_once = min(size, args.micro_batch_size or size)

    def evaluated(pattern):
        return loading.loader.eval_loader(pattern, transform, clip_model.tokenizer, batch_size=at_once, **mine)

    try:
        valid_loader = evaluated(args.valid_dataset_pattern)
    except FileNotFoundError as error:
        if "VALID_DATASET_PATTERN" in args.given:
            raise
        console.warn(f"training goes on without evaluation, so without best_checkpoint.pt and PATIENCE: {error}")
        return loader, None, None
    retention = args.retention_dataset_pattern
    return loader, valid_loader, None if retention is None else evaluated(retention)


def check_processes(run: Run, step: int) -> None:
    """ValueError if the processes are not about to do the same; a warning if it matters how many they are."""
    loaders = (run.valid_loader, run.retention_loader)
    samples = tuple(0 if loader is None else loader.num_samples for loader in loaders)
    if len(set(runtime.distributed.gather_objects((step, run.plan.total_steps, samples)))) > 1:
        raise ValueError(
            f"the processes do not start from the same step with the same data: CHECKPOINT_DIR={run.folder.path} and the "
            "shards must be the same for all machines, on a file system that they share"
        )
    cut = runtime.distributed.world_size() > 1 or run.plan.settings["MICRO_BATCH_SIZE"] is not None
    if cut and run.progress.learns_statistics and model.clip_model.batch_norms(run.clip_model.model):
        console.warn(
            "BatchNorm layers see each process's part and each micro-batch by itself: the result depends on their sizes"
        )


def take_folder(run: Run) -> None:
    """Let CHECKPOINT_DIR be that of a new run: what an earlier one left there is moved aside."""
    if run.is_main:
        for before, now in run.folder.set_aside().items():
            if Path(run.clip_model.pretrained).resolve() == before.resolve():  # these weights keep a name of their own
                print(f"{now} has the weights that this run begins with: keep it")
                model.lora_file.rename_base(run.clip_model, str(now))
                if run.start is not None:
                    run.start.clip_model.pretrained = str(now)
    keep_start(run)


def keep_start(run: Run) -> None:
    """Write the weights that the run is held to beside its checkpoints, so that it goes on with the same ones."""
    if run.start is not None and run.is_main:
        training.start.keep(run.start, run.folder)


def close_loaders(run: Run) -> None:
    """End the workers."""
    for loader in filter(None, (run.loader, run.valid_loader, run.retention_loader)):
        loader.close()


# ---------------------------------------------------------------------------------------------- training


def try_rates(pilots: Pilots, stop: StopSignals, args: argparse.Namespace) -> str:
    """Train the pilots that are left to do and let LEARNING_RATE be the best of the rates -> "stopped" or "ended"."""
    for rate, until in pilots.left():
        if train_pilot(pilots, rate, until, stop) == "stopped":
            return "stopped"
    args.settings["LEARNING_RATE"] = pilots.best()
    args.given.add("LEARNING_RATE")
    return "ended"


def train_pilot(pilots: Pilots, rate: float, until: int, stop: StopSignals) -> str:
    """One pilot to the end of a round -> "stopped" or "ended"."""
    pilot, finite = pilots.take_up(rate, until), True
    with rescue(pilot):
        try:
            if not make_up_for_evaluation(pilot, stop) or train(pilot, stop, until) == "stopped":
                return "stopped"
        except training.state.Diverged as diverged:
            console.warn(f"the pilot of {rate:g} ends here: {diverged}")
            finite = False
        pilots.note(pilot, until, finite)
    return "ended"


def fit(run: Run, stop: StopSignals) -> str:
    """Train from the current progress to the end, with logs, evaluations and checkpoints -> "stopped" or "ended"."""
    progress, plan, final = run.progress, run.plan, run.folder.path / training.run_folder.FINAL
    with rescue(run):
        if not make_up_for_evaluation(run, stop):
            return "stopped"
        if is_over(run):
            return "ended"
        if not run.is_out_of_patience and train(run, stop, plan.total_steps) == "stopped":
            return "stopped"
        training.state.save(run, final, needed=True)
    if progress.step < plan.total_steps:
        print(
            f"step {progress.step}: no better mean Recall@10 in {plan.patience} evaluations, so the training ends here"
        )
    lost = runtime.distributed.gather_objects(run.loader.lost)
    training.summary.conclude(run, runtime.accounting.count_lost(lost))
    guesses = runtime.distributed.gather_objects(run.loader.guesses)
    for reason, count in runtime.accounting.count_lost(guesses).items():
        console.warn(f"training went on by a guess, {count} x {reason}")
    return "ended"


def make_up_for_evaluation(run: Run, stop: StopSignals) -> bool:
    """Evaluate the start, or a step that a signal came before the evaluation of; False if a signal ended that too."""
    step = run.progress.step
    if run.plan.evaluation_is_due(step) and run.progress.evaluated_step < step and not evaluate(run, stop):
        save_stopped(run)
        return False
    return True


def train(run: Run, stop: StopSignals, until: int) -> str:
    """Step after step, until so many are done -> "stopped" if a signal ended it, "ended" otherwise."""
    progress, plan = run.progress, run.plan
    clock = training.log.Clock()
    with training.log.progress_bar(until, progress.step, shown=run.is_main) as bar:
        for batch in run.batches(until):
            # ---- the step: gradient of the whole batch, update
            clock.data_arrived()
            done = training.step.train_step(
                run.clip_model,
                run.optimizer,
                run.scaler,
                batch,
                plan,
                step=progress.step,
                micro_batch_size=run.micro_batch_size,
                average=run.average,
                learns_statistics=progress.learns_statistics,
                anchor=run.anchor,
            )
            run.micro_batch_size = done.micro_batch_size
            if progress.step == 0 and not progress.learns_statistics:
                say_first_loss(run, done, batch)
            progress.count(done)
            # ---- its numbers
            clock.step_done(len(batch.keys) * runtime.distributed.world_size())
            bar.update()
            step, last = progress.step, progress.step == until
            if step % plan.log_interval == 0 or last:
                left = clock.seconds_left(until - step)
                epochs = math.ceil(plan.total_steps / len(run.loader))
                run.recorder.log_training(done.record, clock.lap(), progress, plan.total_steps, epochs, left)
            # ---- the evaluation, unless a signal came
            due = plan.evaluation_is_due(step)
            stopped = stop.wished() and (due or not last)  # after the last step just an evaluation takes its time
            if due and not stopped:
                stopped = not evaluate(run, stop)
                if run.is_out_of_patience and not stopped:
                    return "ended"
                stopped = stopped or (stop.wished() and not last)
            # ---- a checkpoint, and the end if a signal asked for it
            if stopped:
                save_stopped(run)
                return "stopped"
            if plan.checkpoint_is_due(step):
                written = runtime.distributed.any_rank(training.state.save(run, run.folder.periodic(step)))
                if stop.wished() and written:  # once is enough: the time that is left may be short
                    return "stopped"
            clock.restart()
    return "ended"


def say_first_loss(run: Run, done: Step, batch: Any) -> None:
    """Warn where weights that were trained before do worse than guessing on the first batch."""
    contrastive = done.loss if done.anchor_loss is None else done.loss - done.anchor_loss
    remark = training.first_loss.remark(contrastive.item(), batch.identities, done.logit_scale.item(), run.plan)
    if remark:
        console.warn(remark)


def evaluate(run: Run, stop: StopSignals) -> bool:
    """Measure Recall@k on the validation and retention shards, log it, keep the best model, warn if it got worse than at the start.

    False if a signal ended it before there was a number.
    """
    progress, clip_model = run.progress, run.clip_model
    if run.average is not None and progress.step > 0:
        clip_model = replace(clip_model, model=run.average.evaluated(clip_model.model))
    runtime.distributed.broadcast(clip_model.model.buffers())  # BatchNorm's, which may differ between processes
    try:
        results = retrieval.results.measure(clip_model, run.valid_loader, run.plan.precision, wished=stop.wished)
        retained = None
        if run.retention_loader is not None:
            retained = retrieval.results.measure(
                clip_model, run.retention_loader, run.plan.precision, wished=stop.wished
            )
    except runtime.distributed.Stopped:
        return False
    if results.get("num_samples") == 0 and not model.clip_model.is_finite(clip_model.model):
        raise training.state.Diverged(
            f"step {progress.step}: the weights are not finite, so there is nothing to go on with"
        )
    score = training.log.mean_recall(results)
    kept = None if retained is None else training.log.mean_recall(retained)
    better = progress.score(score, kept)
    run.recorder.log_evaluation(results, score, progress, retained)
    by_product = retrieval.drop.by_product(results)
    run.last_scores, run.last_evaluation = (score, kept), by_product
    if progress.step == 0:
        run.first_evaluation = by_product
        run.first_retention = None if retained is None else retrieval.drop.by_product(retained)
    else:
        warn_of_drop(run, score, by_product)
        if retained is not None and kept is not None:
            warn_of_forgetting(run, kept, retrieval.drop.by_product(retained))
    if better:
        training.state.save(run, run.folder.path / training.run_folder.BEST)
    return True


def warn_of_drop(run: Run, score: float, by_product: dict[str, Any] | None) -> None:
    """Warn if an evaluation is worse than the one before training, by more than chance."""
    first = run.progress.first_score
    how_sure = retrieval.drop.below(first, run.first_evaluation, score, by_product)
    if how_sure is not None:
        console.warn(
            f"step {run.progress.step}: mean Recall@10 is {score:.4f}, below the {first:.4f} before training{how_sure}; "
            "LEARNING_RATE may be too high for these weights"
        )


def warn_of_forgetting(run: Run, score: float, by_product: dict[str, Any] | None) -> None:
    """Warn if the model knows less of the retention shards than before training, by more than chance."""
    first = run.progress.first_retention
    how_sure = retrieval.drop.below(first, run.first_retention, score, by_product)
    if how_sure is not None:
        console.warn(
            f"step {run.progress.step}: the model forgets: mean Recall@10 on the retention shards is {score:.4f}, below the "
            f"{first:.4f} before training{how_sure}; ANCHOR and START_SHARE hold it to its start, so does a lower LEARNING_RATE"
        )


# ------------------------------------------------------------------------------------------------- ends of a run


def save_stopped(run: Run) -> None:
    """Save what a stopped run has done, if it has done anything."""
    if run.progress.step > 0:
        training.state.save(run, run.folder.periodic(run.progress.step), needed=True)


def is_over(run: Run) -> bool:
    """Whether a resumed run has nothing left to do and its final checkpoint is there; says so."""
    progress, plan, final = run.progress, run.plan, run.folder.path / training.run_folder.FINAL
    if progress.step >= plan.total_steps:
        why = f"EPOCHS and MAX_STEPS ask for {plan.total_steps}; more of them go on"
    elif run.is_out_of_patience:
        why = f"no better mean Recall@10 in {plan.patience} evaluations; a larger PATIENCE goes on"
    else:
        return False
    there = runtime.distributed.any_rank(run.is_main and run.folder.step_of(final) == progress.step)
    if there:
        print(f"{progress.step} steps are done, and {why}; {final} stays as it is")
    return there


@contextlib.contextmanager
def rescue(run: Run) -> Iterator[None]:
    """Save before an error ends the run: the shards are gone, another process died, no step is finite."""
    begin = run.progress.step
    try:
        yield
    except training.run_folder.NeededCheckpointFailed:
        raise
    except training.step.TornUpdate as torn:  # weights of no whole step
        raise (torn.__cause__ or torn) from None
    except Exception:
        path = run.folder.periodic(run.progress.step)
        try:
            if run.progress.step == begin:
                pass  # the weights were there already
            elif model.clip_model.is_finite(run.clip_model.model):
                training.state.save(run, path)
            else:
                console.warn("the weights are not finite, so they are not saved; go on from an earlier checkpoint")
        except Exception as error:  # a device that failed gives no weights; the first error is the one to tell
            console.warn(f"{path} could not be saved: {error}")
        raise


if __name__ == "__main__":
    console.run(main, settings)
