"""Fine-tune an OpenCLIP model on the training shards.

    python clipFineTuner.py
    python clipFineTuner.py --max-steps 500 --batch-size 128
    python clipFineTuner.py --resume                                  # go on from the newest checkpoint
    torchrun --nproc-per-node=2 clipFineTuner.py                      # BATCH_SIZE is shared among the processes

CHECKPOINT_DIR receives checkpoint_NNNNNNNN.pt every CHECKPOINT_INTERVAL steps, best_checkpoint.pt, final_checkpoint.pt,
metrics.jsonl and training_curves.png. Ctrl-C and SIGTERM save a checkpoint and leave; Ctrl-C twice ends at once.
"""

import contextlib
import math
import os
import shutil
from dataclasses import replace

import dBManagement
import openClipManagement as clip
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import evaluate_clip
import settings
from clip_finetuning.runtime import command_line, console, distributed
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime.console import warn
from clip_finetuning.runtime.text import printable
from clip_finetuning.training import gradient_cache, losses, siglip_start
from clip_finetuning.training import log as training_log
from clip_finetuning.training import optimizer as optimization
from clip_finetuning.training.run_folder import BEST, CURVES, FINAL, CheckpointFolder, NeededCheckpointFailed
from clip_finetuning.training.state import (
    IMAGE_KNOBS,
    MATHEMATICAL_KNOBS,
    Progress,
    Training,
    find_checkpoint,
    restore,
    save,
)
from clip_finetuning.training.stop_signals import StopSignals

MODEL_KNOBS = ["MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR"]
DATA_KNOBS = ["TRAIN_DATASET_PATTERN", "VALID_DATASET_PATTERN", "NUM_WORKERS"]
OTHER_KNOBS = [
    "EPOCHS", "MAX_STEPS", "DEVICE", "MICRO_BATCH_SIZE", "GRAD_CHECKPOINTING", "CHECKPOINT_DIR", "CHECKPOINT_INTERVAL",
    "KEEP_CHECKPOINTS", "RESUME", "EVAL_INTERVAL", "PATIENCE", "LOG_INTERVAL", "TENSORBOARD",
]  # fmt: skip
# Beside the mathematical ones those that must be the same for all processes; paths may differ between machines.
SHARED_KNOBS = ["EPOCHS", "MAX_STEPS", "MICRO_BATCH_SIZE", "EVAL_INTERVAL", "PATIENCE"]
# A resumed run takes these from its checkpoint where they are left at the value here.
CHOSEN_KNOBS = {"PRECISION": "auto", "OPTIMIZER": "auto", "LEARNING_RATE": None, "WARMUP_STEPS": None}
CHOSEN_KNOBS |= dict.fromkeys(IMAGE_KNOBS)
MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5
MAX_SKIPPED_IN_A_ROW = 10
MAX_DEFAULT_WARMUP = 500


def main(argv=None):
    """Settings, then everything the training needs, then the training."""
    args = parse_arguments(argv)
    ranks = distributed.start(args.device)
    with contextlib.ExitStack() as stack:
        if ranks.rank > 0:  # one console, one writer
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        folder = CheckpointFolder(args.checkpoint_dir, args.keep_checkpoints)
        if ranks.rank == 0:
            stack.enter_context(folder.lock())
        training = setup(args, ranks, folder)
        announce(training, args, ranks)
        fit(training, args, stack.enter_context(StopSignals()))
    distributed.stop()


def parse_arguments(argv):
    """The knobs of a training run, checked against each other."""
    parser = command_line.Parser(settings, __doc__, MODEL_KNOBS + DATA_KNOBS + MATHEMATICAL_KNOBS + OTHER_KNOBS)
    parser.add_argument(
        "--force", action="store_true", help="resume although settings differ that change the mathematics"
    )
    args = parser.parse_args(argv)
    if args.max_steps is not None and "EPOCHS" not in args.given:
        args.epochs = None
    if args.micro_batch_size is not None and args.micro_batch_size > args.batch_size:
        parser.error(
            f"MICRO_BATCH_SIZE={args.micro_batch_size} exceeds BATCH_SIZE={args.batch_size}, of which it is a part"
        )
    if args.patience is not None and args.eval_interval is None:
        parser.error("PATIENCE counts evaluations, but EVAL_INTERVAL is none: set EVAL_INTERVAL too")
    return args


# --------------------------------------------------------------------------------------------------- setup


def setup(args, ranks, folder):
    """Build or restore everything: model, data, optimizer, progress."""
    check_settings(args)
    device = clip.pick_device(args.device, ranks.local_rank)
    devices.make_current(device)
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
    checkpoint = find_checkpoint(args, folder)
    clip_model = load_start(args, checkpoint, device)
    needs_bias = args.loss == "siglip" and checkpoint is None and getattr(clip_model.model, "logit_bias", None) is None
    if needs_bias:
        clip.add_logit_bias(clip_model)
    if args.grad_checkpointing:
        clip_model.model.set_grad_checkpointing()
    distributed.broadcast([*clip_model.model.parameters(), *clip_model.model.buffers()])
    untrained = clip.is_untrained(clip_model.model)  # of rank 0's weights, which all have now

    loader, valid_loader = load_data(args, ranks, clip_model)
    choose_knobs(args, checkpoint, clip_model, loader.batch_size, untrained)
    steps = len(loader) * args.epochs if args.epochs else args.max_steps
    total_steps = min(steps, args.max_steps or steps)
    if args.warmup_steps is None:
        args.warmup_steps = min(MAX_DEFAULT_WARMUP, total_steps // 10)
    optimization.check_warmup(args.warmup_steps, total_steps)
    if needs_bias and not untrained:
        siglip_start.set_scale_and_bias(clip_model, loader, args.precision, args.micro_batch_size)
    average = None
    if args.ema_decay is not None:  # buffers are copied: the attention mask's -inf has no average
        average = AveragedModel(clip_model.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    training = Training(
        clip_model=clip_model,
        loader=loader,
        valid_loader=valid_loader,
        optimizer=optimization.create_optimizer(
            clip_model.model,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            betas=(args.beta1, args.beta2),
            eps=args.eps,
            kind=args.optimizer,
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=args.precision == "fp16"),
        average=average,
        folder=folder,
        recorder=training_log.Recorder(folder if ranks.rank == 0 else None, args.tensorboard),
        precision=args.precision,
        total_steps=total_steps,
        micro_batch_size=args.micro_batch_size,
        progress=Progress(learns_statistics=untrained),
        settings={
            name: getattr(args, name.lower()) for name in MODEL_KNOBS + DATA_KNOBS + MATHEMATICAL_KNOBS + OTHER_KNOBS
        },
        is_main=ranks.rank == 0,
    )
    check_processes(training, args, ranks, checkpoint["step"] if checkpoint else 0)
    if checkpoint is not None:
        restore(training, checkpoint, args.force)
    elif training.is_main:
        folder.set_aside()
    # What the run goes by: each process may have found another checkpoint of that step.
    training.progress, training.micro_batch_size = distributed.agree((training.progress, training.micro_batch_size))
    return training


def load_start(args, checkpoint, device):
    """The model that MODEL_NAME and MODEL_PRETRAINED name, or that of the checkpoint to go on from."""
    image = clip.image_settings(args)
    if checkpoint is None:
        return clip.create_model(args.model_name, args.model_pretrained, args.model_cache_dir, device, args.seed, image)
    named = None if checkpoint["settings"]["MODEL_NAME"] == args.model_name else args.model_name
    clip_model = clip.load_model(
        checkpoint["path"], device, args.model_cache_dir, named, args.model_name, checkpoint, image
    )
    return replace(clip_model, pretrained=printable(checkpoint.get("pretrained", clip_model.pretrained)))


def choose_knobs(args, checkpoint, clip_model, batch_size, untrained):
    """Fill in what the settings leave open: as the checkpoint has it, else what suits the device and the weights."""
    if checkpoint is not None:
        for name, unset in CHOSEN_KNOBS.items():
            if getattr(args, name.lower()) == unset:
                setattr(args, name.lower(), checkpoint["settings"].get(name, unset))
    args.precision = distributed.agree(clip.pick_precision(args.precision, clip_model.device))
    args.optimizer = optimization.pick_optimizer(args.optimizer, clip_model.model, batch_size, untrained)
    if args.learning_rate is None:
        args.learning_rate = optimization.usual_learning_rate(untrained)


def check_settings(args):
    """ValueError if the processes were started with settings by which one would wait for another that never comes."""
    names = [*MATHEMATICAL_KNOBS, *SHARED_KNOBS]
    everywhere = distributed.gather_objects([getattr(args, name.lower()) for name in names])
    for name, *values in zip(names, *everywhere):
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} is {values} in the processes of this run: give all of them the same settings")


def check_processes(training, args, ranks, step):
    """ValueError if the processes are not about to do the same; a warning if it matters how many they are."""
    valid_samples = training.valid_loader.num_samples if training.valid_loader else 0
    if len(set(distributed.gather_objects((step, training.total_steps, valid_samples)))) > 1:
        raise ValueError(
            f"the processes do not start from the same step with the same data: CHECKPOINT_DIR={args.checkpoint_dir} and the "
            "shards must be the same for all machines, on a file system that they share"
        )
    cut = ranks.world_size > 1 or args.micro_batch_size is not None
    if cut and training.progress.learns_statistics and clip.batch_norms(training.clip_model.model):
        warn(
            "BatchNorm layers see each process's part and each micro-batch by itself: the result depends on their sizes"
        )


def load_data(args, ranks, clip_model):
    """(training loader, validation loader or None), each giving this process its share."""
    if args.batch_size % ranks.world_size:
        raise ValueError(
            f"BATCH_SIZE={args.batch_size} does not divide among {ranks.world_size} processes; make it a multiple"
        )
    size = args.batch_size // ranks.world_size
    mine = {"rank": ranks.rank, "world_size": ranks.world_size, "num_workers": args.num_workers}
    loader = dBManagement.train_loader(
        args.train_dataset_pattern,
        clip.image_transform(clip_model, train=True, reduced_decode=args.reduced_decode),
        clip_model.tokenizer,
        batch_size=size,
        seed=args.seed,
        views=args.views,
        **mine,
    )
    if args.eval_interval is None:
        return loader, None
    try:
        transform = clip.image_transform(clip_model, train=False)
        valid = args.valid_dataset_pattern
        at_once = min(size, args.micro_batch_size or size)
        return loader, dBManagement.eval_loader(valid, transform, clip_model.tokenizer, batch_size=at_once, **mine)
    except FileNotFoundError as error:
        if "VALID_DATASET_PATTERN" in args.given:
            raise
        warn(f"training goes on without evaluation, so without best_checkpoint.pt and PATIENCE: {error}")
        return loader, None


# ---------------------------------------------------------------------------------------------- training


def fit(training, args, stop):
    """Train from the current progress to the end, with logs, evaluations and checkpoints on the way."""
    progress, final = training.progress, training.folder.path / FINAL
    with rescue(training):
        due = evaluation_is_due(training, args) and progress.evaluated_step < progress.step  # a signal came before it
        if due and not evaluate(training, stop):
            leave(training, stop)
            return
        if is_over(training, args):
            return
        if not out_of_patience(progress, args) and train(training, args, stop) == "stopped":
            return
        save(training, final, needed=True)
    if progress.step < training.total_steps:
        print(
            f"step {progress.step}: no better mean Recall@10 in {args.patience} evaluations, so the training ends here"
        )
    finish(training)


def train(training, args, stop):
    """Step after step -> "stopped" if a signal ended it, "ended" otherwise."""
    progress, folder = training.progress, training.folder
    clock = training_log.Clock()
    bar = tqdm(
        total=training.total_steps, initial=progress.step, unit="step", disable=None if training.is_main else True
    )
    with bar:
        for batch in batches(training):
            clock.data_arrived()
            record = train_step(training, args, batch)
            clock.step_done(len(batch.keys) * distributed.world_size())
            bar.update()
            step, last = progress.step, progress.step == training.total_steps
            if step % args.log_interval == 0 or last:
                training.recorder.log_training(record, clock.lap(), progress, training.total_steps)
            due = evaluation_is_due(training, args)
            stopped = stop.wished() and (due or not last)  # after the last step just an evaluation takes its time
            if due and not stopped:
                stopped = not evaluate(training, stop)
                if out_of_patience(progress, args) and not stopped:
                    return "ended"
                stopped = stopped or (stop.wished() and not last)
            if stopped:
                leave(training, stop)
                return "stopped"
            if step % args.checkpoint_interval == 0 and not last:
                written = distributed.any_rank(save(training, folder.periodic(step)))
                if stop.wished() and written:  # once is enough: the time that is left may be short
                    say_stopped(progress, stop)
                    return "stopped"
            clock.restart()
    return "ended"


def leave(training, stop):
    """Save what a stopped run has done, if it has done anything."""
    if training.progress.step > 0:
        save(training, training.folder.periodic(training.progress.step), needed=True)
    say_stopped(training.progress, stop)


def say_stopped(progress, stop):
    print(f"stopped by {stop.requested or 'another process'} at step {progress.step}; go on with --resume")


@contextlib.contextmanager
def rescue(training):
    """Save before an error ends the run: the shards are gone, another process died, no step is finite."""
    begin = training.progress.step
    try:
        yield
    except NeededCheckpointFailed:
        raise
    except Exception:
        path = training.folder.periodic(training.progress.step)
        try:
            if training.in_update or training.progress.step == begin:
                pass  # weights of no whole step, or those that were there already
            elif weights_are_finite(training):
                save(training, path)
            else:
                warn("the weights are not finite, so they are not saved; go on from an earlier checkpoint")
        except Exception as error:  # a device that failed gives no weights; the first error is the one to tell
            warn(f"{path} could not be saved: {error}")
        raise


def weights_are_finite(training):
    return all(torch.isfinite(p).all() for p in training.clip_model.model.parameters())


def evaluation_is_due(training, args):
    """Whether the validation shards, if there are any, are to be looked at after this step."""
    step, total = training.progress.step, training.total_steps
    return training.valid_loader is not None and (step % args.eval_interval == 0 or step == total)


def out_of_patience(progress, args):
    """Whether the last PATIENCE evaluations were no better than one before them."""
    return args.patience is not None and progress.evaluations_since_best >= args.patience


def is_over(training, args):
    """Whether a resumed run has nothing left to do and its final checkpoint is there; says so."""
    progress, folder = training.progress, training.folder
    if progress.step >= training.total_steps:
        why = f"EPOCHS and MAX_STEPS ask for {training.total_steps}; more of them go on"
    elif out_of_patience(progress, args):
        why = f"no better mean Recall@10 in {args.patience} evaluations; a larger PATIENCE goes on"
    else:
        return False
    there = distributed.any_rank(training.is_main and folder.step_of(folder.path / FINAL) == progress.step)
    if there:
        print(f"{progress.step} steps are done, and {why}; {folder.path / FINAL} stays as it is")
    return there


def batches(training):
    """Batches from the current position on, epoch after epoch, until all steps are done; `train_step` counts them."""
    progress = training.progress
    while progress.step < training.total_steps:
        training.loader.set_epoch(progress.epoch, progress.batch)
        for batch in training.loader:
            yield batch
            if progress.step == training.total_steps:
                return
        progress.epoch, progress.batch = progress.epoch + 1, 0


def train_step(training, args, batch):
    """One optimizer step -> {loss, learning_rate, grad_norm} as tensors and numbers."""
    progress, optimizer, scaler = training.progress, training.optimizer, training.scaler
    clip_model, model = training.clip_model, training.clip_model.model
    device = clip_model.device
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_function = {"clip": losses.clip_loss, "siglip": losses.siglip_loss}[args.loss]

    def embed(images, tokens):
        with clip.autocast(device, training.precision):
            return clip.encode_images(clip_model, images), clip.encode_texts(clip_model, tokens)

    def loss_of(image_embeddings, text_embeddings, products):
        bias = getattr(model, "logit_bias", None)
        return loss_function(image_embeddings, text_embeddings, products, model.logit_scale.exp(), bias)

    # ---- the step ------------------------------------------------------------------------------------
    clip.training_mode(model, progress.learns_statistics)
    statistics = [(b, b.clone()) for norm in clip.batch_norms(model) if norm.training for b in norm.buffers()]
    training.in_update = bool(statistics)  # those the forward pass updates already
    learning_rate = optimization.learning_rate_at(
        progress.step,
        peak=args.learning_rate,
        total_steps=training.total_steps,
        warmup_steps=args.warmup_steps,
        schedule=args.lr_schedule,
    )
    optimization.set_learning_rate(optimizer, learning_rate)
    torch.manual_seed(step_seed(args.seed, progress.step, distributed.rank()))  # dropout repeats after a resume
    images, tokens, products = (t.to(device, non_blocking=True) for t in (batch.images, batch.tokens, batch.identities))
    with clip.training_attention(device, training.precision):
        loss, training.micro_batch_size = gradient_cache.backward_with_retry(
            embed, loss_of, images, tokens, products, parameters,
            micro_batch_size=training.micro_batch_size, scaler=scaler, say=warn,
        )  # fmt: skip
    training.in_update = True
    scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, args.grad_clip_norm or math.inf)
    finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))  # the one value fetched from the device each step
    if finite:
        scaler.step(optimizer)
        with torch.no_grad():
            # SigLIP's paper does not bound the scale, and published ones are above 100.
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE if args.loss == "clip" else None)
        if training.average is not None:
            training.average.update_parameters(model)
    else:
        for buffer, before in statistics:
            buffer.copy_(before)
    scaler.update()
    # ----------------------------------------------------------------------------------------------------
    progress.step, progress.batch = progress.step + 1, progress.batch + 1
    training.in_update = False
    count_skipped(training, finite, loss)
    return {
        "loss": loss,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "logit_scale": model.logit_scale.detach().exp(),
    }


def step_seed(seed, step, rank):
    """A seed for one step of one process: a resumed run needs no saved random state."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63


def count_skipped(training, finite, loss):
    """Count a step without update; ValueError after ten in a row."""
    progress = training.progress
    if finite:
        progress.skipped_in_a_row = 0
        return
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    what = "gradient" if torch.isfinite(loss) else "loss"
    print(f"step {progress.step}: the {what} is not finite, so the weights stay as they were")
    if progress.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
        return
    first = progress.step - MAX_SKIPPED_IN_A_ROW + 1
    raise ValueError(
        f"the loss or its gradient was not finite in steps {first} to {progress.step}, so the training stops; lower "
        "LEARNING_RATE, lengthen WARMUP_STEPS, or set PRECISION=fp32, with --resume --force or in a new run"
    )


def evaluate(training, stop):
    """Measure Recall@k on the validation shards, log it, keep the best model, and warn if it got worse than at the start.

    False if a signal ended it before there was a number.
    """
    progress, clip_model = training.progress, training.clip_model
    if training.average is not None and progress.step > 0:
        clip_model = replace(clip_model, model=training.average.module)
    distributed.broadcast(clip_model.model.buffers())  # BatchNorm's, which may differ between processes
    try:
        results = evaluate_clip.measure(clip_model, training.valid_loader, training.precision, wished=stop.wished)
    except distributed.Stopped:
        return False
    progress.evaluated_step = progress.step
    score = sum(results["recall@10"].values()) / 2
    training.recorder.log_evaluation(results, score, progress)
    if progress.step == 0:
        progress.first_score = score
        return True
    better = progress.best_score is None or score > progress.best_score
    progress.best_score = score if better else progress.best_score
    progress.evaluations_since_best = 0 if better else progress.evaluations_since_best + 1
    if progress.first_score is not None and score < progress.first_score:
        warn(
            f"step {progress.step}: mean Recall@10 is {score:.4f}, below the {progress.first_score:.4f} before training; "
            "LEARNING_RATE may be too high for these weights"
        )
    if better:
        save(training, training.folder.path / BEST)
    return True


def finish(training):
    """Say how it went and draw the curves."""
    progress, folder = training.progress, training.folder
    if training.is_main:
        try:
            training_log.draw_curves(folder.records(), folder.path / CURVES)
        except OSError as error:
            warn(f"{folder.path / CURVES} could not be written ({error}); the numbers are in metrics.jsonl")
    if progress.best_score is not None:
        start = "" if progress.first_score is None else f", at the start {progress.first_score:.4f}"
        print(
            f"{progress.step} steps done, {progress.skipped_steps} skipped; best mean Recall@10 {progress.best_score:.4f}{start}"
        )
    lost = dBManagement.count_lost(distributed.gather_objects(training.loader.lost))
    if lost:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.most_common())
        warn(f"{lost.total()} training samples could not be used: {reasons}")


def announce(training, args, ranks):
    """One block that says what will happen."""
    clip_model, folder = training.clip_model, training.folder
    everything, trainable = clip.count_parameters(clip_model.model)
    moments = optimization.count_moments(training.optimizer)
    size = 4 * (everything * (1 if training.average is None else 2) + moments)
    number = (
        min(args.keep_checkpoints, (training.total_steps - 1) // args.checkpoint_interval)
        + 1
        + (training.valid_loader is not None)
    )
    free = shutil.disk_usage(folder.path).free
    batch_size = training.loader.batch_size
    micro = min(training.micro_batch_size or batch_size, batch_size // ranks.world_size)
    lines = {
        "model": f"{clip_model.name}, from {clip_model.pretrained or 'random weights'}",
        "parameters": f"{everything:,}, trainable {trainable:,}",
        "device": f"{clip_model.device}, {training.precision}"
        + (f", {ranks.world_size} processes" if ranks.world_size > 1 else ""),
        "data": f"{training.loader.num_samples:,} samples, {len(training.loader):,} batches an epoch",
        "validation": f"{training.valid_loader.num_samples:,} samples" if training.valid_loader else "none",
        "steps": f"{training.total_steps:,} of {batch_size} samples, {micro} on the device at once",
        "learning rate": f"{args.learning_rate:g} for {args.optimizer}, {args.warmup_steps} steps of warmup, then {args.lr_schedule}",
        "checkpoints": f"{number} of {size / 2**20:,.0f} MiB in {folder.path}, {free / 2**20:,.0f} MiB free",
    }
    print("\n".join(f"{name:>14}  {text}" for name, text in lines.items()), flush=True)
    if (number + 1) * size > free:  # the one that is being written lies beside the older ones
        warn(
            f"{number} checkpoints of {size / 2**20:,.0f} MiB, and one more while writing, may not fit into {folder.path}: "
            "free some space, or lower KEEP_CHECKPOINTS"
        )


if __name__ == "__main__":
    console.run(main, settings)
