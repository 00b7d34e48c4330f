"""Shards and downloads on a Ray cluster of two machines, of which one is killed in the middle."""

import contextlib
import json
import logging
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import clip_prep
from clip_finetuning.catalogue import fetch_on_ray
from clip_finetuning.runtime import ray_tasks
from clip_finetuning.shards import on_ray
from tests.helpers import (
    contents,
    encoded_picture,
    entry,
    shards_in,
    write_catalogue,
    write_mapping,
    write_shards,
)
from tests.web_server import WebServer

MEMORY = {"object_store_memory": 80_000_000}


@pytest.fixture
def cluster():
    """A cluster of two machines with a processor each, beside the one that keeps its books.

    Not for several tests: a killed machine is told dead a while after, and a driver that is connected to it ends its process.
    """
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
        for _ in range(2):
            cluster.add_node(num_cpus=1, **MEMORY)
        ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        end = time.monotonic() + 60
        while (
            ray.cluster_resources().get("CPU") != 2 and time.monotonic() < end
        ):  # that it has them is told a while after
            time.sleep(0.05)
        ray.shutdown()
        yield cluster
        cluster.shutdown()


def kill_when(cluster, in_the_middle):
    """Kill a machine of two once `in_the_middle()` -> the thread that waits for it, and what it killed.

    Not that which the driver is connected to, as it may be to any: Ray would not go on.
    """
    import ray

    killed = []

    def kill():
        end = time.monotonic() + 120
        while not in_the_middle() and time.monotonic() < end:
            time.sleep(0.01)
        killed.append(in_the_middle())
        mine = ray.get_runtime_context().get_node_id()
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id != mine), allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread, killed


@pytest.mark.slow
def test_shards_of_a_cluster_are_those_of_one_process_though_a_machine_is_killed(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = []
    for number in range(24):  # slow to read, so that the shards are half written when the machine goes
        noise = np.random.default_rng(number).integers(0, 256, (900, 900, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        entries.append(entry(f"{number}.png", number // 3))
    write_mapping(tmp_path / "data.json", entries)
    write_shards("data.json", "local", "--shard-size=6")
    thread, killed = kill_when(cluster, lambda: len(list((tmp_path / "spread").glob(".*.tar.*.partial"))) == 2)
    write_shards("data.json", "spread", "--shard-size=6", f"--ray={cluster.address}")
    thread.join()
    assert killed == [True]
    assert contents(tmp_path / "spread") == contents(tmp_path / "local")


@pytest.mark.slow
def test_a_download_of_a_cluster_is_whole_though_a_machine_is_killed(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch_on_ray, "URLS_A_TASK", 1)
    asked, went_on = [], threading.Event()

    def page(request):
        """The machine that is killed never gets its answer."""
        asked.append(request.path)
        went_on.wait(60)
        request.send(encoded_picture(int(request.path[1])))

    pages = {f"/{number}.jpg": page for number in range(3)} | {"/3.jpg": lambda request: request.send(b"", 404)}
    with WebServer(pages) as server:
        rows = "".join(f"{server.address}/{number}.jpg,Dress {number},P{number}\n" for number in range(4))
        (tmp_path / "t.csv").write_text("url,title,sku\n" + rows)
        thread, killed = kill_when(cluster, lambda: len(asked) == 2)
        waiting = threading.Thread(target=lambda: (thread.join(), went_on.set()))
        waiting.start()
        columns = ["--image-column=url", "--caption-column=title", "--product-column=sku", "--output=all.json"]
        clip_prep.main(["--table=t.csv", *columns, "--download=pictures", f"--ray={cluster.address}"])
        waiting.join()
    assert killed == [True] and set(asked) == {f"/{number}.jpg" for number in range(3)}
    found = [(tmp_path / row["image_path"]).read_bytes() for row in json.loads((tmp_path / "all.json").read_text())]
    assert found == [encoded_picture(number) for number in range(3)]
    assert "HTTP 404" in (tmp_path / "pictures" / "failures.jsonl").read_text()


# ----------------------------------------------------------------------- without a cluster: what it would be told


@pytest.fixture
def elsewhere(monkeypatch):
    """Stands in for a cluster of two processors -> the jobs that it is given."""
    jobs = []

    def run(function, given, at_once):
        jobs.extend(given)
        return map(function, given)

    monkeypatch.setattr(ray_tasks, "connected", lambda address: contextlib.nullcontext(2))
    monkeypatch.setattr(ray_tasks, "run", run)
    return jobs


def test_pictures_that_a_machine_does_not_see_are_no_skipped_samples(elsewhere, tmp_path, monkeypatch):
    mapping = write_catalogue(tmp_path, products=2)

    def hidden(witnessed):
        for path in (tmp_path / "pictures").iterdir():
            path.rename(path.with_suffix(".hidden"))
        return on_ray._write_as_witnessed(witnessed)

    monkeypatch.setattr(ray_tasks, "run", lambda function, jobs, at_once: map(hidden, jobs))
    with pytest.raises(OSError, match="does not see .*0_0.png as .*--ray needs a shared file system"):
        write_shards(mapping, tmp_path / "out", "--no-shuffle", "--ray=auto")
    assert not shards_in(tmp_path / "out")


def test_shards_on_a_disk_of_another_machine_are_not_taken_for_written(elsewhere, tmp_path, monkeypatch):
    mapping = write_catalogue(tmp_path, products=2)
    monkeypatch.setattr(ray_tasks, "run", lambda function, jobs, at_once: [True] * len(jobs))
    with pytest.raises(OSError, match="000000.tar was written, and is not in .*a folder that all machines share"):
        write_shards(mapping, tmp_path / "out", "--ray=auto")


def test_downloads_share_the_manners_and_must_arrive(elsewhere, tmp_path, monkeypatch):
    from clip_finetuning.catalogue.fetch import Manners

    monkeypatch.setattr(fetch_on_ray, "URLS_A_TASK", 2)
    urls = [f"http://h/{number}.jpg" for number in range(5)]
    monkeypatch.setattr(fetch_on_ray, "_fetch_batch", lambda batch: [None] * len(batch.urls))
    with pytest.raises(OSError, match="http://h/0.jpg was fetched, and is not in .*all machines must share"):
        list(fetch_on_ray.fetch_on_ray("auto", urls, tmp_path, Manners(20, 100)))
    assert [batch.urls for batch in elsewhere] == [urls[:2], urls[2:4], urls[4:]]
    assert {batch.manners.rate for batch in elsewhere} == {10}
    assert not list(fetch_on_ray.fetch_on_ray("auto", [], tmp_path, Manners(20, 100)))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "[::1]:{port}", "127.0.0.1:99999999"]
)
def test_no_cluster_at_an_address_is_said_at_once(tmp_path, address):
    pytest.importorskip("ray")
    with WebServer({}) as server:
        port = server.server.server_port  # nobody listens there any more
    with pytest.raises(ConnectionError, match=r"--ray .*: no cluster there \(.*\); start one with `ray start --head`"):
        write_shards(write_catalogue(tmp_path, products=1), tmp_path / "out", f"--ray={address.format(port=port)}")


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'--ray needs Ray, which is not installed: pip install -e "\.\[ray\]"'):
        write_shards(write_catalogue(tmp_path, products=1), tmp_path / "out", "--ray=auto")
