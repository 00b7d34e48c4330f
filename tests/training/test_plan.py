"""What a run resolves, from every side that it may come from; and that nothing changes it afterwards."""

import dataclasses

import pytest
import torch

import settings
from clip_finetuning.runtime import knobs as page
from clip_finetuning.training import knobs, plan

PAGE = {name: page.value(settings, name) for name in knobs.ALL}


def facts(untrained=False, batches=100, batch_size=256, processes=1, validation=True, first_step=0):
    known = (processes, batches, batch_size, validation, first_step)
    return plan.Facts(torch.nn.Linear(4, 4), untrained, torch.device("cpu"), *known)


def resolve(given=(), **changes):
    known = {name: changes.pop(name) for name in list(changes) if name in plan.Facts._fields}
    wishes = {"PRECISION": "fp32", **{name.upper(): value for name, value in changes.items()}}
    return plan.resolve(PAGE | wishes, given, facts(**known))


def test_what_is_left_open_follows_from_the_weights():
    trained, untrained = resolve(), resolve(untrained=True)
    assert (trained.optimizer, trained.learning_rate) == ("adamw", 1e-5)
    assert (untrained.optimizer, untrained.learning_rate) == ("muon", 1e-3)
    assert trained.settings["LEARNING_RATE"] == 1e-5 and trained.settings["OPTIMIZER"] == "adamw"


@pytest.mark.parametrize(
    ("epochs", "max_steps", "given", "steps"),
    [
        (5, None, (), 500),
        (5, 40, (), 40),
        (5, 4000, (), 4000),  # MAX_STEPS takes the place of EPOCHS
        (5, 4000, ("EPOCHS",), 500),
        (5, 40, ("EPOCHS",), 40),
        (1, None, (), 100),
    ],
)
def test_steps_are_those_of_epochs_or_of_max_steps(epochs, max_steps, given, steps):
    found = resolve(given, epochs=epochs, max_steps=max_steps)
    assert found.total_steps == steps
    assert found.settings["EPOCHS"] == (None if max_steps and not given else epochs)


@pytest.mark.parametrize(("steps", "warmup"), [(40, 4), (9, 0), (5000, 500), (6000, 500)])
def test_the_warmup_is_a_tenth_and_at_most_500(steps, warmup):
    assert resolve(max_steps=steps).warmup_steps == warmup


def test_a_warmup_is_not_complained_of_where_nothing_is_left_to_do():
    assert resolve(max_steps=25, warmup_steps=30, first_step=300).total_steps == 25
    with pytest.raises(ValueError, match="WARMUP_STEPS=30 is more than half of the 25 steps"):
        resolve(max_steps=25, warmup_steps=30, first_step=10)


@pytest.mark.parametrize(
    ("processes", "asked", "micro"), [(1, None, 256), (4, None, 64), (4, 16, 16), (4, 200, 64), (1, 200, 200)]
)
def test_the_micro_batch_is_a_part_of_a_process_own_share(processes, asked, micro):
    assert resolve(processes=processes, micro_batch_size=asked).micro_batch_size == micro


def test_all_that_is_wrong_is_told_at_once():
    wrong = {"batch_size": 10, "micro_batch_size": 11, "patience": 2, "eval_interval": None, "max_steps": 10}
    with pytest.raises(ValueError) as caught:
        resolve(processes=3, warmup_steps=6, BATCH_SIZE=10, **{k: v for k, v in wrong.items() if k != "batch_size"})
    for word in ("MICRO_BATCH_SIZE=11 exceeds", "PATIENCE counts", "does not divide among 3", "WARMUP_STEPS=6 is more"):
        assert word in str(caught.value)


def test_what_is_wrong_by_itself_is_known_before_a_model_is_built():
    with pytest.raises(ValueError, match=r"MICRO_BATCH_SIZE=300 exceeds BATCH_SIZE=256.*PATIENCE counts"):
        plan.check(PAGE | {"MICRO_BATCH_SIZE": 300, "PATIENCE": 1, "EVAL_INTERVAL": None}, 1)
    plan.check(PAGE, 1)


def test_when_things_are_due():
    found = resolve(max_steps=10, eval_interval=4, checkpoint_interval=5)
    assert [step for step in range(11) if found.evaluation_is_due(step)] == [0, 4, 8, 10]
    assert [step for step in range(1, 11) if found.checkpoint_is_due(step)] == [5]
    assert not any(resolve(max_steps=10, validation=False).evaluation_is_due(step) for step in range(11))


def test_a_plan_is_frozen_and_gives_the_rate():
    found = resolve(max_steps=10, warmup_steps=2, learning_rate=1.0)
    assert [found.learning_rate_at(step) for step in range(3)] == [0.5, 1.0, 1.0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.learning_rate = 2.0


def test_what_holds_to_the_start_is_for_weights_that_were_trained_before(monkeypatch):
    monkeypatch.setattr(plan, "USUAL_ANCHOR", 0.5)
    monkeypatch.setattr(plan, "USUAL_START_SHARE", 0.25)
    trained, untrained, asked = resolve(), resolve(untrained=True), resolve(anchor=2.0, start_share=0.0)
    assert (trained.anchor, trained.start_share) == (0.5, 0.25)
    assert (trained.settings["ANCHOR"], trained.settings["START_SHARE"]) == (0.5, 0.25)
    assert (untrained.anchor, untrained.start_share) == (0.0, 0.0)
    assert (asked.anchor, asked.start_share) == (2.0, 0.0)
    assert plan.doubts(trained, untrained=False) == [] and len(plan.doubts(trained, untrained=True)) == 2
