"""A folder is there whole or not at all."""

import errno
import os
import sys

import pytest

from clip_finetuning.export.folder import check_free, whole_folder
from tests.helpers import contents


def test_nothing_is_seen_before_the_end_and_all_of_it_afterwards(tmp_path):
    with whole_folder(tmp_path / "new" / "out") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("text")
        assert not (tmp_path / "new" / "out").exists()
    assert contents(tmp_path) == {"new/out/part/file": b"text"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
    assert contents(tmp_path) == {"out/file": b"text"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("wrong"), OSError(errno.EACCES, "denied")])
def test_after_any_error_nothing_is_left_and_the_error_is_the_same(error, tmp_path):
    with pytest.raises(type(error)) as caught, whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
        raise error
    assert caught.value is error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (Exception("Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (RuntimeError("enforce fail: file too large"), errno.EFBIG),
    ],
)
def test_a_full_disk_is_one_error_whichever_library_met_it(error, code, tmp_path):
    with pytest.raises(OSError, match="nothing is left of .*out; make room") as caught, whole_folder(tmp_path / "out"):
        raise error
    assert caught.value.errno == code and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "full folder", "dead link"])
def test_what_is_there_stays(kind, tmp_path):
    path = tmp_path / "out"
    if kind == "file":
        path.write_text("mine")
    elif kind == "full folder":
        path.mkdir()
        (path / "mine").touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already and is left as it is"):
        check_free(path)
    with pytest.raises(FileExistsError), whole_folder(path):
        pass
    assert os.path.lexists(path) and len(list(tmp_path.iterdir())) == 1


def test_what_another_put_there_meanwhile_stays(tmp_path):
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("another's")
    assert contents(tmp_path) == {"out/file": b"another's"}


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_what_a_killed_export_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    dead = tmp_path / ".out.00112233.partial"
    others = [tmp_path / ".other.00112233.partial", tmp_path / ".out.partial"]
    for path in (dead, *others):
        path.mkdir()
        (path / "file").touch()
    with whole_folder(tmp_path / "out") as first:
        assert not dead.exists() and all(path.exists() for path in others)
        with whole_folder(tmp_path / "out") as second:
            assert first.exists() and first != second
