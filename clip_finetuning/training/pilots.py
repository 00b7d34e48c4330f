"""Pilots of several learning rates: short runs from one start, on the same batches, each with a folder of its own.

CHECKPOINT_DIR/pilots/
rates.json                what the pilots are of, what each came to in every round, and which rate was chosen
1e-05/metrics.jsonl       the numbers of a pilot
1e-05/checkpoint_*.pt     its state, as long as it may go on

A pilot goes through the loop of every run, and like a run it goes on from its state; what rates.json says of it is done.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.weights import write
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.atomic_write import remove_leftovers
from clip_finetuning.runtime.console import warn
from clip_finetuning.runtime.version import version
from clip_finetuning.training import halving, pilot_record, state, summary
from clip_finetuning.training.first_loss import guessing_loss
from clip_finetuning.training.halving import Outcome
from clip_finetuning.training.plan import Plan
from clip_finetuning.training.run_folder import BEST, METRICS, CheckpointFolder


class StateFolder(CheckpointFolder):
    """The folder of a pilot: one state, as the model in memory has it, to go on from and for nothing else."""

    def save(self, path: Path, clip_model: ClipModel, needed: bool = False, **fields: Any) -> bool:
        """As of every run; but the best of a pilot is for nobody."""
        return path.name != BEST and super().save(path, clip_model, needed, **fields)

    def _write(self, path, clip_model, *, alone=False, **fields):
        # Name and version tell the file from those of other trainers, whose weights are searched for.
        own = {"model_name": clip_model.name, "version": version(), "state_dict": clip_model.model.state_dict()}
        write(path, {**own, **fields})


class Pilots:
    """The pilots of a run that has not begun: which are left to do, what they came to, which rate is the best."""

    def __init__(self, run: state.Run, rates: Sequence[float], difference: halving.Difference) -> None:
        """`difference` is that of two evaluations by product, second - first. Takes up what was done before."""
        self._run, self._difference = run, difference
        self.halving = halving.planned(rates, run.plan.total_steps)
        self.path = run.folder.path / pilot_record.FOLDER
        self._weights = {
            name: tensor.detach().cpu().clone() for name, tensor in run.clip_model.model.state_dict().items()
        }
        of = pilot_record.described(run, self.halving, self._weights)
        self._record = distributed.agree(pilot_record.take_up(self.path, of) if run.is_main else None)
        self._write()
        self._announce()

    # ------------------------------------------------------------------------------------------ what is left

    def left(self) -> Iterator[tuple[float, int]]:
        """(rate, the step that its pilot is to reach) of each pilot of each round that is still to do, one after the other.

        Each is to be noted before the next is asked for. After a round says how it went, and drops those that end there.
        """
        on = list(self.halving.rates)
        for number in range(len(self.halving.running)):
            rates = [rate for rate in self.halving.rates if rate in on]
            until = (number + 1) * self.halving.round_steps
            for rate in rates:
                if self._record.outcome(rate, until) is None:
                    yield rate, until
            on = self._end_round(rates, until)
            if len(on) == 1:
                return

    def take_up(self, rate: float, until: int) -> state.Run:
        """The pilot of a rate as a run, where it is: at the start, or at the state that was saved last."""
        folder = StateFolder(self.path / repr(rate), keep=1)
        if self._run.is_main:
            remove_leftovers(folder.path)
        found = state.find_checkpoint("auto", folder) if any(folder.path.glob("checkpoint_*.pt")) else None
        step = found["step"] if found else 0
        if len(set(distributed.gather_objects(step))) > 1:
            raise ValueError(f"the processes do not find the same state in {folder.path}: all must see the same folder")
        self._run.clip_model.model.load_state_dict(found["state_dict"] if found else self._weights)
        pilot = state.start_again(self._run, self._plan(rate), folder)
        if found:
            state.restore(pilot, found, force=False)
        elif pilot.is_main:
            (folder.path / METRICS).unlink(missing_ok=True)
        start = self._record.start
        if start is not None:
            pilot.first_evaluation, pilot.first_retention = start["by_product"], start["by_product_of_retention"]
            if step == 0:
                pilot.progress.score(start["score"], start["retention"])
        if step == until:  # its evaluation was not noted
            pilot.progress.evaluated_step = until - 1
        pilot.progress, pilot.micro_batch_size = distributed.agree((pilot.progress, pilot.micro_batch_size))
        print(f"pilot of {rate:g}: steps {step + 1} to {until}", flush=True)
        return pilot

    def note(self, pilot: state.Run, until: int, finite: bool) -> None:
        """Keep what a pilot came to by the end of a round, and its state if a round follows. Not `finite`: it broke off."""
        rate, goes_on = pilot.plan.learning_rate, finite and until < self.halving.pilot_steps
        pilot.loader.close()
        self._run.micro_batch_size = pilot.micro_batch_size
        self._note_start(pilot)
        outcome = distributed.agree(self._outcome_of(pilot, until, finite) if pilot.is_main else None)
        if goes_on:
            distributed.any_rank(state.save(pilot, pilot.folder.periodic(until), needed=True))
        self._record.note(rate, until, outcome)
        self._write()

    def best(self) -> float:
        """The rate that is left; says what one should know of it. ValueError if even this one does harm."""
        last = max(int(step) for steps in self._record.outcomes.values() for step in steps)
        outcomes = {rate: found for rate in self.halving.rates if (found := self._record.outcome(rate, last))}
        (best, *_) = halving.better_half(outcomes)
        halving.check(best, outcomes[best], self.halving.rates)
        for remark in halving.remarks(best, outcomes, self.halving.rates, self._difference):
            warn(remark)
        print(f"the best rate is {best:g}; {self.path / pilot_record.FILE} has all numbers", flush=True)
        self._record.chosen = best
        self._write()
        return best

    def start_training(self, rate: float) -> state.Run:
        """The run itself, with this learning rate, from the start."""
        run = self._run
        run.clip_model.model.load_state_dict(self._weights)
        self._weights = {}
        settings = {**run.plan.settings, "LEARNING_RATE": rate}
        return replace(run, plan=replace(run.plan, learning_rate=rate, settings=settings))

    def log_into(self, folder: CheckpointFolder) -> None:
        """Write the pilots' numbers as the first line of a run's metrics.jsonl."""
        if self._run.is_main:
            chosen, numbers = self._record.chosen, self._record.numbers()
            folder.log({"step": 0, "epoch": 0, "chosen_rate": chosen, "pilots": numbers})

    # --------------------------------------------------------------------------------------------- one pilot

    def _plan(self, rate: float) -> Plan:
        """The run's plan with another rate and fewer steps."""
        plan, steps = self._run.plan, self.halving.pilot_steps
        return replace(
            plan,
            total_steps=steps,
            learning_rate=rate,
            warmup_steps=plan.warmup_steps * steps // plan.total_steps,
            warm_statistics=plan.warm_statistics * steps // plan.total_steps,
            log_interval=min(plan.log_interval, max(1, self.halving.round_steps // 10)),
            eval_interval=self.halving.round_steps if plan.eval_interval is not None else None,
            patience=None,
            settings={**plan.settings, "LEARNING_RATE": rate, "MAX_STEPS": steps, "EPOCHS": None, "RESUME": "auto"},
        )

    def _outcome_of(self, pilot: state.Run, until: int, finite: bool) -> Outcome:
        if not finite:
            return Outcome(pilot.progress.step, None, trouble=halving.NOT_FINITE)
        logged = [record for record in pilot.folder.records() if "loss" in record]
        half = [
            r["loss"] - r.get("anchor_loss", 0)
            for r in logged
            if r["step"] > until - self.halving.round_steps / 2 and r["loss"] is not None
        ]
        outcome = Outcome(until, sum(half) / len(half) if half else None)
        if pilot.last_scores is not None:
            first, last = pilot.first_evaluation, pilot.last_evaluation
            if first and not last:  # no sample has a finite embedding
                return replace(outcome, trouble=halving.NOT_FINITE)
            difference = self._difference(first, last) if first and last else None
            (score, retention), start = pilot.last_scores, self._record.start
            known = retention is not None and start["retention"] is not None
            outcome = replace(
                outcome,
                score=pilot.progress.kept_score(score, retention),
                gain=score - start["score"],
                interval=difference[1] if difference else None,
                retention=retention - start["retention"] if known else None,
                by_product=last,
            )
        guessing = guessing_loss(torch.arange(pilot.plan.batch_size), pilot.plan.loss)
        return replace(outcome, trouble=halving.trouble(outcome, guessing))

    def _note_start(self, pilot: state.Run) -> None:
        """Keep the evaluation before the first step: it is the same for all pilots."""
        progress = pilot.progress
        if self._record.start is None and progress.first_score is not None:
            self._record.start = {
                "score": progress.first_score,
                "retention": progress.first_retention,
                "by_product": pilot.first_evaluation,
                "by_product_of_retention": pilot.first_retention,
            }

    def _write(self) -> None:
        if self._run.is_main:
            self._record.write(self.path)

    # ---------------------------------------------------------------------------------------------- a round

    def _end_round(self, rates: list[float], until: int) -> list[float]:
        """Say how a round went -> the rates that go on; the others' states are deleted."""
        outcomes = {rate: outcome for rate in rates if (outcome := self._record.outcome(rate, until))}
        on = halving.better_half(outcomes)
        number, rounds = until // self.halving.round_steps, len(self.halving.running)
        start = self._record.start
        began = f", mean Recall@10 at the start {start['score']:.4f}" if start else ""
        print(f"round {number} of {rounds}, {until} steps done{began}")
        print("\n".join(halving.table(outcomes, on, rates)), flush=True)
        if not on:
            raise ValueError(halving.nothing_finite(rates))
        for rate in rates if len(on) == 1 else set(rates) - set(on):
            for path in (self.path / repr(rate)).glob("checkpoint_*.pt") if self._run.is_main else ():
                path.unlink(missing_ok=True)
        return on

    @property
    def _criterion(self) -> str:
        if self._run.plan.eval_interval is None:
            return "lowest loss of the second half of a round"
        both = " and the retention shards" if self._run.plan.keep == "both" else " shards"
        return f"best mean Recall@10 on the validation{both} at the end of a round"

    def _announce(self) -> None:
        plan, running, steps = self._run.plan, self.halving.running, self.halving.round_steps
        states, size = running[0] * (len(running) > 1), summary.state_bytes(self._run)
        lines = {
            "pilots": f"{' + '.join(f'{number} x {steps}' for number in running)} = {self.halving.all_steps:,} steps of "
            f"{plan.batch_size} samples, then {plan.total_steps:,} of the training",
            "criterion": self._criterion,
            "states": f"up to {states} of {size / 2**20:,.0f} MiB in {self.path}, each until its pilot is over"
            if states
            else "none, for there is one round",
        }
        print("\n".join(f"{name:>14}  {text}" for name, text in lines.items()), flush=True)
        if plan.eval_interval is None:
            warn("there are no validation shards, so the rates are compared by the loss on the same training batches")
        if (states + 1) * size > (free := shutil.disk_usage(self._run.folder.path).free):
            warn(f"{states} states of {size / 2**20:,.0f} MiB may not fit: {free / 2**20:,.0f} MiB are free")


def settle(args: Any, folder: CheckpointFolder, checkpoint: Mapping[str, Any] | None) -> None:
    """Let what was done before decide what `args` leave open, so that the same command goes on wherever it was stopped.

    `checkpoint`: that of a run which --resume found. Where it is the run that these rates were tried for, there is nothing
    more to try; ValueError if it is another. PRECISION=auto, which the clock decides, stays what it was for the pilots.
    """
    record, rate, path = distributed.agree(
        (
            pilot_record.read(folder.path / pilot_record.FOLDER),
            checkpoint and checkpoint["settings"].get("LEARNING_RATE"),
            checkpoint and checkpoint["path"],
        )
    )
    if record and record.of["rates"] != args.try_rates:
        record = None
    if path is not None:
        if rate is None or record is None or record.chosen != rate:
            raise ValueError(
                f"{path} is of a run that has begun, with LEARNING_RATE={rate}: --resume alone goes on with it, "
                "--try-rates without --resume begins a new one"
            )
        print(f"the rates were tried before this run, {rate:g} was the best")
        args.try_rates = None
    elif record and args.settings["PRECISION"] == "auto":
        args.settings["PRECISION"] = record.of.get("PRECISION", "auto")
        print(f"PRECISION={args.settings['PRECISION']}, as for the pilots in {folder.path / pilot_record.FOLDER}")
