"""The kept index: the same samples as without one, written once, and never trusted."""

import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest

from clip_finetuning.loading import kept_index, tar_index
from clip_finetuning.loading.tar_index import CHANGED, TarIndex
from tests.helpers import (
    ROOT,
    add_file,
    assert_same,
    catalogue_sample,
    encoded_picture,
    epoch,
    shards_in,
    training,
    write_catalogue,
    write_shard,
    write_shards,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read_anew(monkeypatch):
    """The tars whose headers are read."""
    names = []

    def read_contents(path, fields, read=tar_index.read_contents):
        names.append(os.path.basename(path))
        return read(path, fields)

    monkeypatch.setattr(tar_index, "read_contents", read_contents)
    return names


def three_tars(folder):
    folder.mkdir()
    for shard in range(3):
        samples = [catalogue_sample(number, number // 2) for number in range(4 * shard, 4 * shard + 4)]
        write_shard(folder / f"{shard}.tar", samples)
    return [str(folder / f"{shard}.tar") for shard in range(3)]


def everything(index):
    """All that an index says."""
    samples = [(index.key(i), index.name(i), index.read(i)) for i in range(len(index))]
    return samples, index.products.tolist(), index.most_captions, index.skipped, index.guessed


def index_of(path):
    return next(kept_index.places(path))


def test_a_kept_index_says_the_same_without_the_headers_being_read(tmp_path, read_anew):
    """Samples of every kind: several captions, unusable ones, guesses, long and foreign names, a tar that breaks off."""
    paths = three_tars(tmp_path / "s")
    with tarfile.open(paths[0], "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in catalogue_sample(0, 0, captions=["one", "two", "three"]).items():
            add_file(tar, f"Größe/{'x' * 300}/{name}", data)
        add_file(tar, "lonely.jpg", encoded_picture(1))
        for suffix, data in {"png": encoded_picture(2, file_format="PNG"), "txt0": b"a", "json": b"{"}.items():
            add_file(tar, f"guess.{suffix}", data)
    os.truncate(paths[1], 4000)
    (tmp_path / "s" / "sizes.json").write_text(json.dumps({"0.tar": 4, "1.tar": 4, "2.tar": 4}))
    fresh = everything(TarIndex(paths))
    assert read_anew == ["0.tar", "1.tar", "2.tar"]
    assert len(fresh[3]) >= 3 and len(fresh[4]) == 1 and fresh[2] == 4
    assert everything(TarIndex(paths)) == fresh
    assert everything(pickle.loads(pickle.dumps(TarIndex(paths)))) == fresh
    assert len(read_anew) == 3


def test_the_batches_are_the_same(make_shards, tmp_path, read_anew):
    pattern = make_shards(tmp_path / "a", products=12, views=2, shards=2)
    first = epoch(training(pattern, 5))
    assert len(read_anew) == 2
    assert_same(epoch(training(pattern, 5)), first)
    assert len(read_anew) == 2


def test_create_webdataset_writes_it(tmp_path, read_anew):
    mapping = write_catalogue(tmp_path, products=4)
    write_shards(mapping, tmp_path / "out", "--shard-size=6", "--part=1/2")
    write_shards(mapping, tmp_path / "out", "--shard-size=6", "--part=2/2")
    names = [path.name for path in shards_in(tmp_path / "out")]
    assert len(names) == 2 and sorted(read_anew) == names
    assert len(TarIndex([str(path) for path in shards_in(tmp_path / "out")])) == 12
    assert len(read_anew) == 2


def test_a_tar_that_changed_costs_itself_alone_and_is_said(tmp_path, read_anew, caplog):
    paths = three_tars(tmp_path / "s")
    before = everything(TarIndex(paths))
    read_anew.clear()
    os.utime(paths[1], ns=(1, os.stat(paths[1]).st_mtime_ns + 1))  # by a nanosecond
    assert everything(TarIndex(paths)) == before
    assert read_anew == ["1.tar"]
    (record,) = caplog.records
    assert "1 of 3 shards cannot be used (the tar has changed: 1)" in record.getMessage()
    TarIndex(paths)
    assert read_anew == ["1.tar"]


def test_where_the_shards_cannot_be_written_it_is_kept_in_the_cache(tmp_path, read_anew, cache, caplog):
    paths = three_tars(tmp_path / "s")
    (tmp_path / "s" / ".index").write_text("no folder")  # root may write into a folder that is read-only
    first = everything(TarIndex(paths))
    assert len(list(cache.rglob("*.index"))) == 3
    assert everything(TarIndex(paths)) == first
    assert len(read_anew) == 3 and not caplog.records


def test_where_nothing_can_be_kept_it_works_all_the_same(tmp_path, read_anew, cache, caplog, monkeypatch):
    paths = three_tars(tmp_path / "s")
    cache.write_text("no folder")
    (tmp_path / "s" / ".index").write_text("no folder")
    monkeypatch.setattr(tar_index, "LONG_START", 0)
    assert everything(TarIndex(paths)) == everything(TarIndex(paths))
    assert len(read_anew) == 6 and "is not kept" in caplog.text


# ------------------------------------------------------------------------------------------------------- never trusted


def rewritten(path, change):
    """Replace a kept index by one that differs as `change(head, columns)` says, with a checksum that is right."""
    data = index_of(path).read_bytes()
    _, _, length = kept_index.PREFIX.unpack_from(data)
    head = json.loads(data[kept_index.PREFIX.size :][:length])
    columns, start = {}, kept_index.PREFIX.size + length
    for name, (kind, count) in zip(kept_index.Columns._fields, head["columns"]):
        columns[name] = np.frombuffer(data, kind, count, start).copy()
        start += columns[name].nbytes
    change(head, columns)
    head["columns"] = head["columns"] and [[column.dtype.str, len(column)] for column in columns.values()]
    text = json.dumps(head).encode()
    body = text + b"".join(column.tobytes() for column in columns.values())
    index_of(path).write_bytes(kept_index.PREFIX.pack(kept_index.MAGIC, zlib.crc32(body), len(text)) + body)


def column(name, place, value, kind=None):
    def change(head, columns):
        columns[name] = columns[name].astype(kind or columns[name].dtype)
        columns[name][place] = value

    return change


def field(name, value):
    return lambda head, columns: head.update({name: value})


def of_objects(head, columns):
    head["columns"] = None


FORGED = {
    "an offset beyond the tar": column("offsets", 3, 2**40, "<i8"),
    "an offset below zero": column("offsets", 0, -1, "<i8"),
    "an offset within the first header": column("offsets", 0, 100),
    "a size beyond the tar": column("sizes", -1, 2**31, "<u4"),
    "a size that overflows": column("sizes", -1, 2**63 - 1, "<i8"),
    "a size below zero": column("sizes", 0, -5, "<i8"),
    "members that fall": column("firsts", 1, 9),
    "members that end early": column("firsts", -1, 3),
    "a suffix without a name": column("suffixes", 0, 77),
    "a key that ends beyond": column("key_ends", -1, 200),
    "fewer products": lambda head, columns: columns.update(products=columns["products"][:-1]),
    "more checks": lambda head, columns: columns.update(checks=np.append(columns["checks"], columns["checks"])),
    "products of 32 bits": lambda head, columns: columns.update(products=columns["products"].astype("<u4")),
    "numbers with a point": lambda head, columns: columns.update(products=columns["products"].astype("<f8")),
    "no columns": of_objects,
    "a suffix that is none": field("suffixes", ["__key__", "txt", "json"]),
    "suffixes that are numbers": field("suffixes", [1, 2, 3]),
    "fewer samples found than there": field("found", 1),
    "a count that is true": field("found", True),
    "captions without end": field("most_captions", 10**30),
    "a guess of no sample": field("guessed", [["r", "k", 4]]),
    "a loss without a place": field("skipped", [["r", "k"]]),
    "another format": field("format", 99),
    "other rules": field("rules", {"reading": 1, "caption": "text", "product": None}),
    "another size": field("stamp", [1, 2]),
    "no stamp": field("stamp", None),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_index_is_made_anew_and_said(tmp_path, read_anew, caplog, change):
    paths = three_tars(tmp_path / "s")
    before = everything(TarIndex(paths))
    kept = index_of(paths[0]).read_bytes()
    rewritten(paths[0], lambda head, columns: None)
    assert index_of(paths[0]).read_bytes() == kept  # the forger's tool works
    rewritten(paths[0], change)
    read_anew.clear()
    assert everything(TarIndex(paths)) == before
    assert read_anew == ["0.tar"] and "1 of 3 shards cannot be used" in caplog.text
    assert index_of(paths[0]).read_bytes() == kept


def test_damage_of_any_kind_is_seen(tmp_path, read_anew):
    paths = three_tars(tmp_path / "s")
    before = everything(TarIndex(paths))
    whole = index_of(paths[0]).read_bytes()
    random = np.random.default_rng(0)
    damaged = [b"", b"\0" * len(whole), whole[:-1], whole + b"\0", whole[:12], pickle.dumps({}), whole * 9999]
    for _ in range(60):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        damaged.append(bytes(data))
    for data in damaged:
        read_anew.clear()
        index_of(paths[0]).write_bytes(data)
        assert everything(TarIndex(paths)) == before
        assert read_anew == ["0.tar"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "another tar's", "dangling link"])
def test_what_is_no_index_in_its_place(tmp_path, read_anew, kind):
    paths = three_tars(tmp_path / "s")
    before = everything(TarIndex(paths))
    place, other = index_of(paths[0]), index_of(paths[1]).read_bytes()
    place.unlink()
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_bytes(other)
    read_anew.clear()
    assert everything(TarIndex(paths)) == before
    assert read_anew == ["0.tar"]
    assert everything(TarIndex(paths)) == before


def test_an_index_of_the_same_size_and_time_cannot_swap_what_is_read(tmp_path):
    """A tar that was replaced by one of its size and time, or a forger's numbers: no sample gets another one's picture."""
    (path, *_) = three_tars(tmp_path / "s")
    times = os.stat(path)
    TarIndex([path])

    def swapped(head, columns):
        columns["offsets"][[0, 3]] = columns["offsets"][[3, 0]]
        columns["sizes"][[0, 3]] = columns["sizes"][[3, 0]]

    rewritten(path, swapped)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    index = TarIndex([path])
    for i in (0, 1):
        with pytest.raises(OSError) as caught:
            index.read(i)
        assert caught.value.reason == CHANGED
    assert index.read(2)["__key__"] == "000000002"


def test_processes_that_write_at_the_same_time_leave_it_whole(tmp_path, read_anew):
    paths = three_tars(tmp_path / "s")
    code = f"from clip_finetuning.loading.tar_index import TarIndex; print(len(TarIndex({paths!r})))"
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [run.communicate()[0] for run in runs] == ["12\n"] * 4
    assert len(TarIndex(paths)) == 12 and read_anew == []
    assert sorted(path.name for path in (tmp_path / "s" / ".index").iterdir()) == [f"{n}.tar.index" for n in range(3)]


def test_a_number_is_as_narrow_as_it_may_be():
    for largest, kind in [(0, "|u1"), (255, "|u1"), (256, "<u2"), (2**16, "<u4"), (2**32 - 1, "<u4"), (2**32, "<i8")]:
        assert kept_index.narrow([0, largest]).dtype == kind and kept_index.narrow([0, largest])[1] == largest
    assert struct.calcsize("<q") == kept_index.narrow([2**40]).itemsize
