"""Shards and downloads on a Ray cluster of two machines, of which one is killed in the middle."""

import json
import threading

import pytest

import clip_prep
from tests.helpers import contents, encoded_picture, write_catalogue, write_shards
from tests.web_server import WebServer


@pytest.fixture(scope="module")
def cluster():
    """A head without processors for tasks, and one machine with two; more can be added."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        memory = {"object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
        cluster.doomed = cluster.add_node(num_cpus=1, **memory)
        yield cluster
        cluster.shutdown()


@pytest.mark.slow
def test_a_machine_that_is_killed_costs_nothing_but_time(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_catalogue(tmp_path, products=6)
    write_shards("clip_dataset_valid.json", "local", "--shard-size=3")
    picture, blocked, went_on = encoded_picture(0), threading.Event(), threading.Event()

    def page(request):
        """The killed machine's request never gets its answer."""
        blocked.set()
        went_on.wait(60)
        request.send(picture)

    with WebServer({f"/{number}.jpg": page for number in range(3)}) as server:
        urls = [f"{server.address}/{number}.jpg" for number in range(3)]
        monkeypatch.setattr("clip_finetuning.catalogue.fetch_on_ray.URLS_A_TASK", 1)

        def kill():
            blocked.wait(60)
            cluster.remove_node(cluster.doomed, allow_graceful=False)
            went_on.set()

        killer = threading.Thread(target=kill)
        killer.start()
        rows = "".join(f"{url},Dress {number},P{number}\n" for number, url in enumerate(urls))
        (tmp_path / "t.csv").write_text("url,title,sku\n" + rows)
        columns = ["--image-column=url", "--caption-column=title", "--product-column=sku", "--output=all.json"]
        clip_prep.main(["--table=t.csv", *columns, "--download=pictures", f"--ray={cluster.address}"])
        killer.join()
    assert len(json.loads((tmp_path / "all.json").read_text())) == 3
    write_shards("clip_dataset_valid.json", "spread", "--shard-size=3", f"--ray={cluster.address}")
    assert contents(tmp_path / "spread") == contents(tmp_path / "local")
