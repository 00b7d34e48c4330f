"""Files appear whole or not at all."""

import os

import pytest

from clip_finetuning.runtime.atomic_write import atomic_write


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
