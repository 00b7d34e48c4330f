"""The tar files of tar_writer are those of tarfile."""

import hashlib
import io
import tarfile
import tempfile
from pathlib import Path

import pytest

from clip_finetuning.shards import tar_writer


def written(files):
    with tempfile.NamedTemporaryFile() as stream:
        with tar_writer.TarWriter(stream) as tar:
            for name, data in files.items():
                tar.add({name: data})
        content = Path(stream.name).read_bytes()
    assert (tar.size, tar.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return content


@pytest.mark.parametrize("lengths", [[], [0], [1, 511, 512, 513], [9216 - 512], [10240], [8192, 8193, 20_000]])
def test_tarfile_reads_what_was_written(lengths):
    files = {f"{number:09d}.jpg": bytes([number]) * length for number, length in enumerate(lengths)}
    data = written(files)
    assert len(data) % 10_240 == 0 and data.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == files
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode, member.isreg()) == (0, 0, 0, 0o644, True)


def test_the_size_is_that_of_tarfile():
    for length in range(0, 25_000, 512):
        theirs = io.BytesIO()
        with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            member = tarfile.TarInfo("a.jpg")
            member.size = length
            tar.addfile(member, io.BytesIO(bytes(length)))
        assert len(written({"a.jpg": bytes(length)})) == len(theirs.getvalue())


def test_what_goes_wrong_while_writing_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_writer, "AT_ONCE", 1000)
    (tmp_path / "closed.tar").touch()
    with open(tmp_path / "closed.tar", "rb") as stream, pytest.raises(OSError), tar_writer.TarWriter(stream) as tar:
        for number in range(3):
            tar.add({f"{number}.jpg": bytes(2000)})


def test_many_blocks_are_one_file(monkeypatch):
    files = {f"{number:09d}.jpg": bytes([number]) * 700 for number in range(50)}
    whole = written(files)
    monkeypatch.setattr(tar_writer, "AT_ONCE", 1000)
    assert written(files) == whole


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="100 letters"):
        tar_writer.header("n" * 101, 0)
    with pytest.raises(ValueError, match="8 GiB"):
        tar_writer.header("a.jpg", 8 * 2**30)
