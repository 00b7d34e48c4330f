"""How batches come from the workers, and what is said of a worker that dies."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from clip_finetuning.loading import transport, workers
from clip_finetuning.loading.workers import WorkerDied
from tests.helpers import ROOT, TINY, assert_same, catalogue_sample, epoch, evaluation, training, write_shard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the others have no /dev/shm")
MB = 1 << 20


@pytest.fixture
def shared_memory(monkeypatch):
    """shared_memory(MB): let /dev/shm have so much room."""

    def set_room(megabytes):
        status = SimpleNamespace(f_bavail=megabytes * 256, f_frsize=4096)
        monkeypatch.setattr(transport, "os", SimpleNamespace(statvfs=lambda _: status, environ=os.environ))

    return set_room


class Reader:
    """Stands for a loader."""


# 256 pictures of 224 pixels are 38.5 MB; two workers hold six of these at most, ten percent more with what others take
@pytest.mark.parametrize(
    ("room", "workers", "shared"), [(242, 2, True), (241, 2, False), (64, 1, False), (0, 4, False)]
)
def test_what_the_batches_need_is_compared_with_the_room(shared_memory, caplog, room, workers, shared):
    shared_memory(room)
    needed = 256 * 3 * 224 * 224
    if workers == 2:
        needed = 220 * MB // 6  # so that it is 242 MB in all
    assert transport.choose(Reader(), workers, needed) == (workers, shared)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == (
        [] if shared else [f"/dev/shm has room for {room} MB and the batches of {workers} workers need "
                           f"{int(needed * (2 * workers + 2) * 1.1) // MB + 1}"]
    )  # fmt: skip


def test_loaders_and_processes_of_one_machine_share_the_room(shared_memory, monkeypatch):
    shared_memory(100)
    first, second = Reader(), Reader()
    assert transport.choose(first, 1, 10 * MB).shared  # 44 MB
    assert transport.choose(second, 1, 10 * MB).shared
    assert not transport.choose(Reader(), 1, 10 * MB).shared
    del first  # and what it had is free again
    assert transport.choose(Reader(), 1, 10 * MB).shared
    del second
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert not transport.choose(Reader(), 1, 10 * MB).shared


def test_no_workers_where_processes_can_share_no_lock(make_shards, tmp_path, monkeypatch, caplog):
    pattern = make_shards(tmp_path / "a", products=8, views=1, shards=1)
    expected = epoch(training(pattern, 3))

    class NoLocks:
        def Lock(self):
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(transport.multiprocessing, "get_context", lambda _: NoLocks())
    loader = training(pattern, 3, num_workers=2)
    monkeypatch.undo()
    assert loader.num_workers == 0
    assert_same(epoch(loader), expected)
    (record,) = caplog.records
    assert "no worker processes, since they need /dev/shm (Read-only file system)" in record.getMessage()


@pytest.mark.parametrize("room", [0, 1000])
def test_the_batches_are_the_same_either_way(make_shards, tmp_path, shared_memory, room):
    pattern = make_shards(tmp_path / "a", products=12, views=2, shards=2)
    expected, all_in_order = epoch(training(pattern, 5)), list(evaluation(pattern, 7))
    shared_memory(room)
    loader = training(pattern, 5, num_workers=2)
    batches = epoch(loader)
    assert_same(batches, expected)
    for batch, other in zip(batches, expected):
        assert batch.images.is_shared() == (room > 0)
        assert batch.images.stride() == other.images.stride() and batch.tokens.dtype == torch.int64
    loader.close()
    loader = evaluation(pattern, 7, num_workers=2)
    assert_same(list(loader), all_in_order)
    loader.close()


# ------------------------------------------------------------------------------------------------ a real small /dev/shm


def small_shared_memory(command):
    """The finished command, in a mount namespace where /dev/shm has 64 MB as Docker gives it."""
    script = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *map(str, command)], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a shard of 264 products, and a tiny model of 224 pixels."""
    if not shutil.which("unshare") or small_shared_memory(["true"]).returncode:
        pytest.skip("no mount namespaces here")
    folder = tmp_path_factory.mktemp("pictures")
    write_shard(folder / "a.000000.tar", [catalogue_sample(number, number) for number in range(264)])
    vision = {**TINY["vision_cfg"], "image_size": 224, "patch_size": 56}
    (folder / "tiny.json").write_text(json.dumps({**TINY, "vision_cfg": vision}))
    return folder


@pytest.mark.parametrize("script", ["evaluate_clip.py", "clipFineTuner.py"])
def test_64_megabytes_are_enough_with_what_the_settings_say(pictures, tmp_path, script):
    """Batches of 256 and two workers, as settings.py has them."""
    shards, out = pictures / "a.000000.tar", tmp_path / "out"
    command = [sys.executable, ROOT / script, f"--model-name={pictures / 'tiny.json'}", "--model-pretrained="]
    command += ["--device=cpu", "--precision=fp32"]
    if script == "evaluate_clip.py":
        command += [f"--dataset-path={shards}", f"--output={out}"]
    else:
        command += [f"--train-dataset-pattern={shards}", f"--valid-dataset-pattern={shards}", f"--checkpoint-dir={out}"]
        command += ["--max-steps=2", "--eval-interval=2"]
    done = small_shared_memory(command)
    assert done.returncode == 0, done.stderr
    assert "/dev/shm has room for 64 MB" in done.stderr and "Traceback" not in done.stderr
    assert out.exists()


# ------------------------------------------------------------------------------------------------- a worker that dies


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "for want of memory"), (signal.SIGBUS, "/dev/shm is full"), (signal.SIGSEGV, "SIGSEGV")]
)  # fmt: skip
def test_a_worker_that_is_killed_is_an_error_that_says_what_helps(make_shards, tmp_path, number, said):
    pattern = make_shards(tmp_path / "a", products=40, views=1, shards=1)
    others = set(multiprocessing.active_children())  # of loaders that nobody has collected yet
    loader = training(pattern, 2, num_workers=2)
    batches = iter(loader)
    next(batches)
    os.kill(loader._loader._iterator._workers[0].pid, number)
    time.sleep(0.05)  # in which nothing is raised: this may be the middle of an update
    with pytest.raises(WorkerDied, match=said):
        list(batches)
    left = set(multiprocessing.active_children()) - others
    for worker in left:
        worker.join(10)
    assert not any(worker.is_alive() for worker in left)
    loader.close()


class Dying:
    """Stands for torch's iterator with one worker, whose connections are gone before the system has its exit code."""

    _shutdown = _worker_pids_set = False
    _index_queues = ()

    def __init__(self):
        self._workers = [self]
        self.exitcode = None
        self.sentinel, gone = multiprocessing.Pipe(duplex=False)
        gone.close()
        self._worker_result_queue = SimpleNamespace(cancel_join_thread=lambda: None)

    def __next__(self):
        raise ConnectionResetError(104, "Connection reset by peer")

    def join(self, seconds):
        self.exitcode = -signal.SIGKILL

    def kill(self):
        pass


def test_a_reset_connection_is_the_end_of_a_worker_though_its_exit_code_comes_later():
    with pytest.raises(WorkerDied, match="SIGKILL"):
        next(workers.batches_of(Dying()))


def test_a_loader_whose_worker_died_can_start_again(make_shards, tmp_path):
    pattern = make_shards(tmp_path / "a", products=10, views=1, shards=1)
    expected = epoch(training(pattern, 2))
    loader = training(pattern, 2, num_workers=1)
    next(iter(loader))
    os.kill(loader._loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        epoch(loader)
    loader.close()
    assert_same(epoch(loader), expected)
    loader.close()
