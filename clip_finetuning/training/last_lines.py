"""The last lines of a training: how it ended, and the command that goes on or comes next."""

import argparse
from collections.abc import Callable

from clip_finetuning.runtime import next_command
from clip_finetuning.runtime.signals import exit_code
from clip_finetuning.training import resumption, run_folder
from clip_finetuning.training.state import Run
from clip_finetuning.training.stop_signals import StopSignals


def stopped(run: Run, stop: StopSignals, args: argparse.Namespace, names_url: Callable[[str], bool]) -> int:
    """The last lines of a stopped run -> its exit code; `names_url` as in `resumption.flags_to_go_on`."""
    signal, values, known = stop.agreed(), run.plan.settings, args.page.knobs
    if run.progress.step == 0:  # nothing is saved, so all that was set has to be set again
        arguments = ["--resume", *_flags_that_were_set(args)]
    else:
        arguments = resumption.flags_to_go_on(values, args.page.values({}), known, run.clip_model.config, names_url)
    print(f"stopped by {signal.name} at step {run.progress.step}; go on with --resume:")
    print(next_command.again("clipFineTuner.py", arguments), flush=True)
    return exit_code(signal)


def pilots_stopped(stop: StopSignals, args: argparse.Namespace) -> int:
    """The last lines of pilots that a signal ended -> its exit code."""
    signal = stop.agreed()
    print(f"stopped by {signal.name} while rates are tried; the same command goes on:")
    rates = ["--try-rates", *map(str, args.try_rates), *(["--dry-run"] if args.dry_run else [])]
    print(next_command.again("clipFineTuner.py", [*_flags_that_were_set(args), *rates]), flush=True)
    return exit_code(signal)


def chosen(args: argparse.Namespace) -> int:
    """The last lines of a dry run: the command that trains with the rate that was chosen -> exit code."""
    print("next, train with it:")
    print(next_command.again("clipFineTuner.py", _flags_that_were_set(args)), flush=True)
    return 0


def _flags_that_were_set(args: argparse.Namespace) -> list[str]:
    """Every knob that was set for this call, in whatever way, as a flag; but for RESUME."""
    return resumption.flags_of(args.settings, args.given - {"RESUME"}, args.page.knobs)


def over(run: Run, args: argparse.Namespace) -> None:
    """The last lines of a run that is over: how to measure what it made."""
    values, page = run.plan.settings, args.page.values({})
    best = run.folder.path / run_folder.BEST
    what, path = ("best", best) if best.exists() else ("last", run.folder.path / run_folder.FINAL)
    arguments = [f"--checkpoint={path}"]
    if values["VALID_DATASET_PATTERN"] != page["VALID_DATASET_PATTERN"]:
        arguments.append(f"--dataset-path={values['VALID_DATASET_PATTERN']}")
    if run.retention_loader is not None:
        arguments.append(f"--retention={values['RETENTION_DATASET_PATTERN']}")
    arguments += resumption.flags_for_model(values, page, args.page.knobs, run.clip_model.config)
    print(f"next, measure the {what} checkpoint:")
    print(next_command.beside("clipFineTuner.py", "evaluate_clip.py", arguments), flush=True)
