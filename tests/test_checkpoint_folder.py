"""The folder of a run: the newest checkpoint that can be read, bounded numbers, lines that a resumed run repeats."""

import errno
import json

import pytest
import torch

import checkpoint_folder
import openClipManagement as clip
from checkpoint_folder import CheckpointFolder
from tiny_models import write_config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return clip.create_model(write_config(tmp_path_factory.mktemp("m")), "", None, torch.device("cpu"))


def test_only_the_newest_periodic_checkpoints_are_kept(tmp_path, model):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10, 100_000_000):
        assert folder.save(folder.periodic(step), model, step=step)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint_00000010.pt", "checkpoint_100000000.pt"]
    assert folder.newest()[1]["step"] == 100_000_000


def test_the_furthest_step_wins_and_damage_is_passed_over(tmp_path, model, capsys):
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    for name, step in (("checkpoint_00000004.pt", 4), ("checkpoint_00000008.pt", 8), ("final_checkpoint.pt", 6)):
        folder.save(tmp_path / name, model, step=step)
    assert folder.newest()[1]["step"] == 8
    (tmp_path / "checkpoint_00000008.pt").write_bytes(b"cut")
    assert folder.newest()[1]["step"] == 6
    assert "checkpoint_00000008.pt is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_warning(tmp_path, model, monkeypatch, capsys, number):
    def fail(*_, **__):
        raise OSError(number, "no room")

    monkeypatch.setattr(checkpoint_folder, "save_checkpoint", fail)
    folder = CheckpointFolder(tmp_path)
    assert not folder.save(folder.periodic(1), model, step=1)
    assert "no room" in capsys.readouterr().err


def test_another_error_is_raised(tmp_path, model, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EACCES, "not allowed")

    monkeypatch.setattr(checkpoint_folder, "save_checkpoint", fail)
    with pytest.raises(OSError, match="not allowed"):
        CheckpointFolder(tmp_path).save(tmp_path / "a.pt", model, step=1)


def test_lines_behind_a_step_are_forgotten_and_a_cut_line_too(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_an_earlier_run_is_set_aside_whole(tmp_path, model):
    folder = CheckpointFolder(tmp_path)
    folder.set_aside()
    assert not list(tmp_path.glob("earlier_run_*"))
    for _ in range(2):
        folder.save(folder.path / "final_checkpoint.pt", model, step=1)
        folder.log({"step": 1})
        folder.set_aside()
    assert {path.name for path in (tmp_path / "earlier_run_2").iterdir()} == {"final_checkpoint.pt", "metrics.jsonl"}
