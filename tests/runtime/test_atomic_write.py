"""Files appear whole or not at all."""

import multiprocessing
import os
import time
from datetime import datetime, timedelta, timezone

import pytest

from clip_finetuning.runtime.atomic_write import atomic_write, remove_leftovers
from clip_finetuning.shards.storage import open_folder


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new folder" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_no_pattern_matches_the_temporary_name(tmp_path):
    with atomic_write(tmp_path / "train.000000.tar") as temporary:
        temporary.write_bytes(b"")
        assert not list(tmp_path.glob("*.tar"))


def test_writers_with_one_process_id_on_two_machines_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "file.txt"
    with atomic_write(path) as one, atomic_write(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last to be finished
    assert os.listdir(tmp_path) == ["file.txt"]


def _write_slowly(path, go_on):
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        (path.parent / "has begun").touch()
        go_on.wait(30)


@pytest.mark.skipif(os.name == "nt", reason="there an open file cannot be deleted anyway")
def test_what_another_process_is_writing_is_no_leftover(tmp_path):
    """A second run begins, and cleans up, between the writing of a temporary file and its renaming."""
    context = multiprocessing.get_context("fork")
    go_on = context.Event()
    writer = context.Process(target=_write_slowly, args=(tmp_path / "file.txt", go_on))
    writer.start()
    while not (tmp_path / "has begun").exists():
        time.sleep(0.01)
    remove_leftovers(tmp_path)
    go_on.set()
    writer.join()
    assert (tmp_path / "file.txt").read_text() == "whole"


@pytest.mark.skipif(os.name == "nt", reason="there an open file cannot be deleted anyway")
def test_a_leftover_is_deleted_once_its_writer_was_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_write_slowly, args=(tmp_path / "a.0.tar", context.Event()))
    writer.start()
    while not (tmp_path / "has begun").exists():
        time.sleep(0.01)
    writer.kill()
    writer.join()
    (tmp_path / ".a.1.tar.77.partial").touch()  # as earlier versions named them
    (tmp_path / ".b.partial").touch()  # not one of ours
    assert len(os.listdir(tmp_path)) == 4
    remove_leftovers(tmp_path, ["a", "a.0", "a.0.ta"])
    assert len(os.listdir(tmp_path)) == 4
    remove_leftovers(tmp_path, ["a.0.tar"])
    assert sorted(os.listdir(tmp_path)) == [".a.1.tar.77.partial", ".b.partial", "has begun"]
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".b.partial", "has begun"]


# ----------------------------------------------------------------------------------------------- behind a URL


@pytest.fixture
def remote(tmp_path):
    return open_folder(f"memory://{tmp_path.name}/shards")


def put(folder, name, text):
    with folder.write(name) as temporary:
        temporary.write_text(text)


def test_two_machines_may_send_the_same_file(remote, monkeypatch):
    move = remote.files.mv

    def other_is_faster(*paths):
        monkeypatch.undo()
        put(remote, "sizes.json", "other")
        assert remote.read_text("sizes.json") == "other"
        move(*paths)

    monkeypatch.setattr(remote.files, "mv", other_is_faster)
    put(remote, "sizes.json", "one")
    assert remote.read_text("sizes.json") == "one" and remote.names() == ["sizes.json"]


def test_a_file_that_cannot_be_renamed_leaves_nothing(remote, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(remote.files, "mv", refuse)
    with pytest.raises(OSError, match=r"cannot write a\.tar to memory:.*: no"):
        put(remote, "a.tar", "x")
    assert remote.names() == []


def test_only_what_was_left_long_ago_is_cleaned_away(remote, monkeypatch):
    now = datetime.now(timezone.utc)
    ages = {".a.tar.00ff.partial": 2, ".b.tar.00ff.partial": 2, ".a.tar.00fe.partial": 0, "a.tar": 2}
    for name in ages:
        remote.files.pipe(remote._at(name), b"half")
    times = {remote._at(name): now - timedelta(days=days) for name, days in ages.items()}
    monkeypatch.setattr(remote.files, "modified", lambda path: times[path])
    remote.clean(["a.tar", ".records/a.json"])
    assert remote.names() == [".a.tar.00fe.partial", ".b.tar.00ff.partial", "a.tar"]
