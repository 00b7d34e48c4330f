"""The folder of a run: the newest checkpoint that can be read, bounded numbers, lines that a resumed run repeats."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch

import openClipManagement as clip
from clip_finetuning.training import run_folder
from clip_finetuning.training.run_folder import CheckpointFolder
from tests.helpers import write_config


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


def test_the_checkpoint_just_written_is_never_the_one_to_go(tmp_path, model):
    """A damaged one of a later step may be in the folder, and it is older than what a resumed run writes."""
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(folder.periodic(3), model, step=3)
    (tmp_path / "checkpoint_00000009.pt").write_bytes(b"cut")
    for step in (5, 7):
        folder.save(folder.periodic(step), model, step=step)
        assert sorted(path.name for path in tmp_path.glob("*.pt")) == [f"checkpoint_0000000{step}.pt"]


def highest_memory(function):
    """Bytes by which the memory of this process rose at most during a call."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before


def memory(name):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ask", ["newest", "step_of", "set_aside_after"])
def test_a_step_is_learned_without_reading_the_weights(tmp_path, model, ask):
    folder = CheckpointFolder(tmp_path)
    for name in ("final_checkpoint.pt", "checkpoint_00000004.pt"):
        folder.save(tmp_path / name, model, step=4, optimizer={"state": {0: {"exp_avg": torch.zeros(16 * 2**20)}}})
    calls = {
        "newest": folder.newest,
        "step_of": lambda: folder.step_of(tmp_path / "final_checkpoint.pt"),
        "set_aside_after": lambda: folder.set_aside_after(4),
    }
    calls[ask]()
    assert highest_memory(calls[ask]) < 16 * 2**20  # the file has four times as much


def test_a_copy_under_a_name_of_the_users_is_neither_read_nor_deleted(tmp_path, model):
    folder = CheckpointFolder(tmp_path, keep=1)
    for step in (4, 8):
        folder.save(folder.periodic(step), model, step=step)
        if step == 4:
            (tmp_path / "checkpoint_best_of_april.pt").write_bytes(folder.periodic(4).read_bytes())
    assert folder.newest()[1]["step"] == 8
    folder.set_aside()
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_best_of_april.pt"]


def test_what_killed_writers_left_is_deleted_once_the_folder_is_ones_own(tmp_path):
    left = tmp_path / ".checkpoint_00000004.pt.123.partial"
    left.write_bytes(b"half")
    folder = CheckpointFolder(tmp_path)
    assert left.exists()
    with folder.lock():
        assert not left.exists()


def test_a_folder_that_cannot_be_locked_may_be_anothers_so_nothing_in_it_is_touched(tmp_path, monkeypatch, capsys):
    def fail(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder, "_lock_file", fail)
    left = tmp_path / ".checkpoint_00000004.pt.123.partial"
    left.write_bytes(b"half")
    with CheckpointFolder(tmp_path).lock():
        assert left.exists()
    assert "cannot be locked" in capsys.readouterr().err


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="CHECKPOINT_DIR=.*run is a file"):
        CheckpointFolder(tmp_path / "run")


@pytest.mark.skipif(os.name != "posix", reason="limits of the size of files")
def test_a_disk_that_is_really_full_is_a_warning(tmp_path, model, capsys):
    import resource

    folder = CheckpointFolder(tmp_path)
    assert folder.save(folder.periodic(1), model, step=1)
    size = folder.periodic(1).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        assert not folder.save(folder.periodic(2), model, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "checkpoint_00000002.pt could not be written (File too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000001.pt"]
    assert folder.newest()[1]["step"] == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOTCONN])
def test_a_full_disk_is_a_warning(tmp_path, model, monkeypatch, capsys, number):
    def fail(*_, **__):
        raise OSError(number, "no room")

    monkeypatch.setattr(run_folder, "save_checkpoint", fail)
    if number == errno.ENOTCONN:  # nothing at all can be asked of a network folder that is gone
        monkeypatch.setattr(run_folder.shutil, "disk_usage", fail)
    folder = CheckpointFolder(tmp_path)
    assert not folder.save(folder.periodic(1), model, step=1)
    assert "no room" in capsys.readouterr().err


def test_room_is_made_for_a_needed_checkpoint_by_all_but_the_newest_that_is_whole(tmp_path, model, monkeypatch):
    folder, real_save, calls = CheckpointFolder(tmp_path), run_folder.save_checkpoint, []
    for step in (2, 4):
        folder.save(folder.periodic(step), model, step=step)
    folder.periodic(8).write_bytes(b"cut")

    def fail_once(*arguments, **fields):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "no room")
        real_save(*arguments, **fields)

    monkeypatch.setattr(run_folder, "save_checkpoint", fail_once)
    assert folder.save(folder.periodic(6), model, needed=True, step=6)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint_00000004.pt", "checkpoint_00000006.pt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_needed_checkpoint_that_cannot_be_written_is_an_error_and_only_a_full_disk_is_cleared(
    tmp_path, model, monkeypatch, number
):
    folder = CheckpointFolder(tmp_path)
    for step in (2, 4):
        folder.save(folder.periodic(step), model, step=step)

    def fail(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(run_folder, "save_checkpoint", fail)
    with pytest.raises(OSError, match="checkpoint_00000006.pt could not be written .*then --resume"):
        folder.save(folder.periodic(6), model, needed=True, step=6)
    assert len(list(tmp_path.glob("*.pt"))) == (1 if number == errno.ENOSPC else 2)


def test_another_error_is_raised(tmp_path, model, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(run_folder, "save_checkpoint", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        CheckpointFolder(tmp_path).save(tmp_path / "a.pt", model, step=1)


def test_lines_behind_a_step_are_forgotten_and_a_cut_line_too(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step})
    folder.log({"step": 2, "mean_recall@10": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(2, evaluated_step=2)
    assert [record["step"] for record in folder.records()] == [1, 2, 2]
    folder.forget_after(2, evaluated_step=1)
    assert folder.records() == [{"step": 1}, {"step": 2}]


def test_an_earlier_run_is_set_aside_whole(tmp_path, model):
    folder = CheckpointFolder(tmp_path)
    folder.set_aside()
    assert not list(tmp_path.glob("earlier_run_*"))
    for _ in range(2):
        folder.save(folder.path / "final_checkpoint.pt", model, step=1)
        folder.log({"step": 1})
        folder.set_aside()
    assert {path.name for path in (tmp_path / "earlier_run_2").iterdir()} == {"final_checkpoint.pt", "metrics.jsonl"}


def test_the_start_goes_with_its_run_and_alone_stays(tmp_path, model):
    """Alone it is that of a run which ended before its first checkpoint."""
    folder = CheckpointFolder(tmp_path)
    folder.save(folder.path / "start.pt", model)
    folder.set_aside()
    assert not list(tmp_path.glob("earlier_run_*"))
    folder.save(folder.path / "final_checkpoint.pt", model, step=1)
    folder.set_aside()
    assert {path.name for path in (tmp_path / "earlier_run_1").iterdir()} == {"final_checkpoint.pt", "start.pt"}
