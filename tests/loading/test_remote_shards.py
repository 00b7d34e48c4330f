"""Shards on a web server that drops connections and in a store that speaks S3: the same bytes, the same samples."""

import logging
import os
import threading

import pytest

import create_webdataset
from clip_finetuning.loading import opening
from clip_finetuning.runtime import remote, resuming
from tests.helpers import (
    assert_same,
    contents,
    epoch,
    evaluation,
    keys,
    run_create,
    training,
    write_catalogue,
    write_shards,
)
from tests.web_server import WebServer, file_page

SHARDS = "train.{000000..000002}.tar"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(resuming, "WAITS", (0.0,) * 3)
    monkeypatch.setattr(remote, "WAITS", (0.0,) * 3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(make_shards, tmp_path_factory):
    """45 samples, 3 of each product, in 3 shards, with their sizes.json."""
    folder = tmp_path_factory.mktemp("remote")
    make_shards(folder / "train", products=15, shards=3)
    return folder


def pages(folder, **how):
    return {f"/{path.name}": file_page(path.read_bytes(), **how) for path in folder.iterdir() if path.is_file()}


# ------------------------------------------------------------------------------------------------------ http


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_that_drops_connections_costs_no_sample(folder, ranges, num_workers, caplog):
    local = epoch(evaluation(f"{folder}/{SHARDS}"))
    with WebServer(pages(folder, drops=(3000, 11_000, 500), ranges=ranges)) as server:
        loader = evaluation(f"{server.address}/{SHARDS}", num_workers=num_workers)
        assert_same(epoch(loader), local)
        assert not loader.skipped
        assert server.counts()["/train.000001.tar"] == 4
        if not num_workers:
            assert "train.000001.tar: broke off" in caplog.text and "trying again in 0 seconds" in caplog.text
        server.requests.clear()
        trained = epoch(training(f"{server.address}/{SHARDS}", 6, num_workers=num_workers))
    assert_same(trained, epoch(training(f"pipe:cat '{folder}'/{SHARDS}", 6, num_workers=num_workers)))


def test_a_server_that_always_drops_at_the_same_place_costs_what_is_behind(folder, caplog):
    served = pages(folder)
    served["/train.000001.tar"] = file_page((folder / "train.000001.tar").read_bytes(), drops=[20_000] + [0] * 50)
    with WebServer(served) as server:
        loader = evaluation(f"{server.address}/{SHARDS}")
        found = keys(epoch(loader))
        assert 30 < len(found) < 45 and len(found) + sum(loader.skipped.values()) == 45
        assert server.counts()["/train.000001.tar"] == 4  # once, and three attempts without a byte


def test_a_shard_that_is_replaced_while_it_is_read_is_no_mixture(folder):
    served = pages(folder)
    data = (folder / "train.000001.tar").read_bytes()

    def replaced(request):
        file_page(data, drops=(20_000,), etag=f'"{request.attempt}"')(request)

    with WebServer({**served, "/train.000001.tar": replaced}) as server:
        loader = evaluation(f"{server.address}/{SHARDS}")
        found = keys(epoch(loader))
        assert len(found) + sum(loader.skipped.values()) == 45 and 0 < sum(loader.skipped.values()) < 15


def test_a_web_server_that_is_not_there_is_one_line_after_few_attempts(folder, caplog, monkeypatch):
    slept = []
    monkeypatch.setattr(opening.time, "sleep", slept.append)
    with WebServer({}) as server:
        address = server.address
    with pytest.raises(
        ValueError, match=r"no usable sample in 'http://.*1 x unreadable shard, .*no connection: .*refused"
    ):
        evaluation(f"{address}/train.000000.tar")
    assert "no connection: " in caplog.text
    assert len(slept) == 2 * resuming.UNREACHED  # sizes.json, and the shard


def test_what_the_server_refuses_is_said_at_once(folder, caplog):
    served = {"/train.000000.tar": lambda request: request.send(b"", 301, Location=f"file://{folder}/train.000000.tar")}
    with WebServer(served) as server:
        for name, reason in [("train.000000", "redirect to what is not http"), ("other", r"HTTP 404 \(not found\)")]:
            with pytest.raises(ValueError, match=f"no usable sample in .*{name}.*unreadable shard, .*{reason}"):
                evaluation(f"{server.address}/{name}.tar")
        assert server.counts() == {"/sizes.json": 2, "/train.000000.tar": 1, "/other.tar": 1}


# -------------------------------------------------------------------------------------------------------- S3


class Flaky:
    """A WSGI application that breaks every so many requests: no answer, an error, or half a body."""

    def __init__(self, application):
        self.application, self.every, self.count, self.lock = application, 0, 0, threading.Lock()

    def __call__(self, environment, start):
        with self.lock:
            self.count += 1
            turn = self.count // self.every if self.every and self.count % self.every == 0 else 0
        if turn % 2:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.application(environment, start))
        return [body[: len(body) // 2]] if turn and environment["REQUEST_METHOD"] == "GET" else [body]


@pytest.fixture(scope="module")
def flaky():
    """A server that speaks S3, as environment variables point at it; with the bucket `shop`."""
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Flaky(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        address = f"http://127.0.0.1:{server.server_port}"
        values = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": address}
        for name, value in {
            **values,
            "EC2_METADATA_DISABLED": "true",
            "MAX_ATTEMPTS": "1",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem().mkdir("shop")
        yield application
    server.shutdown()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def stored(flaky):
    """{name: bytes} of what lies below a folder of the bucket."""
    import s3fs

    def found(path):
        files = s3fs.S3FileSystem()
        files.invalidate_cache()
        return {name.removeprefix(f"{path}/"): files.cat_file(name) for name in files.find(path)}

    yield found
    flaky.every = 0


def test_shards_in_a_bucket_that_fails_now_and_then_are_those_of_a_folder(stored, flaky, tmp_path, capsys):
    mapping = write_catalogue(tmp_path, products=2)
    write_shards(mapping, tmp_path / "local", "--shard-size=3")
    flaky.every = 8
    run_create("--json", mapping, "--output-dir", "s3://shop/shards", "--shard-size=3", "--num-workers=2")
    write_shards(mapping, "s3://shop/shards", "--shard-size=3")
    create_webdataset.main(["--verify", "--output-dir=s3://shop/shards", "--dataset-name=clip_dataset_valid"])
    printed = capsys.readouterr().out
    assert "(2 of them were there)" in printed and "2 shards with 6 samples are as" in printed
    flaky.every = 0
    assert stored("shop/shards") == contents(tmp_path / "local")


def test_training_and_evaluation_from_a_bucket_that_fails_now_and_then(stored, flaky, folder):
    import s3fs

    files = s3fs.S3FileSystem()
    for path in filter(os.path.isfile, folder.iterdir()):
        files.put_file(str(path), f"shop/read/{path.name}")
    flaky.every = 4
    loader = evaluation(f"s3://shop/read/{SHARDS}", num_workers=1)
    assert_same(epoch(loader), epoch(evaluation(f"{folder}/{SHARDS}")))
    assert not loader.skipped
    loader = training(f"s3://shop/read/{SHARDS}", 6)
    assert_same(epoch(loader), epoch(training(f"pipe:cat '{folder}'/{SHARDS}", 6)))
    assert not loader.skipped


def test_a_bucket_that_is_not_there_is_one_line_and_none_is_made(stored, tmp_path):
    import s3fs

    mapping = write_catalogue(tmp_path, products=1)
    with pytest.raises(OSError, match=r"cannot write .* to s3://shpo/shards: .*bucket does not exist"):
        write_shards(mapping, "s3://shpo/shards")
    assert s3fs.S3FileSystem().ls("") == ["shop"]
    with pytest.raises(ValueError, match=r"no usable sample in 's3://shpo.*bucket does not exist"):
        evaluation("s3://shpo/shards/a.tar")


def test_without_credentials_the_line_says_what_to_set(stored, tmp_path, monkeypatch):
    mapping = write_catalogue(tmp_path, products=1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    _, error = run_create("--json", mapping, "--output-dir", "s3://shop/none", code=2)
    assert len(error.splitlines()) == 1 and "Unable to locate credentials; set AWS_ACCESS_KEY_ID" in error


def test_a_store_that_gives_up_mid_file_is_gone_on_with(tmp_path, monkeypatch):
    """Of any file system that fsspec knows: what its own attempts do not mend."""
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    data = bytes(range(256)) * 1000
    fsspec.filesystem("memory").pipe_file("/flaky/a.tar", data)
    read, breaks = MemoryFile.read, [0]

    def breaking(self, size=-1):
        breaks[0] += 1
        if breaks[0] % 3 == 0:
            raise RuntimeError("the session is closed")
        return read(self, size)

    monkeypatch.setattr(MemoryFile, "read", breaking)
    with opening.open_shard("memory://flaky/a.tar") as stream:
        assert stream.read() == data
    assert breaks[0] > 3
    with pytest.raises(FileNotFoundError):
        opening.open_shard("memory://flaky/b.tar")
