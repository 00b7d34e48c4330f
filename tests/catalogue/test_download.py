"""Pictures by URL: from the table to local files, past every kind of server, and again after a kill."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import clip_prep
from clip_finetuning.catalogue import download, fetch, remote_picture, schedule
from clip_finetuning.catalogue.rows import RowError
from clip_finetuning.runtime import resuming
from tests.helpers import ROOT, encoded_picture, run_create
from tests.web_server import WebServer, file_page

PICTURES = [encoded_picture(number, (200, 150)) for number in range(4)]
MANNERS = fetch.Manners(rate=1000, most_bytes=100_000)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote_picture, "WAITS", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def fetched(folder, urls, manners=MANNERS):
    """(the folder after fetching, what was said)."""
    downloads = download.Downloads(folder)
    return downloads, downloads.fetch(urls, manners)


def outcome(folder, server, page, path="/picture.jpg"):
    """(bytes or reason, requests) of one page."""
    server.pages[path] = page
    asked = len(server.requests[path])
    url = server.address + path
    downloads, _ = fetched(folder, [url])
    file = folder / remote_picture.file_name(url)
    found = file.read_bytes() if file.exists() else downloads.failures[url].reason
    return found, len(server.requests[path]) - asked


def write_table(folder, urls, **columns):
    path = folder / "products.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["url", "title", "sku"])
        table.writerows([url, f"Dress number {number}", f"P{number}"] for number, url in enumerate(urls))
    return path


def table_arguments(table, output, *more):
    columns = ["--image-column", "url", "--caption-column", "title", "--product-column", "sku"]
    return ["--table", str(table), *columns, "--output", str(output), *map(str, more)]


# ------------------------------------------------------------------------------------------- what servers do


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_is_gone_on_with(tmp_path, ranges):
    page = file_page(PICTURES[0], drops=(1000, 700), ranges=ranges)
    with WebServer({}) as server:
        assert outcome(tmp_path, server, page) == (PICTURES[0], 3)
        asked = [headers.get("Range") for headers in server.requests["/picture.jpg"]]
    assert asked == [None, "bytes=1000-", "bytes=1700-" if ranges else "bytes=1000-"]


def test_a_picture_that_changes_between_two_parts_is_not_patched_together(tmp_path):
    def page(request):
        file_page(PICTURES[request.attempt - 1], drops=(1000,), etag=f'"{request.attempt}"')(request)

    with WebServer({}) as server:
        assert outcome(tmp_path, server, page) == ("changed while it was read", 2)


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(schedule.Schedule, "pause", lambda self, url, seconds: pauses.append(seconds))
    monkeypatch.setattr(schedule.Schedule, "wait", lambda self, url, seconds: pauses.append(seconds))

    def page(request):
        busy = [(429, {"Retry_After": "7"}), (503, {"Retry_After": "3"}), (500, {})]
        if request.attempt <= len(busy):
            status, headers = busy[request.attempt - 1]
            return request.send(b"later", status, **headers)
        return request.send(PICTURES[0])

    with WebServer({}) as server:
        assert outcome(tmp_path, server, page) == (PICTURES[0], 4)
    assert pauses == [7, 7, 3, 3, 0]


def test_a_server_that_asks_for_an_hour_is_asked_by_the_next_run(tmp_path):
    with WebServer({}) as server:
        page = lambda request: request.send(b"", 429, Retry_After="3600")  # noqa: E731
        assert outcome(tmp_path, server, page) == ("HTTP 429", 1)
        assert outcome(tmp_path, server, lambda request: request.send(PICTURES[0])) == (PICTURES[0], 1)


def moved(target):
    return lambda request: request.send(b"", 301, Location=target)


def answer(body, status=200, **how):
    return lambda request: request.send(body, status, **how)


@pytest.mark.parametrize(
    ("page", "reason", "requests", "again"),
    [
        (answer(b"gone", 404), "HTTP 404 (not found)", 1, 0),
        (answer(b"no", 403), "HTTP 403", 1, 0),
        (answer(b"oh", 500), "HTTP 500", 4, 4),
        (answer(b"later", 503, Retry_After="soon"), "HTTP 503", 4, 4),
        (answer(b"\n<!DOCTYPE HTML><html><img src=x></html>"), "a web page instead of a picture", 1, 0),
        (answer(b"<?xml version='1.0'?><html xmlns='x'/>"), "a web page instead of a picture", 1, 0),
        (answer(b'{"error": "no such picture"}'), "not an image", 1, 0),
        (answer(b""), "empty file", 1, 1),
        (answer(PICTURES[0], length=2 * len(PICTURES[0])), "broke off", 4, 4),
        (answer(PICTURES[0], length=len(PICTURES[0]) // 2), "truncated or damaged image", 1, 1),
        (answer(PICTURES[0], length=10**12), "larger than 0.1 MB (--download-limit)", 1, 0),
        (answer(PICTURES[0] + bytes(100_000)), "larger than 0.1 MB (--download-limit)", 1, 0),
        (moved("/picture.jpg"), "too many redirects", 6, 0),
        (moved("file:///etc/passwd"), "redirect to what is not http", 1, 0),
        (moved("ftp://host/picture.jpg"), "redirect to what is not http", 1, 0),
        (moved("http://[::1"), "not a valid URL", 1, 0),
        (answer(PICTURES[0][:500], 206, Content_Range="items 0-9/10"), "unusable answer", 1, 0),
    ],
)
def test_what_is_no_picture_has_its_reason_and_is_tried_again_only_where_that_may_help(
    tmp_path, page, reason, requests, again
):
    with WebServer({}) as server:
        assert outcome(tmp_path, server, page) == (reason, requests)
        assert outcome(tmp_path, server, page) == (reason, again)


def test_a_body_without_a_length_is_bounded_too(tmp_path):
    def page(request):
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while True:
            request.wfile.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")

    with WebServer({}) as server:
        assert outcome(tmp_path, server, page) == ("larger than 0.1 MB (--download-limit)", 1)


def test_a_redirect_is_followed_and_a_login_goes_to_no_other_host(tmp_path):
    with WebServer({"/there.jpg": file_page(PICTURES[0])}) as other, WebServer({}) as server:
        server.pages["/here.jpg"] = moved(f"{other.address}/there.jpg")
        url = server.address.replace("//", "//me:p%40ss@") + "/here.jpg"
        fetched(tmp_path, [url])
        assert (tmp_path / remote_picture.file_name(url)).read_bytes() == PICTURES[0]
        assert server.requests["/here.jpg"][0]["Authorization"] == "Basic bWU6cEBzcw=="
        assert "Authorization" not in other.requests["/there.jpg"][0]


def test_the_environment_names_a_proxy_and_whom_to_ask_without(tmp_path, monkeypatch):
    with WebServer({"http://shop.invalid/a.jpg": answer(PICTURES[0]), "/b.jpg": answer(PICTURES[1])}) as server:
        monkeypatch.setenv("http_proxy", server.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        urls = ["http://shop.invalid/a.jpg", f"{server.address}/b.jpg"]
        downloads, _ = fetched(tmp_path, urls)
        found = [(tmp_path / remote_picture.file_name(url)).read_bytes() for url in urls]
        assert found == PICTURES[:2] and not downloads.failures


def test_pictures_that_a_server_compresses_or_that_pillow_may_not_know(tmp_path):
    import gzip

    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    with WebServer({}) as server:
        page = answer(gzip.compress(PICTURES[0]), Content_Encoding="gzip")
        assert outcome(tmp_path, server, page, "/packed.jpg") == (PICTURES[0], 1)
        assert outcome(tmp_path, server, answer(heic), "/a.heic") == (heic, 1)
        bomb = gzip.compress(bytes(10_000_000))
        assert outcome(tmp_path, server, answer(bomb), "/bomb.jpg")[0] == "larger than 0.1 MB (--download-limit)"


def test_a_server_that_trickles_costs_its_time_and_no_other_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TOO_SLOW", 0.1)
    monkeypatch.setattr(fetch, "LOOK", 0.05)
    monkeypatch.setattr(fetch, "THREADS", 1)
    end = threading.Event()

    def trickle(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not end.wait(0.01):
            request.wfile.write(b"X-Wait: a\r\n" if request.attempt else b"")

    with WebServer({"/slow.jpg": trickle, "/quick.jpg": answer(PICTURES[1])}) as server:
        urls = [f"{server.address}/slow.jpg", f"{server.address}/quick.jpg"]
        downloads, _ = fetched(tmp_path, urls)
        assert {url: failure.reason for url, failure in downloads.failures.items()} == {urls[0]: "too slow"}
        assert downloads.picture(urls[1])[1] == remote_picture.file_name(urls[1])
        end.set()


def test_a_host_that_is_not_there_is_given_up(tmp_path):
    with WebServer({}) as server:
        address = server.address  # nobody listens there any more
    urls = [f"{address}/{number}.jpg" for number in range(60)]
    downloads, said = fetched(tmp_path, urls)
    reasons = [failure.reason for failure in downloads.failures.values()]
    assert set(downloads.failures) == set(urls) and all(failure.again for failure in downloads.failures.values())
    assert "host does not answer" in reasons and reasons.count("no connection") >= schedule.SILENT
    assert "60 failed" in said and "tries 60 again" in said


def test_a_host_is_asked_no_more_often_than_is_polite_and_less_once_it_complains(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(schedule.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    urls = [f"http://{host}/{number}" for host in ("one", "two") for number in range(5)]
    turns = schedule.Schedule(urls, rate=2)
    taken = [(url, now[0]) for url in iter(turns.take, None)]
    times = dict(taken)
    assert sorted(times) == sorted(urls)
    for host in ("one", "two"):
        assert [times[f"http://{host}/{number}"] for number in range(5)] == pytest.approx([0, 0.5, 1, 1.5, 2])
    turns = schedule.Schedule(urls, rate=2)
    start = now[0]
    turns.pause("http://one/0", 3)
    taken = [(url, now[0] - start) for url in iter(turns.take, None)]
    assert [when for url, when in taken if "one" in url] == pytest.approx([3, 4, 5, 6, 7])
    assert [when for url, when in taken if "two" in url] == pytest.approx([0, 0.5, 1, 1.5, 2])


# -------------------------------------------------------------------------------------------- names and trust


HOSTILE = [
    "http://h/../../etc/passwd",
    "http://h/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "http://h/a/..",
    "http://h/..%5c..%5cwindows.jpg",
    "http://h/a%00b.jpg",
    "http://h/.hidden",
    "http://h/-rf.jpg",
    "http://h/con.jpg",
    "http://h/" + "x" * 5000 + ".jpg",
    "http://h/?file=../../a.jpg",
    "http://h/bild.jpg?size=\u202egpj",
    "http://h/\ud800.jpg",
    "http://[::1",
    "http://h/failures.jsonl",
    "http://h/",
    "http://h",
    "http://h/a.jpg",
    "http://h/A.jpg",
    "http://h/a.jpg?v=2",
]


def test_file_names_are_safe_and_no_two_alike():
    names = [remote_picture.file_name(url) for url in HOSTILE]
    assert len({name.lower() for name in names}) == len(HOSTILE)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,90}(\.[a-z0-9]{2,4})?", name) for name in names)
    wanted = download.Wanted()
    for url in ("https://h/a.jpg", "//h/a.jpg", "https://h/a.jpg#top"):
        with pytest.raises(RowError):
            wanted.picture(url)
    assert list(wanted.urls) == ["https://h/a.jpg"]
    assert (
        remote_picture.file_name("https://shop.example/i/Red%20Dress.JPG?v=1") == "Red-Dress-e1774677a5ddb90871e6.jpg"
    )


def test_whatever_a_cell_calls_a_url_has_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "UNREACHED", 0)
    places = [
        "\0/",
        "a b/",
        "user@:80/",
        "127.0.0.1:99999/x",
        "127.0.0.1:-1/",
        "127.0.0.1:abc/",
        "[::1]:1/",
        "[::1",
        "%00/",
        "",
    ]
    places += [
        "127.0.0.1:1/\ud800",
        "127.0.0.1:1/ü ü?q=\x01",
        "127.0.0.1:1/\r\nX: y",
        "u:p\r\nX: y@127.0.0.1:1/",
        "/a",
        "[v1.x]/",
    ]
    urls = [f"http://{place}" for place in places] + [
        "http:",
        "s3://bucket/a.jpg",
        "javascript://alert(1)",
        "\ud800://a",
    ]
    downloads, _ = fetched(tmp_path, urls)
    assert set(downloads.failures) == set(urls)
    reasons = {failure.reason for failure in downloads.failures.values()}
    assert reasons <= {"not a valid URL", "no connection", "not an http or https URL", "host does not answer"}


def test_a_list_of_failures_is_data(tmp_path):
    with WebServer({"/a.jpg": answer(PICTURES[0])}) as server:
        url = f"{server.address}/a.jpg"
        good = {"url": url, "reason": "HTTP 404", "detail": "", "again": True}
        lines = [b"[]", b"{", b"\xff", b'{"url": 3}', json.dumps({**good, "again": "no"}).encode(), b"[" * 100_000]
        (tmp_path / download.FAILURES).write_bytes(b"\n".join([*lines, json.dumps(good).encode()[:-4]]))
        downloads, said = fetched(tmp_path, [url])
        assert not downloads.failures and "7 damaged lines of failures.jsonl" in said


# ------------------------------------------------------------------------------------------------ the command


def test_a_table_of_urls_becomes_local_pictures_and_every_row_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages = {f"/{number}.jpg": answer(PICTURES[number]) for number in range(4)} | {"/page.jpg": answer(b"<html>")}
    with WebServer(pages) as server:
        paths = ["/0.jpg", "/1.jpg", "/2.jpg", "/3.jpg", "/0.jpg", "/page.jpg", "/absent.jpg"]
        table = write_table(tmp_path, [server.address + path for path in paths])
        arguments = table_arguments(table, "all.json", "--download", "pictures")
        assert clip_prep.main(arguments) == 0
        said = capsys.readouterr().out
        entries = json.loads((tmp_path / "all.json").read_text())
        assert [entry["product_id"] for entry in entries] == ["P0", "P1", "P2", "P3", "P4"]
        assert entries[0]["image_path"] == f"pictures/{entries[0]['image_name']}" == entries[4]["image_path"]
        found = [(tmp_path / entry["image_path"]).read_bytes() for entry in entries]
        assert found == [*PICTURES, PICTURES[0]]
        assert "pictures: 4 pictures fetched, 0 were there, 2 failed" in said
        assert "skipped 1: download: HTTP 404 (not found) (products.csv:8)" in said
        assert "skipped 1: download: a web page instead of a picture (products.csv:7)" in said
        before = server.counts()
        assert before == dict.fromkeys(paths, 1)
        assert clip_prep.main(arguments) == 0
        assert server.counts() == before and json.loads((tmp_path / "all.json").read_text()) == entries
        run_create("--json", "all.json", "--output-dir", "shards", "--num-workers", 0, cwd=tmp_path)


def test_without_the_flag_the_reason_names_it(tmp_path, capsys):
    (tmp_path / "here.jpg").write_bytes(PICTURES[0])
    table = write_table(tmp_path, ["http://h/0.jpg", "here.jpg"])
    assert clip_prep.main(table_arguments(table, tmp_path / "all.json")) == 0
    assert "skipped 1: image is a URL (--download DIR fetches it) (products.csv:2)" in capsys.readouterr().out


def test_only_the_split_that_is_asked_for_is_fetched(tmp_path):
    pages = {f"/{number}.jpg": answer(PICTURES[0]) for number in range(12)}
    with WebServer(pages) as server:
        table = write_table(tmp_path, [server.address + path for path in pages])
        more = ["--download", tmp_path / "pictures", "--valid-fraction", 0.5, "--download-rate", 1000]
        assert clip_prep.main([*table_arguments(table, tmp_path / "valid.json", *more), "--split", "valid"]) == 0
        entries = json.loads((tmp_path / "valid.json").read_text())
        assert len(server.requests) == len(entries) and 0 < len(entries) < 12


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--download", "d"], "--download belongs to --table"),
        (["--table", "t.csv", "--download-rate", "3"], "--download-rate belongs to --download"),
        (
            ["--table", "t.csv", "--download", "d", "--download-rate", "0"],
            "0 is not allowed: it takes a number above 0",
        ),
        (["--table", "t.csv", "--download", "d", "--download-limit", "nan"], "nan is not allowed"),
    ],
)
def test_flags_that_say_nothing_are_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        clip_prep.main(arguments)
    assert complaint in capsys.readouterr().err


def test_a_killed_download_goes_on_where_it_was(tmp_path):
    arrived, end = threading.Event(), threading.Event()

    def stuck(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(PICTURES[1])))
        request.end_headers()
        request.wfile.write(PICTURES[1][:1000])
        arrived.set()
        end.wait(20)

    with WebServer({"/0.jpg": answer(PICTURES[0]), "/1.jpg": stuck, "/2.jpg": answer(b"", 404)}) as server:
        table = write_table(tmp_path, [f"{server.address}/{number}.jpg" for number in range(3)])
        folder = tmp_path / "pictures"
        arguments = table_arguments(table, tmp_path / "all.json", "--download", folder)
        process = subprocess.Popen([sys.executable, str(ROOT / "clip_prep.py"), *arguments], cwd=tmp_path)
        assert arrived.wait(20)
        while not (list(folder.glob("0-*.jpg")) and b"404" in (folder / download.FAILURES).read_bytes()):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        end.set()
        (folder / ".1-abc.jpg.0123456789abcdef.partial").write_bytes(PICTURES[1][:1000])
        assert not list(folder.glob("1-*"))
        server.pages["/1.jpg"] = answer(PICTURES[1])
        clip_prep.main(arguments)
        assert server.counts() == {"/0.jpg": 1, "/1.jpg": 2, "/2.jpg": 1}
        assert not list(folder.glob(".*"))
        assert len(json.loads((tmp_path / "all.json").read_text())) == 2


def test_no_room_left_is_said_in_one_line(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    with WebServer({"/0.jpg": answer(PICTURES[0])}) as server:
        downloads = download.Downloads(tmp_path)
        monkeypatch.setattr(fetch, "atomic_write", full)
        with pytest.raises(OSError, match=f"no room left in {tmp_path} .*make room and run the same command again"):
            downloads.fetch([f"{server.address}/0.jpg"], MANNERS)


# -------------------------------------------------------------------------------------------- what it is made of


class Chunks:
    """Two bytes a read of what is left of the alphabet; breaks off after two reads, where it is to break."""

    def __init__(self, position, breaks):
        self.data, self.left, self.breaks = b"abcdefghij"[position:], 2, breaks

    def read(self, size):
        if self.breaks and not self.left:
            raise ConnectionResetError("gone")
        self.left -= bool(size)
        part, self.data = self.data[: min(size, 2)], self.data[min(size, 2) :]
        return part

    def close(self):
        pass


def test_a_stream_goes_on_where_it_broke_and_ends_once_nothing_helps():
    opened, slept = [], []

    def connect(position):
        opened.append(position)
        if position == 8:
            raise TimeoutError("no answer")
        return Chunks(position, breaks=True)

    stream = resuming.ResumingStream(connect, waits=(1, 2), sleep=lambda seconds, error: slept.append(seconds))
    with pytest.raises(TimeoutError):
        stream.read()
    assert (opened, slept) == ([0, 4, 8, 8], [1, 1, 2])
    stream = resuming.ResumingStream(lambda position: Chunks(position, position < 8), waits=(0,))
    assert stream.read() == b"abcdefghij"


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_what_no_further_attempt_helps_is_said_at_once(error):
    def connect(position):
        opened.append(position)
        raise error("no")

    opened = []
    with pytest.raises(error):
        resuming.ResumingStream(connect, waits=(0, 0))
    assert opened == [0]
