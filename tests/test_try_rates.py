"""--try-rates: pilots from one start, the training with the best rate, and that no step is done twice."""

import contextlib
import io
import json
import os
import shlex
import signal
import time

import pytest
import torch

import clipFineTuner
import openClipManagement as clip
from clip_finetuning.training import curves, halving, pilot_record, pilots
from clip_finetuning.training import step as training_step
from clip_finetuning.training.halving import Outcome
from tests import test_clipFineTuner as trainer
from tests.helpers import write_config

RATES = ["1e-3", "1e-5", "3e-3"]  # at 6 steps a round: 3 x 6, then 2 x 6
PILOT_STEPS = 5 * 6


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "train", products=24, views=2, shards=2)
    make_shards(folder / "valid", products=40, views=2, shards=1, first_product=100)
    write_config(folder)
    return folder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_: None)  # most of the time


def flags(data, run, *more, rates=RATES, **changes):
    common = {"learning_rate": None, "optimizer": "adamw", "checkpoint_interval": 100, "eval_interval": 6, **changes}
    return [*trainer.flags(data, run, **common), *(["--try-rates", *rates] if rates else []), *more]


def train(data, run, *more, **options):
    return clipFineTuner.main(flags(data, run, *more, **options))


@pytest.fixture
def steps(monkeypatch):
    """(peak rate, step, loss) of every training step that is done, in order."""
    return count_steps(monkeypatch)


def count_steps(monkeypatch):
    real_step, done = training_step.train_step, []

    def train_step(*arguments, step, **options):
        result = real_step(*arguments, step=step, **options)
        done.append((arguments[4].learning_rate, step, result.loss.item()))
        return result

    monkeypatch.setattr(training_step, "train_step", train_step)
    return done


def record(run):
    return json.loads((run / "pilots" / "rates.json").read_text())


def final(run):
    return clip.read_checkpoint(run / "final_checkpoint.pt")


def same_weights(one, other):
    return all(torch.equal(value, final(other)["state_dict"][name]) for name, value in final(one)["state_dict"].items())


@pytest.fixture(scope="module")
def dry_run(data, tmp_path_factory):
    """(folder, every step as `steps` has it, what was printed) of pilots that nothing disturbs."""
    run, told = tmp_path_factory.mktemp("undisturbed") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        done = count_steps(patch)
        assert train(data, run, "--dry-run") == 0
    return run, done, told.getvalue()


@pytest.fixture
def undisturbed(dry_run):
    """What the pilots come to if nothing happens: rates.json."""
    return record(dry_run[0])


def numbers(found):
    """The outcomes without the evaluations by product."""
    return {
        (rate, step): [outcome[name] for name in ("loss", "score", "gain", "trouble")]
        for rate, outcomes in found["outcomes"].items()
        for step, outcome in outcomes.items()
    }


# --------------------------------------------------------------------------------------------------- what is done


def test_the_training_with_the_best_rate_is_that_of_a_run_with_it(data, tmp_path, steps, capsys):
    run = tmp_path / "run"
    assert train(data, run) == 0
    told = capsys.readouterr().out
    chosen = record(run)["chosen"]
    assert f"the best rate is {chosen:g}" in told
    assert final(run)["settings"]["LEARNING_RATE"] == chosen
    assert len(steps) == PILOT_STEPS + 12  # no step was done twice
    train(data, tmp_path / "plain", rates=None, learning_rate=chosen)
    assert same_weights(run, tmp_path / "plain")
    for keys in (("step", "loss"), ("step", "mean_recall@10")):
        assert trainer.records(run, *keys) == trainer.records(tmp_path / "plain", *keys)
    ((logged, tried),) = trainer.records(run, "chosen_rate", "pilots")
    assert logged == chosen and len(tried) == 5 and {"rate", "step", "loss", "gain"} <= tried[0].keys()
    assert not list((run / "pilots").rglob("*.pt"))


def test_all_rates_train_the_same_batches_from_the_same_start_and_the_better_go_on(dry_run):
    run, steps, _ = dry_run
    first = {loss for _, step, loss in steps if step == 0}
    assert len(first) == 1
    done = {float(rate): [step for peak, step, _ in steps if peak == float(rate)] for rate in RATES}
    assert sorted(map(len, done.values())) == [6, 12, 12]
    assert all(numbers == list(range(len(numbers))) for numbers in done.values())
    first_round = {float(rate): Outcome(**found["6"]) for rate, found in record(run)["outcomes"].items()}
    assert {rate for rate in done if len(done[rate]) == 12} == set(halving.better_half(first_round))


def test_a_pilot_that_stays_is_a_run_of_its_length(data, tmp_path, undisturbed):
    """To the bit, although others were trained between its two rounds."""
    chosen = undisturbed["chosen"]
    train(data, tmp_path, rates=None, learning_rate=chosen, max_steps=12, log_interval=1)
    losses = dict(trainer.records(tmp_path, "step", "loss"))
    outcome = undisturbed["outcomes"][repr(chosen)]["12"]
    assert outcome["loss"] == pytest.approx(sum(losses[step] for step in (10, 11, 12)) / 3, abs=1e-12)
    scores = dict(trainer.records(tmp_path, "step", "mean_recall@10"))
    assert outcome["score"] == scores[12]
    assert outcome["gain"] == pytest.approx(scores[12] - scores[0])


def test_what_will_be_done_and_what_was_found_is_said_in_eighty_columns(dry_run):
    _, _, told = dry_run
    assert "pilots  3 x 6 + 2 x 6 = 30 steps of 8 samples, then 12 of the training" in told
    assert "criterion  best mean Recall@10 on the validation shards at the end of a round" in told
    assert "learning rate  the best of 0.001, 1e-05, 0.003 for adamw" in told
    table = told[told.index("round 2 of 2, 12 steps done, mean Recall@10 at the start 0.") :].splitlines()[1:4]
    assert table[0].split() == ["rate", "loss", "gain", "[95", "%]", "diverged"]
    assert sorted(line.split()[-1] for line in table[1:]) == ["best", "stops"]
    assert max(map(len, table)) <= 80


def test_a_dry_run_leaves_the_pilots_numbers_and_the_command_that_trains(dry_run, tmp_path, steps):
    run, done, told = dry_run
    assert sorted(path.name for path in run.iterdir()) == [".lock", "pilots"]
    command = shlex.split(told.splitlines()[-1])
    assert command[:2] == ["python", "clipFineTuner.py"] and not {"--dry-run", "--try-rates"} & set(command)
    assert (
        clipFineTuner.main([*command[2:], f"--checkpoint-dir={tmp_path}", "--eval-interval=none", "--max-steps=1"]) == 0
    )
    assert (final(tmp_path)["settings"]["LEARNING_RATE"], len(done)) == (record(run)["chosen"], PILOT_STEPS)


def test_an_earlier_run_stays_until_a_rate_is_chosen_and_finished_pilots_are_not_repeated(data, tmp_path, steps):
    common = {"rates": RATES[:2], "eval_interval": "none"}
    train(data, tmp_path, **{**common, "rates": None}, learning_rate=1e-3, max_steps=1)
    train(data, tmp_path, "--dry-run", **common, max_steps=2)
    assert final(tmp_path)["step"] == 1
    train(data, tmp_path, **common, max_steps=2)
    assert clip.read_checkpoint(tmp_path / "earlier_run_1" / "final_checkpoint.pt")["step"] == 1
    assert (final(tmp_path)["step"], len(steps)) == (2, 1 + 2 * 2 + 2)


def test_whatever_a_run_consists_of_its_pilots_are_of_too(data, tmp_path, steps):
    """An average, a fitted temperature and bias, a constant rate: and the run after them begins as if they had not been."""
    common = {"ema_decay": 0.5, "loss": "siglip", "lr_schedule": "constant", "max_steps": 6, "eval_interval": 3}
    train(data, tmp_path / "run", **common)
    train(data, tmp_path / "plain", rates=None, learning_rate=record(tmp_path / "run")["chosen"], **common)
    assert same_weights(tmp_path / "run", tmp_path / "plain")
    assert len(steps) == 5 * 3 + 6 + 6
    assert len({loss for _, step, loss in steps if step == 0}) == 1


@pytest.mark.parametrize("keep", ["gain", "both"])
def test_what_each_rate_forgets_is_told_and_counts_if_both_are_kept(data, tmp_path, make_shards, capsys, keep):
    knobs = {"retention_dataset_pattern": make_shards(tmp_path / "old", products=20, views=2, first_product=300)}
    train(data, tmp_path / "run", "--dry-run", rates=RATES[:2], max_steps=2, keep=keep, **knobs)
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line.startswith((" rate", "1e-05", "0.001"))]
    assert rows[0] == ["rate", "loss", "gain", "[95", "%]", "retention", "diverged"]
    assert ("mean Recall@10 on the validation and the retention shards at the end" in told) == (keep == "both")
    found = record(tmp_path / "run")
    evaluations = trainer.records(
        tmp_path / "run" / "pilots" / "0.001", "step", "mean_recall@10", "retention/mean_recall@10"
    )
    (_, gain, retention) = evaluations[-1]
    outcome = found["outcomes"]["0.001"]["2"]
    assert outcome["retention"] == pytest.approx(retention - found["start"]["retention"])
    assert outcome["score"] == pytest.approx((gain + retention) / 2 if keep == "both" else gain)


def test_without_validation_shards_the_loss_decides(data, tmp_path, capsys):
    train(data, tmp_path, "--dry-run", eval_interval="none")
    told = capsys.readouterr()
    assert "no validation shards, so the rates are compared by the loss" in told.err
    assert "criterion  lowest loss of the second half of a round" in told.out and "gain" not in told.out
    outcomes = record(tmp_path)["outcomes"]
    last = {float(rate): found["12"]["loss"] for rate, found in outcomes.items() if "12" in found}
    assert record(tmp_path)["chosen"] == min(last, key=last.get)


# ------------------------------------------------------------------------------------------------------ divergence


def test_a_rate_whose_loss_is_not_finite_ends_and_the_others_go_on(data, tmp_path, monkeypatch, capsys):
    real_step = training_step.train_step

    def train_step(*arguments, step, **options):
        done = real_step(*arguments, step=step, **options)
        return done._replace(updated=False) if arguments[4].learning_rate == 3e-3 else done

    monkeypatch.setattr(training_step, "train_step", train_step)
    knobs = {"max_steps": 60, "rates": RATES[1:]}  # 20 steps a round: ten in a row are enough
    assert train(data, tmp_path, "--dry-run", **knobs) == 0
    told = capsys.readouterr()
    assert "WARNING: the pilot of 0.003 ends here: the loss or its gradient was not finite in steps 1 to 10" in told.err
    assert [line.split()[-3:] for line in told.out.splitlines() if line.split()[:1] == ["0.003"]] == [
        ["not", "finite", "stops"]
    ]
    assert record(tmp_path)["chosen"] == 1e-5


def test_rates_that_all_diverge_end_in_one_line(data, tmp_path, monkeypatch):
    real_step = training_step.train_step
    monkeypatch.setattr(training_step, "train_step", lambda *a, **o: real_step(*a, **o)._replace(updated=False))
    with pytest.raises(
        ValueError, match="with none of the rates the loss stays finite: try lower ones, such as --try-rates 1e-07"
    ):
        train(data, tmp_path, max_steps=60, rates=RATES[:2], eval_interval="none")
    assert not (tmp_path / "metrics.jsonl").exists()


# --------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(("number", "more"), [(1, []), (6, ["--resume"]), (21, [])])
def test_pilots_that_a_signal_ended_go_on_and_no_step_is_done_twice(
    data, tmp_path, monkeypatch, steps, capsys, undisturbed, number, more
):
    """Within a pilot, after its last step, in the second round; the last line is the command."""
    counted = training_step.train_step

    def train_step(*arguments, **options):
        done = counted(*arguments, **options)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(training_step, "train_step", train_step)
    assert train(data, tmp_path, "--dry-run") == 143
    *_, said, command = capsys.readouterr().out.splitlines()
    assert said == "stopped by SIGTERM while rates are tried; the same command goes on:"
    assert clipFineTuner.main(shlex.split(command)[2:] + more) == 0
    assert len(steps) == PILOT_STEPS
    assert numbers(record(tmp_path)) == numbers(undisturbed)


def test_pilots_that_were_killed_go_on(data, tmp_path, undisturbed, capsys):
    """SIGKILL: the pilot under way begins its round again, those before it are done."""
    process = trainer.start(data, tmp_path, "--try-rates", *RATES, "--dry-run", learning_rate=None, optimizer="adamw", checkpoint_interval=100)  # fmt: skip
    second = tmp_path / "pilots" / "1e-05" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while process.is_alive() and not second.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert train(data, tmp_path, "--dry-run") == 0
    assert "pilot of 0.001: steps 1 to 6" not in capsys.readouterr().out
    assert numbers(record(tmp_path)) == numbers(undisturbed)
    assert not list((tmp_path / "pilots").rglob("*.p*t*al"))


def test_an_evaluation_that_was_not_noted_is_made_once_more_and_its_steps_are_not(
    data, tmp_path, steps, monkeypatch, undisturbed
):
    """As after a kill between a pilot's state and the record of it."""

    class Killed(BaseException):
        pass

    real_write = pilot_record.Record.write

    def write(found, path):
        if len(steps) == 6:
            raise Killed
        real_write(found, path)

    monkeypatch.setattr(pilot_record.Record, "write", write)
    with pytest.raises(Killed):
        train(data, tmp_path, "--dry-run")
    monkeypatch.setattr(pilot_record.Record, "write", real_write)
    train(data, tmp_path, "--dry-run")
    assert len(steps) == PILOT_STEPS
    assert numbers(record(tmp_path)) == numbers(undisturbed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay": 0.2, "seed": 7}, ["WEIGHT_DECAY=0.1, not 0.2", "SEED=42, not 7", "another start"]),
        ({"rates": RATES[:2]}, ["rates=[0.001, 1e-05, 0.003], not [0.001, 1e-05]", "steps of a round=6, not 12"]),
        ({"train_dataset_pattern": "other"}, ["other training data"]),
        ({"eval_interval": "none"}, ["validation samples=80, not 0"]),
    ],
)
def test_pilots_of_another_configuration_are_moved_away_and_said(
    data, tmp_path, make_shards, monkeypatch, capsys, undisturbed, changes, words
):
    (tmp_path / "pilots").mkdir()
    (tmp_path / "pilots" / "rates.json").write_text(json.dumps(undisturbed))
    if "train_dataset_pattern" in changes:
        changes = {"train_dataset_pattern": make_shards(tmp_path / "other", products=24, views=2, first_product=50)}
    monkeypatch.setattr(pilots.Pilots, "left", lambda _: iter(()))
    monkeypatch.setattr(pilots.Pilots, "best", lambda _: 1e-5)
    train(data, tmp_path, "--dry-run", **changes)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "held other pilots" in line]
    assert all(word in line for word in words)
    assert json.loads((tmp_path / "earlier_pilots_1" / "rates.json").read_text()) == undisturbed
    assert record(tmp_path)["outcomes"] == {}


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"of": {}}', b'{"of": {"rates": 1}, "outcomes": {"1": {"2": {"x": 3}}}}']
)
def test_a_damaged_record_is_moved_away(data, tmp_path, capsys, content):
    (tmp_path / "pilots").mkdir()
    (tmp_path / "pilots" / "rates.json").write_bytes(content)
    train(data, tmp_path, "--dry-run", rates=RATES[:2], max_steps=1)
    assert "held other pilots, without a rates.json that can be read" in capsys.readouterr().out


def test_a_run_that_has_begun_goes_on_only_if_these_rates_were_tried_for_it(data, tmp_path, steps, capsys):
    changes = {"max_steps": 2, "lr_schedule": "constant", "rates": RATES[:2]}
    train(data, tmp_path, **changes)
    before = len(steps)
    with pytest.raises(
        ValueError, match="of a run that has begun, with LEARNING_RATE=.*--resume alone goes on with it"
    ):
        train(data, tmp_path, "--resume", **{**changes, "rates": RATES})
    assert train(data, tmp_path, "--resume", **{**changes, "max_steps": 4}) == 0
    assert "the rates were tried before this run" in capsys.readouterr().out
    assert (final(tmp_path)["step"], len(steps)) == (4, before + 2)


@pytest.mark.parametrize(
    "more",
    [
        ["--try-rates", "1e-5"],
        ["--try-rates", "1e-5", "ten"],
        ["--try-rates", "1e-5,1e-4"],
        ["--try-rates", "1e-5", "-1e-5"],
        ["--try-rates", "1e-5", "1e-4", "--learning-rate=1e-5"],
        ["--try-rates"],
        ["--dry-run"],
    ],
)
def test_bad_rates_are_refused_on_the_command_line(data, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as end:
        train(data, tmp_path / "run", *more, rates=None)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_two_processes_try_the_same_rates_and_choose_the_same(data, tmp_path, undisturbed):
    run = tmp_path / "run"
    run.mkdir()
    consoles = [run / f"{r}.txt" for r in range(2)]
    codes = trainer.train_on_two_ranks([flags(data, run, "--dry-run")] * 2, consoles)
    assert codes == [0, 0], [path.read_text() for path in consoles]
    assert record(run)["chosen"] is not None
    first_round = [key for key in numbers(undisturbed) if key[1] == "6"]
    assert len(first_round) == 3
    for key in first_round:
        assert numbers(record(run))[key][0] == pytest.approx(numbers(undisturbed)[key][0], abs=1e-3)
    assert consoles[0].read_text().count("round 2 of 2") == 1 and "round" not in consoles[1].read_text()


# ------------------------------------------------------------------------------- weights that were trained before


@pytest.mark.parametrize("changes", [{"tune": "lora", "lora_rank": 2, "ema_decay": 0.9}, {"tune": "image"}])
def test_pilots_are_held_to_the_start_that_the_training_after_them_has(
    data, tmp_path, monkeypatch, steps, capsys, changes
):
    """Stopped in a pilot and in the training: nothing is done twice, and it is the run with that rate, to the bit."""
    clip_model = clip.create_model(str(data / "tiny-test.json"))
    torch.nn.init.constant_(clip_model.model.ln_final.bias, 0.1)
    clip.save_checkpoint(tmp_path / "trained.pt", clip_model)
    common = {"model_pretrained": tmp_path / "trained.pt", "eval_interval": "none", "max_steps": 4, **changes}
    counted, run = training_step.train_step, tmp_path / "run"

    def train_step(*arguments, **options):
        done = counted(*arguments, **options)
        if len(steps) in (7, 12):  # in the second round, and in the training
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(training_step, "train_step", train_step)
    assert train(data, run, "--dry-run", **common) == 143
    assert train(data, run, "--dry-run", **common) == 0
    assert sorted(path.name for path in run.iterdir()) == [".lock", "pilots"]
    assert "average of the weights is taken" not in capsys.readouterr().out  # a state of ours is not searched
    assert train(data, run, **common) == 143
    assert train(data, run, "--resume", rates=None, **common) == 0
    assert len(steps) == 5 * 2 + 4 and len({loss for _, step, loss in steps if step == 0}) == 1
    assert {"start.pt", "final_checkpoint.pt"} < {path.name for path in run.iterdir()}
    assert not list(run.glob("earlier_run_*"))
    train(data, tmp_path / "plain", rates=None, learning_rate=record(run)["chosen"], **common)
    assert same_weights(run, tmp_path / "plain")
    for name, value in final(tmp_path / "plain")["raw_state_dict"].items():
        assert torch.equal(final(run)["raw_state_dict"][name], value), name
    assert final(run)["start"] == final(tmp_path / "plain")["start"]
