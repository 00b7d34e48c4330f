"""What a run resolves before its first step: settings, model, data and checkpoint become one frozen value.

Settings leave things open (no LEARNING_RATE, PRECISION=auto, EPOCHS or MAX_STEPS). `resolve` closes them, once, and
checks the whole; what changes while the training runs is in `state` alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from clip_finetuning.model.low_rank import Lora
from clip_finetuning.model.tuning import FULL, Tuning
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed
from clip_finetuning.training import knobs
from clip_finetuning.training import optimizer as optimizers

MAX_DEFAULT_WARMUP = 500
# For weights that were trained before: what benchmarks/fine_tuning.py measured to keep the gain of plain fine-tuning and
# half or more of what that forgets, in each of its pairs.
USUAL_ANCHOR = 1.0
USUAL_START_SHARE = 0.1


class Facts(NamedTuple):
    """What the model, the data and the machine say to a plan."""

    model: torch.nn.Module
    untrained: bool  # its weights are random
    device: torch.device
    processes: int
    batches: int  # of an epoch
    batch_size: int  # of all processes; smaller than BATCH_SIZE where there are fewer products
    validation: bool  # whether there are shards to evaluate on
    first_step: int = 0  # steps that the checkpoint has done which the run goes on from


@dataclass(frozen=True)
class Plan:
    """What a run does, from its first step to its last."""

    total_steps: int
    batch_size: int  # samples contrasted with each other, of all processes
    micro_batch_size: int  # samples of one process on the device at once, to begin with: memory may ask for fewer
    precision: str  # fp16, bf16 or fp32
    loss: str
    optimizer: str
    learning_rate: float  # the peak
    schedule: str
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    grad_clip_norm: float | None
    ema_decay: float | None
    seed: int
    log_interval: int
    checkpoint_interval: int
    eval_interval: int | None  # None: no evaluation
    patience: int | None
    keep: str  # what the best checkpoint is the best of: gain, or both it and retention
    settings: Mapping[str, Any]  # every knob of the run as it was resolved, for the checkpoint
    tuning: Tuning = FULL  # what trains
    anchor: float = 0.0  # weight of the loss that holds the model to its start
    start_share: float = 0.0  # of the start in what is evaluated and saved
    fit_temperature: bool = False
    warm_statistics: int = 0  # the first steps, which move no weight; they count as steps

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0; 0 while the optimizer's statistics fill."""
        if step < self.warm_statistics:
            return 0.0
        return optimizers.learning_rate_at(
            step - self.warm_statistics,
            peak=self.learning_rate,
            total_steps=self.total_steps - self.warm_statistics,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
        )

    def evaluation_is_due(self, step: int) -> bool:
        """Whether the validation shards, if there are any, are to be looked at after so many steps."""
        return self.eval_interval is not None and (step % self.eval_interval == 0 or step == self.total_steps)

    def checkpoint_is_due(self, step: int) -> bool:
        """Whether a periodic checkpoint follows after so many steps; the last one has the final checkpoint."""
        return step % self.checkpoint_interval == 0 and step != self.total_steps


def check(settings: Mapping[str, Any], processes: int) -> None:
    """ValueError for settings that contradict each other, or by which one process would wait for another for ever."""
    complaints = knobs.contradictions(settings, processes)
    everywhere = distributed.gather_objects([settings[name] for name in knobs.SHARED])
    for name, *theirs in zip(knobs.SHARED, *everywhere):
        if any(value != theirs[0] for value in theirs):
            complaints.append(f"{name} is {theirs} in the processes of this run: give all of them the same settings")
    if complaints:
        raise ValueError("; ".join(complaints))


def resolve(settings: Mapping[str, Any], given: Collection[str], facts: Facts) -> Plan:
    """The plan of a run; every process comes to the same one.

    settings: {knob: value}, for a resumed run those of `resumption.take_up`; given: the knobs that were set for this call.
    Raises ValueError with all that is wrong.
    """
    values = dict(settings)
    if values["MAX_STEPS"] is not None and "EPOCHS" not in given:
        values["EPOCHS"] = None
    # By the clock, so that processes may choose differently: the first one's choice counts.
    values["PRECISION"] = distributed.agree(devices.pick_precision(values["PRECISION"], facts.device))
    values["OPTIMIZER"] = optimizers.pick_optimizer(values["OPTIMIZER"], facts.model, facts.batch_size, facts.untrained)
    if values["LEARNING_RATE"] is None:
        values["LEARNING_RATE"] = optimizers.usual_learning_rate(facts.untrained)
    total_steps = _total_steps(values["EPOCHS"], values["MAX_STEPS"], facts.batches)
    for name, usual in (("ANCHOR", USUAL_ANCHOR), ("START_SHARE", USUAL_START_SHARE)):
        if values[name] is None:
            values[name] = 0.0 if facts.untrained else usual
    moving_steps = total_steps - values["WARM_STATISTICS"]
    if values["WARMUP_STEPS"] is None:
        values["WARMUP_STEPS"] = min(MAX_DEFAULT_WARMUP, max(0, moving_steps) // 10)
    complaints = knobs.contradictions(values, facts.processes)
    if facts.first_step < total_steps:  # else there is nothing left to warm up for
        if moving_steps < 1:
            complaints.append(
                f"WARM_STATISTICS={values['WARM_STATISTICS']} steps move no weight, and this training has {total_steps}: "
                "lower it, or train longer"
            )
        else:
            complaints += optimizers.warmup_complaints(values["WARMUP_STEPS"], moving_steps)
    if complaints:
        raise ValueError("; ".join(complaints))
    share = facts.batch_size // facts.processes
    return Plan(
        total_steps=total_steps,
        batch_size=facts.batch_size,
        micro_batch_size=min(values["MICRO_BATCH_SIZE"] or share, share),
        precision=values["PRECISION"],
        loss=values["LOSS"],
        optimizer=values["OPTIMIZER"],
        learning_rate=values["LEARNING_RATE"],
        schedule=values["LR_SCHEDULE"],
        warmup_steps=values["WARMUP_STEPS"],
        weight_decay=values["WEIGHT_DECAY"],
        betas=(values["BETA1"], values["BETA2"]),
        eps=values["EPS"],
        grad_clip_norm=values["GRAD_CLIP_NORM"],
        ema_decay=values["EMA_DECAY"],
        seed=values["SEED"],
        log_interval=values["LOG_INTERVAL"],
        checkpoint_interval=values["CHECKPOINT_INTERVAL"],
        eval_interval=values["EVAL_INTERVAL"] if facts.validation else None,
        patience=values["PATIENCE"],
        keep=values["KEEP"],
        settings=values,
        tuning=_tuning(values),
        anchor=values["ANCHOR"],
        start_share=values["START_SHARE"],
        fit_temperature=values["FIT_TEMPERATURE"],
        warm_statistics=values["WARM_STATISTICS"],
    )


def doubts(plan: Plan, untrained: bool) -> list[str]:
    """A sentence for each setting that means trained weights, where the run begins with random ones."""
    if not untrained:
        return []
    found = []
    if plan.anchor:
        found.append(f"ANCHOR={plan.anchor:g} holds the training to random weights, which know nothing: set it to 0")
    if plan.start_share:
        found.append(f"START_SHARE={plan.start_share:g} mixes random weights into what is saved: set it to 0")
    if plan.fit_temperature:
        found.append("FIT_TEMPERATURE=true goes by what random weights tell apart, which is nothing: leave it off")
    return found


def _tuning(values):
    lora = None
    if values["TUNE"] == "lora":
        lora = Lora(values["LORA_RANK"], values["LORA_ALPHA"], values["LORA_DROPOUT"], values["LORA_TARGETS"])
    return Tuning(values["TUNE"], values["LAYER_DECAY"], values["IMAGE_RATE"], values["TEXT_RATE"], lora)


def _total_steps(epochs, max_steps, batches):
    steps = batches * epochs if epochs else max_steps
    return min(steps, max_steps or steps)
