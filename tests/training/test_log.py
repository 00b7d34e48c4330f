"""The clock and metrics.jsonl."""

import json
import math

import pytest

from clip_finetuning.training import log as training_log
from clip_finetuning.training.run_folder import CheckpointFolder
from clip_finetuning.training.state import Progress

SPEED = {"samples_per_second": 99.0, "data_wait": 0.25}


def test_the_clock_tells_waiting_from_work(monkeypatch):
    times = iter([0.0, 1.0, 4.0, 100.0, 101.0, 104.0])
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: next(times))
    clock = training_log.Clock()
    clock.data_arrived()  # after 1 s of waiting
    clock.step_done(32)  # after 3 s of work
    clock.restart()  # an evaluation of 96 s does not count
    clock.data_arrived()
    clock.step_done(32)
    lap = clock.lap()
    assert lap["samples_per_second"] == pytest.approx(64 / 8)
    assert lap["data_wait"] == pytest.approx(2 / 8)


def test_every_number_goes_to_the_file(tmp_path, capsys):
    recorder = training_log.Recorder(CheckpointFolder(tmp_path))
    record = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.5, "logit_scale": 14.3}
    recorder.log_training(record, SPEED, Progress(step=10), 20)
    recalls = {"recall@10": {"text_to_image": 0.5, "image_to_text": 0.7}}
    recorder.log_evaluation(recalls, 0.6, Progress(step=10))
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 10, "epoch": 0, "skipped_steps": 0} | SPEED | record
    assert second["mean_recall@10"] == 0.6 and second["recall@10/image_to_text"] == 0.7
    assert recorder.last["loss"] == 1.5 and recorder.last["mean_recall@10"] == 0.6
    assert "step 10/20  loss 1.5000" in capsys.readouterr().out


def test_lines_show_epoch_time_left_and_the_best_evaluation_in_80_columns(tmp_path, capsys):
    recorder = training_log.Recorder(None)
    record = {"loss": 10.4321, "learning_rate": 9.98e-6, "grad_norm": 0.5, "logit_scale": 100.0}
    progress = Progress(step=12300, epoch=2, first_score=0.3, best_score=0.4321)
    speed = {"samples_per_second": 4120.3, "data_wait": 0.03}
    recorder.log_training(record, speed, progress, 61050, epochs=5, seconds_left=3723.4)
    recalls = {"recall@10": {"text_to_image": 0.4, "image_to_text": 0.4}}
    recorder.log_evaluation(recalls, 0.4, progress)
    recorder.log_evaluation(recalls, 0.3, Progress(first_score=0.3))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  epoch 3/5  4120 samples/s  data wait 3%  1:02:03 left  best Recall@10 0.4321"
    assert lines[3] == "  mean 0.4000  best 0.4321  before training 0.3000"
    assert lines[5] == "  mean 0.3000"
    assert max(map(len, lines)) <= 80


def test_the_time_left_goes_by_all_steps_evaluations_included(monkeypatch):
    times = iter([0.0, 1.0, 4.0, 100.0, 101.0, 104.0])
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: next(times))
    clock = training_log.Clock()
    for pause in (True, False):
        clock.data_arrived()
        clock.step_done(32)
        if pause:
            clock.restart()
    clock.lap()
    assert clock.seconds_left(10) == 10 * 104 / 2


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    """NaN is no JSON: strict readers would refuse the whole line."""
    folder = CheckpointFolder(tmp_path)
    recorder = training_log.Recorder(folder)
    for step, loss in enumerate([1.0, math.nan, math.inf]):
        recorder.log_training({"loss": loss, "learning_rate": 1e-3, "logit_scale": 14.3}, SPEED, Progress(step=step), 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["loss"] for line in lines] == [1.0, None, None]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = training_log.Recorder(None)
    recorder.log_evaluation({"recall@10": {"text_to_image": 0.5, "image_to_text": 0.7}}, 0.6, Progress())
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    recorder = training_log.Recorder(CheckpointFolder(tmp_path), tensorboard=True)
    recorder.log_evaluation({"recall@10": {"text_to_image": 0.5, "image_to_text": 0.7}}, 0.6, Progress(step=3))
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_an_evaluation_is_logged_with_its_intervals_and_chance(tmp_path):
    recorder = training_log.Recorder(CheckpointFolder(tmp_path))
    recalls = {"recall@10": {"text_to_image": 0.5, "image_to_text": 0.7}}
    sure = {"intervals": {"recall@10": [0.4, 0.8]}, "chance": {"recall@10": 0.02}}
    protocols = {"product": {"text_to_image": sure, "image_to_text": sure}}
    recorder.log_evaluation(recalls | {"protocols": protocols}, 0.6, Progress(step=10))
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    for way in ("text_to_image", "image_to_text"):
        assert [line[f"recall@10/{way}/{end}"] for end in ("low", "high", "chance")] == [0.4, 0.8, 0.02]


def test_the_first_line_after_a_resume_says_from_where(tmp_path):
    recorder = training_log.Recorder(CheckpointFolder(tmp_path))
    recorder.go_on(40, {"loss": 1.0})
    for step in (45, 50):
        recorder.log_training({"loss": 1.0, "learning_rate": 1e-3, "logit_scale": 14.3}, SPEED, Progress(step=step), 60)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("resumed_from") for line in lines] == [40, None]
    assert "resumed_from" not in recorder.last
