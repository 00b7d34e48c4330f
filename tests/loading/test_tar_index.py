"""The index: the same samples as webdataset sees, whoever wrote the tar, and broken tars named and counted."""

import errno
import io
import json
import os
import pickle
import tarfile

import pytest
import webdataset as wds

from clip_finetuning.loading.sample import NO_CAPTION, NO_PICTURE, parse_sample
from clip_finetuning.loading.sizes import expected_sizes
from clip_finetuning.loading.tar_contents import CUT, FEWER
from clip_finetuning.loading.tar_format import DAMAGED, TRUNCATED
from clip_finetuning.loading.tar_index import CHANGED, TarIndex
from tests.helpers import add_file, catalogue_sample, encoded_picture, write_shard


def members_of(path):
    with tarfile.open(path) as tar:
        return tar.getmembers()


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_same_samples_as_webdataset(tmp_path, tar_format):
    path = tmp_path / "a.tar"
    long_folder = "/".join(["folder of a rather long name"] * 4)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for number in range(5):
            for name, data in catalogue_sample(number, number // 2).items():
                add_file(tar, f"{long_folder}/{name}", data)
    index = TarIndex([str(path)])
    samples = list(wds.WebDataset(str(path), shardshuffle=False))
    assert len(index) == len(samples) == 5
    for i, sample in enumerate(samples):
        raw = index.read(i)
        assert {key: raw[key] for key in ("__key__", "jpg", "txt", "json")} == {
            key: sample[key] for key in ("__key__", "jpg", "txt", "json")
        }
    assert index.products[0] == index.products[1] != index.products[2]


def test_names_beyond_ascii_and_100_characters(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in catalogue_sample(0, 0).items():
            add_file(tar, f"Größe/{'x' * 300}/ü{name}", data)
    assert TarIndex([str(tmp_path / "a.tar")]).read(0)["__key__"] == f"Größe/{'x' * 300}/ü000000000"


def test_hostile_names_are_labels_and_folders_links_and_strangers_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add_file(tar, "._000.jpg", b"macOS")
        for key in ("/etc/passwd", "../../climbing", "images/../up"):
            add_file(tar, f"{key}.jpg", encoded_picture(0))
            add_file(tar, f"{key}.txt", b"a caption")
    index = TarIndex([str(tmp_path / "a.tar")])
    assert [index.read(i)["__key__"] for i in range(len(index))] == ["/etc/passwd", "../../climbing", "images/../up"]
    assert index.skipped == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", ".index"}  # nothing was extracted


def test_a_key_that_comes_twice_is_two_samples(tmp_path):
    first, second = catalogue_sample(7, 0), catalogue_sample(7, 1)
    write_shard(tmp_path / "a.tar", [first, second])
    index = TarIndex([str(tmp_path / "a.tar")])
    assert [index.read(i)["txt"] for i in range(2)] == [b"Caption of product 0", b"Caption of product 1"]


def test_samples_without_picture_or_caption_are_counted(tmp_path):
    good, no_image, no_caption, blank = (catalogue_sample(number, number) for number in range(4))
    del no_image["000000001.jpg"], no_caption["000000002.txt"]
    blank["000000003.txt"] = b" \n "
    write_shard(tmp_path / "a.tar", [good, no_image, no_caption, blank])
    index = TarIndex([str(tmp_path / "a.tar")])
    assert len(index) == 1
    assert [(lost.count, lost.reason) for lost in index.skipped] == [(1, NO_PICTURE), (1, NO_CAPTION), (1, NO_CAPTION)]
    assert index.skipped[0].where == "a.tar: 000000001"


def cut(path, size, sizes=None):
    path.write_bytes(path.read_bytes()[:size])
    (path.parent / "sizes.json").write_text(json.dumps(sizes or {}))
    return TarIndex([str(path)])


def test_truncated_shards_keep_what_is_readable(tmp_path):
    """Cut anywhere, the whole samples before the cut are read, and sizes.json tells how many are lost."""
    path = tmp_path / "a.tar"
    write_shard(path, [catalogue_sample(number, number) for number in range(6)])
    whole = path.read_bytes()
    second = members_of(path)[3].offset_data  # before it nothing tells how many files a sample has
    ends = [max(m.offset_data + m.size for m in members_of(path)[3 * i : 3 * i + 3]) for i in range(6)]
    for size in range(512, ends[-1] + 400, 397):
        path.write_bytes(whole)
        index = cut(path, size, {"a.tar": 6})
        complete = sum(end <= size for end in ends) if size >= second else 0
        assert len(index) == complete, size
        assert [(lost.count, lost.reason, lost.where) for lost in index.skipped] == [
            (6 - complete, TRUNCATED, str(path))
        ]
        for i in range(complete):
            assert parse_sample(index.read(i)).product_id == f"P{i}"
    path.write_bytes(whole)
    assert cut(path, ends[3]).skipped[0].count == 1  # at least, as no sizes.json says how many


def test_damage_in_the_middle(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, [catalogue_sample(number, number) for number in range(4)])
    data = bytearray(path.read_bytes())
    start = members_of(path)[6].offset
    data[start : start + 512] = bytes(range(256)) * 2
    path.write_bytes(data)
    index = TarIndex([str(path)])
    assert len(index) == 2
    assert index.skipped[0].reason == DAMAGED


def test_fewer_samples_than_written(tmp_path):
    write_shard(tmp_path / "a.tar", [catalogue_sample(0, 0)])
    (tmp_path / "sizes.json").write_text('{"a.tar": 3}')
    lost = TarIndex([str(tmp_path / "a.tar")]).skipped
    assert [(entry.count, entry.reason) for entry in lost] == [(2, FEWER)]


@pytest.mark.parametrize("content", ["null", "[1]", "{", '{"a.tar": "many"}'])
def test_a_strange_sizes_file_loses_no_sample(tmp_path, content):
    write_shard(tmp_path / "a.tar", [catalogue_sample(0, 0)])
    (tmp_path / "sizes.json").write_text(content)
    index = TarIndex([str(tmp_path / "a.tar")])
    assert (len(index), index.skipped) == (1, [])


def test_files_that_are_no_tars(tmp_path):
    (tmp_path / "text.tar").write_text("no tar\n" * 200)
    with pytest.raises(ValueError, match=r"text\.tar is not a tar file"):
        TarIndex([str(tmp_path / "text.tar")])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        add_file(tar, "a.jpg", encoded_picture(0))
    (tmp_path / "packed.tar").write_bytes(buffer.getvalue().ljust(600, b"\0"))
    with pytest.raises(ValueError, match="compressed.*gzip -dc"):
        TarIndex([str(tmp_path / "packed.tar")])


def test_an_index_can_be_sent_to_another_process(tmp_path):
    write_shard(tmp_path / "a.tar", [catalogue_sample(number, number) for number in range(3)])
    index = TarIndex([str(tmp_path / "a.tar")])
    index.read(0)
    assert pickle.loads(pickle.dumps(index)).read(2) == index.read(2)


def test_many_shards_do_not_exhaust_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_finetuning.loading.tar_index.MAX_OPEN_FILES", 2)
    for number in range(5):
        write_shard(tmp_path / f"{number}.tar", [catalogue_sample(number, number)])
    index = TarIndex([str(tmp_path / f"{number}.tar") for number in range(5)])
    for _ in range(2):
        assert [parse_sample(index.read(i)).product_id for i in range(5)] == [f"P{i}" for i in range(5)]
    assert len(index._files) == 2


# ------------------------------------------------------------------------------- shards that change while they are read


class Failing:
    """An open file whose server does not know it any more."""

    closed = False

    def __init__(self, error=errno.ESTALE):
        self.error = error

    def seek(self, *_):
        raise OSError(self.error, os.strerror(self.error))

    def close(self):
        Failing.closed = True
        self.seek()


def shard_of(path, count=4, first=0):
    write_shard(path, [catalogue_sample(number, number) for number in range(first, first + count)])
    return TarIndex([str(path)])


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO])
def test_a_stale_handle_is_opened_again_and_said_once(tmp_path, monkeypatch, caplog, error):
    index = shard_of(tmp_path / "a.tar")
    expected = [index.read(i) for i in range(4)]
    for _ in range(2):
        index._files[str(tmp_path / "a.tar")].close()
        index._files[str(tmp_path / "a.tar")] = Failing(error)
        assert [index.read(i) for i in range(4)] == expected
    assert Failing.closed and len(index._files) == 1
    (record,) = caplog.records
    assert f"a.tar: {os.strerror(error)}; opened again" in record.getMessage()


def test_a_shard_that_stays_out_of_reach_is_a_reason_for_each_sample(tmp_path, monkeypatch, caplog):
    index = shard_of(tmp_path / "a.tar")
    opened = []

    def stale_open(path, *_, **__):
        opened.append(path)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("builtins.open", stale_open)
    for i in range(2):
        with pytest.raises(OSError) as caught:
            index.read(i)
        assert caught.value.reason == "shard cannot be read: Stale file handle"
    assert len(opened) == 4 and not caplog.records  # one more try each, and nothing was mended
    monkeypatch.undo()
    assert index.read(0)["__key__"] == "000000000"  # it is back


@pytest.mark.parametrize("opened_before", [True, False])
def test_a_shard_that_is_cut_while_it_is_in_use(tmp_path, opened_before):
    """What lies before the cut is read, the rest has a reason; never is a part of a picture taken for it."""
    path = tmp_path / "a.tar"
    index = shard_of(path)
    expected = [index.read(i) for i in range(4)]
    if not opened_before:
        index = pickle.loads(pickle.dumps(index))
    os.truncate(path, members_of(path)[6].offset_data + 100)  # within the third picture
    assert [index.read(i) for i in range(2)] == expected[:2]
    for i in (2, 3):
        with pytest.raises(OSError) as caught:
            index.read(i)
        assert caught.value.reason == CUT


def test_a_shard_that_is_another_one_now(tmp_path):
    """Replaced by one with other samples, its old places would hold others' bytes; by a copy of itself, nothing changes."""
    path = tmp_path / "a.tar"
    index = pickle.loads(pickle.dumps(shard_of(path)))
    expected = index.read(0)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert index.read(0) == expected
    index = pickle.loads(pickle.dumps(index))
    path.unlink()
    write_shard(path, [catalogue_sample(number, number) for number in (0, 11, 2, 13)])
    for i in (1, 3):
        with pytest.raises(OSError) as caught:
            index.read(i)
        assert caught.value.reason == CHANGED


def test_a_count_in_sizes_json_is_a_count(tmp_path):
    listed = {"a.tar": 3, "b.tar": -1, "c.tar": True, "d.tar": 10**18, "e.tar": "7", "f.tar": 2.5, "g.tar": 0}
    (tmp_path / "sizes.json").write_text(json.dumps(listed))
    sizes, _ = expected_sizes([str(tmp_path / name) for name in listed])
    assert {os.path.basename(path): size for path, size in sizes.items()} == {"a.tar": 3, "g.tar": 0}
