"""The tar files of tar_writer are those of tarfile."""

import hashlib
import io
import tarfile

import pytest

import tar_writer


def written(files):
    stream = io.BytesIO()
    tar = tar_writer.TarWriter(stream)
    for name, data in files.items():
        tar.add({name: data})
    tar.close()
    assert (tar.size, tar.sha256) == (len(stream.getvalue()), hashlib.sha256(stream.getvalue()).hexdigest())
    return stream.getvalue()


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


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="100 letters"):
        tar_writer.member("n" * 101, b"")
