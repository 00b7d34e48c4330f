"""Shards that are written again, in parts, after a kill, on a full disk; and their verification."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

import create_webdataset
from clip_finetuning.shards import manifest, write
from clip_finetuning.shards.manifest import ShardSet
from tests.helpers import ROOT, contents, read_samples, run_create, shards_in, write_catalogue, write_shards

NAME = "clip_dataset_valid"


@pytest.fixture(scope="module")
def mapping(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp("catalogue"), products=12)


@pytest.fixture(scope="module")
def undisturbed(mapping, tmp_path_factory):
    """The folder of a run that nothing disturbed: twelve shards."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_shards(mapping, folder, "--shard-size=1")
    return folder


def manifest_of(folder, name=NAME):
    return json.loads((folder / f"{name}.manifest.json").read_text(encoding="utf-8"))


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in shards_in(folder)}


def test_the_manifest_counts_every_entry(mapping, tmp_path):
    entries = json.loads(mapping.read_text())
    entries += [{}, {**entries[0], "image_path": "absent.png"}, {**entries[0], "caption": " "}]
    hostile = tmp_path / f"{NAME}.json"
    hostile.write_text(json.dumps(entries))
    write_shards(hostile, tmp_path / "out", "--shard-size=6", "--max-shards=2", "--no-shuffle")
    manifest = manifest_of(tmp_path / "out")
    assert manifest["dataset"] == NAME
    assert manifest["skipped"] == {
        "no image_path": {"count": 1, "paths": ["entry 36"]},
        "missing image": {"count": 1, "paths": ["absent.png"]},
        "no caption": {"count": 1, "paths": [entries[0]["image_path"]]},
    }
    skipped = sum(found["count"] for found in manifest["skipped"].values())
    assert manifest["entries"] == manifest["samples"] + manifest["beyond_max_shards"] + skipped == 39
    assert manifest["settings"]["quality"] == 95 and manifest["settings"]["shard_size"] == 6
    for path in shards_in(tmp_path / "out"):
        assert manifest["shards"].pop(path.name) == {
            "samples": len(read_samples(path)),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    assert not manifest["shards"]


def test_the_same_command_again_writes_nothing(mapping, undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "out")
    before = times(tmp_path / "out")
    write_shards(mapping, tmp_path / "out", "--shard-size=1")
    assert times(tmp_path / "out") == before
    assert contents(tmp_path / "out") == contents(undisturbed)
    assert "(12 of them were there)" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["gone", "cut"])
def test_a_lost_shard_alone_is_written_again(mapping, undisturbed, tmp_path, loss):
    shutil.copytree(undisturbed, tmp_path / "out")
    before = times(tmp_path / "out")
    lost = shards_in(tmp_path / "out")[3]
    lost.unlink() if loss == "gone" else os.truncate(lost, 5000)
    write_shards(mapping, tmp_path / "out", "--shard-size=1")
    after = times(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {lost.name}
    assert contents(tmp_path / "out") == contents(undisturbed)


def test_other_settings_or_captions_or_pictures_are_taken_anew(tmp_path, capsys):
    mapping, out = write_catalogue(tmp_path, products=3), tmp_path / "out"
    arguments = (mapping, out, "--shard-size=1", "--no-shuffle")
    write_shards(*arguments)
    states = [contents(out)]
    write_shards(*arguments, "--quality=80")
    states.append(contents(out))
    assert "were there" not in capsys.readouterr().out
    entries = json.loads(mapping.read_text())
    entries[4]["caption"] = "Another"
    mapping.write_text(json.dumps(entries))
    write_shards(*arguments, "--quality=80")
    states.append(contents(out))
    assert "(2 of them were there)" in capsys.readouterr().out
    shutil.copy(entries[0]["image_path"], entries[8]["image_path"])
    write_shards(*arguments, "--quality=80")
    states.append(contents(out))
    assert "(2 of them were there)" in capsys.readouterr().out
    for index, state in enumerate(states):
        assert state not in states[:index]
    write_shards(mapping, tmp_path / "fresh", "--shard-size=1", "--no-shuffle", "--quality=80")
    assert contents(tmp_path / "fresh") == states[-1]


def test_a_catalogue_that_is_gone_does_not_empty_its_shards(tmp_path):
    mapping = write_catalogue(tmp_path, products=3)
    write_shards(mapping, tmp_path / "out", "--shard-size=1")
    before = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "pictures")
    write_shards(mapping, tmp_path / "out", "--shard-size=1")
    assert contents(tmp_path / "out") == before


def test_killed_at_any_moment_and_run_again(mapping, undisturbed, tmp_path):
    expected = contents(undisturbed)
    wholes = {path.name: path.read_bytes() for path in shards_in(undisturbed)}
    seed = random.randrange(10**6)
    draw, out, kept = random.Random(seed), tmp_path / "out", {}
    command = [sys.executable, "create_webdataset.py", f"--json={mapping}", f"--output-dir={out}", "--shard-size=1"]
    for trial in range(12):
        if trial % 6 == 0:
            shutil.rmtree(out, ignore_errors=True)
            kept = {}
        begin = listing(out)
        at_risk = subprocess.Popen([*command, f"--num-workers={trial % 3}"], cwd=ROOT, stdout=subprocess.DEVNULL)
        while at_risk.poll() is None and listing(out) == begin:  # starting Python takes most of a run
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        at_risk.send_signal(signal.SIGKILL)
        at_risk.wait()
        wait_for_orphans(out)
        now = times(out) if out.is_dir() else {}
        for path in shards_in(out):
            assert path.read_bytes() == wholes[path.name], f"seed {seed}"
        assert {name: now.get(name) for name in kept} == kept, f"seed {seed}: a finished shard was written again"
        kept = now
    write_shards(mapping, out, "--shard-size=1")
    assert {name: times(out)[name] for name in kept} == kept
    assert contents(out) == expected, f"seed {seed}"


def listing(folder):
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def wait_for_orphans(folder):
    """Workers of a killed run end by themselves."""
    deadline = time.monotonic() + 5
    while orphans := [pid for pid in filter(str.isdigit, os.listdir("/proc")) if str(folder) in command_line(pid)]:
        assert time.monotonic() < deadline, f"{orphans} are still there"
        time.sleep(0.02)


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def test_a_full_disk_is_one_clear_line(mapping, undisturbed, tmp_path):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    for workers in (0, 2):
        out = tmp_path / f"out{workers}"
        arguments = ("--json", mapping, "--output-dir", out, "--shard-size=1", f"--num-workers={workers}")
        _, error = run_create(*arguments, code=2, preexec_fn=no_large_files)
        assert len(error.splitlines()) == 1 and "no room left" in error and str(out) in error
        assert contents(out) == {}
        run_create(*arguments)
        assert contents(out) == contents(undisturbed)


def test_a_disk_that_fills_up_at_the_last_moment(mapping, undisturbed, tmp_path, monkeypatch):
    """Some file systems report it when the data is flushed."""
    calls = []

    def fsync(number):
        calls.append(number)
        if len(calls) == 8:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no room left"):
        write_shards(mapping, tmp_path, "--shard-size=1")
    whole = contents(undisturbed)
    assert all(whole[name] == data for name, data in contents(tmp_path).items())
    write_shards(mapping, tmp_path, "--shard-size=1")
    assert contents(tmp_path) == whole


def test_two_runs_of_the_same_shards_disturb_each_other_in_one_line(mapping, tmp_path, monkeypatch):
    def clean_away(*_):
        for path in tmp_path.glob(".*.partial"):
            path.unlink()
        return {}

    monkeypatch.setattr(write, "write_samples", clean_away)
    with pytest.raises(FileNotFoundError, match="another run"):
        write_shards(mapping, tmp_path)


def test_what_killed_runs_left_is_cleaned_away(mapping, undisturbed, tmp_path):
    (tmp_path / f".{NAME}.records").mkdir()
    leftovers = [f".{NAME}.000002.tar.77.partial", f".{NAME}.manifest.json.7.partial", ".sizes.json.7.partial"]
    leftovers.append(f".{NAME}.records/.000001.json.7.partial")
    for name in leftovers:
        (tmp_path / name).write_text("half")
    (tmp_path / ".other.000002.tar.77.partial").write_text("somebody else's")
    write_shards(mapping, tmp_path, "--shard-size=1")
    left = contents(tmp_path)
    assert left.pop(".other.000002.tar.77.partial") == b"somebody else's"
    assert left == contents(undisturbed)


def test_parts_make_the_whole(mapping, undisturbed, tmp_path):
    outputs = []
    for number in (3, 1, 2):
        assert not (tmp_path / "sizes.json").exists() and not (tmp_path / f"{NAME}.manifest.json").exists()
        out, _ = run_create("--json", mapping, "--output-dir", tmp_path, "--shard-size=1", f"--part={number}/3")
        assert f"Shard pattern: {NAME}.{{000000..000011}}.tar" in out
        outputs.append(out)
    assert contents(tmp_path) == contents(undisturbed)
    assert "Part 3/3 is done: 4 of 12 shards with 12 samples" in outputs[0]
    assert "Created 12 shards with 36 samples" in outputs[2]


def test_parts_at_the_same_time(mapping, undisturbed, tmp_path):
    command = [sys.executable, "create_webdataset.py", f"--json={mapping}", f"--output-dir={tmp_path}"]
    command += ["--shard-size=1", "--num-workers=0"]
    parts = [subprocess.Popen([*command, f"--part={n}/4"], cwd=ROOT, stdout=subprocess.DEVNULL) for n in range(1, 5)]
    assert [part.wait(60) for part in parts] == [0] * 4
    assert contents(tmp_path) == contents(undisturbed)


def test_more_parts_than_shards(tmp_path):
    mapping = write_catalogue(tmp_path, products=1)
    write_shards(mapping, tmp_path / "out", "--part=2/2")
    assert shards_in(tmp_path / "out") == []
    write_shards(mapping, tmp_path / "out", "--part=1/2")
    assert len(shards_in(tmp_path / "out")) == 1 and manifest_of(tmp_path / "out")["samples"] == 3


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_a_part_that_is_none(mapping, tmp_path, part):
    _, error = run_create("--json", mapping, "--output-dir", tmp_path, f"--part={part}", code=2)
    assert len(error.splitlines()) == 1 and "I/N" in error


def test_data_sets_that_finish_together_are_both_in_sizes(tmp_path, monkeypatch):
    write_shards(write_catalogue(tmp_path, 1, name="a"), tmp_path / "out")
    (tmp_path / "out/sizes.json").unlink()
    write_json = manifest.ShardSet._write_json

    def beside(self, name, value):
        """The other run overwrites sizes.json just after ours, with what it saw before."""
        write_json(self, name, value)
        if name == "sizes.json":
            monkeypatch.setattr(manifest.ShardSet, "_write_json", write_json)
            write_json(self, name, {"a.000000.tar": 3})

    monkeypatch.setattr(manifest.ShardSet, "_write_json", beside)
    write_shards(write_catalogue(tmp_path, 1, name="b"), tmp_path / "out")
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {"a.000000.tar": 3, "b.000000.tar": 3}


def test_verify(mapping, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    for which in (["--dataset-name", NAME], ["--json", mapping]):
        text, _ = run_create("--verify", "--output-dir", out, *which)
        assert "12 shards with 36 samples are as" in text
    paths = shards_in(out)
    paths[1].unlink()
    os.truncate(paths[4], 5000)
    data = bytearray(paths[7].read_bytes())
    data[3000] ^= 1
    paths[7].write_bytes(data)
    text, _ = run_create("--verify", "--output-dir", out, "--dataset-name", NAME, code=1)
    assert f"{NAME}.000001.tar: missing" in text and f"{NAME}.000004.tar: damaged" in text
    assert f"{NAME}.000007.tar: damaged: its SHA-256 differs" in text and "3 of 12 shards" in text
    for number in (4, 7):
        paths[number].unlink()
    write_shards(mapping, out, "--shard-size=1")
    run_create("--verify", "--output-dir", out, "--dataset-name", NAME)


def test_verify_without_a_manifest_is_one_line(mapping, tmp_path):
    _, error = run_create("--verify", "--output-dir", tmp_path, "--json", mapping, code=2)
    assert len(error.splitlines()) == 1 and f"{NAME}.manifest.json" in error
    _, error = run_create("--verify", "--output-dir", tmp_path, code=2)
    assert "--dataset-name" in error
    (tmp_path / f"{NAME}.manifest.json").write_text("[1")
    _, error = run_create("--verify", "--output-dir", tmp_path, "--json", mapping, code=2)
    assert len(error.splitlines()) == 1 and "damaged" in error


def test_a_url_as_output(mapping, undisturbed, tmp_path, capsys):
    write_shards(mapping, (tmp_path / "local").as_uri(), "--shard-size=1")
    assert contents(tmp_path / "local") == contents(undisturbed)
    fsspec = pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}"
    write_shards(mapping, url, "--shard-size=1", "--part=1/2")
    write_shards(mapping, url, "--shard-size=1")
    printed = capsys.readouterr().out
    assert "(6 of them were there)" in printed and f"{url}/{NAME}.{{000000..000011}}.tar" in printed
    memory = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}/"
    assert {path.removeprefix(root): memory.cat_file(path) for path in memory.find(root)} == contents(undisturbed)
    create_webdataset.main(["--verify", f"--output-dir={url}", f"--dataset-name={NAME}"])
    assert "12 shards with 36 samples are as" in capsys.readouterr().out


def test_an_unknown_url_is_one_line(mapping):
    _, error = run_create("--json", mapping, "--output-dir", "nowhere://bucket/shards", code=2)
    assert len(error.splitlines()) == 1 and "nowhere" in error


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/passwd", "data.000000.tar/../../secret.tar", "x\x1b[2J.tar"])
def test_a_manifest_names_no_file_but_its_shards(tmp_path, monkeypatch, name):
    shards = ShardSet(tmp_path / "out", "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "secret.tar").write_bytes(b"secret")
    known = {"bytes": 6, "samples": 1, "sha256": "0"}
    manifest = {"samples": 1, "shards": {name: known, "data.000001.tar": {"bytes": "6"}}}
    (tmp_path / "out" / "data.manifest.json").write_text(json.dumps(manifest))
    looked = []
    monkeypatch.setattr(type(shards.folder), "size", lambda _, name: looked.append(name))
    faults = shards.verify()[1]
    assert "not the name of a shard" in faults[name] and "does not say" in faults["data.000001.tar"] and not looked


@pytest.mark.parametrize("shards", [["a"], {"data.000000.tar": 7}, {"data.000000.tar": {"samples": "7"}}])
def test_another_sets_damaged_manifest_does_not_enter_sizes(tmp_path, shards):
    (tmp_path / "theirs.manifest.json").write_text(json.dumps({"shards": shards}))
    ShardSet(tmp_path, "data")._update_sizes()
    assert not (tmp_path / "sizes.json").exists() or json.loads((tmp_path / "sizes.json").read_text()) == {}
