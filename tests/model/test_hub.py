"""Whether what a model needs can be downloaded is known within seconds, and no longer asked where all of it is there."""

import contextlib
import http.server
import re
import threading

import pytest
from huggingface_hub import constants

from clip_finetuning.model import building, hub, sources

TAG = ("ViT-B-32", "laion2b_s34b_b79k")


@contextlib.contextmanager
def server(answer):
    """A server on this machine -> (its address, the paths that it was asked for); `answer` is what its handler does."""
    asked, end = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            answer(self, end)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        threading.Thread(target=here.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{here.server_port}", asked
        finally:
            end.set()
            here.shutdown()


def says(code, **headers):
    def answer(handler, _):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


@pytest.mark.parametrize(
    ("answer", "problem", "size"),
    [
        (says(200, Content_Length="1048576"), "", 2**20),
        (says(404), "", 0),  # the client of the hub says best what that means
        (says(401), "", 0),
        (says(503), "cannot be reached: it answers 503 Service Unavailable", 0),
        (says(302, Location="http://127.0.0.1:9/elsewhere"), "cannot be reached: .*refused", 0),
    ],
)
def test_one_request_tells_whether_a_file_can_be_had(answer, problem, size):
    with server(answer) as (address, asked):
        reason, found = hub.look(f"{address}/file")
    assert (asked, found) == (["/file"], size)
    assert bool(reason) == bool(problem)
    assert re.search(problem, reason)


@pytest.mark.parametrize("name", [TAG[0], "hf-hub:somebody/model"])
def test_no_network_is_one_line_and_the_client_of_the_hub_is_not_asked(monkeypatch, tmp_path, name):
    """It would retry for a minute."""
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with server(lambda handler, end: end.wait(20)) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(ValueError, match=r"could not be had \(127.0.0.1:\d+ cannot be reached: no answer") as error:
            building.create_model(name, TAG[1] if name == TAG[0] else "", str(tmp_path))
    assert len(asked) <= 1 and "\n" not in str(error.value)
    assert not constants.HF_HUB_OFFLINE  # as before


def test_an_address_without_a_hub_is_looked_at_too(tmp_path):
    plain = hub.Wanted("http://127.0.0.1:9/weights.pt")
    with hub.looked_at([plain], str(tmp_path)) as reason:
        assert "127.0.0.1:9 cannot be reached" in reason and constants.HF_HUB_OFFLINE


def test_what_is_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "look", lambda _: pytest.fail("the network was asked"))
    (tmp_path / "weights.pt").touch()
    folder = tmp_path / "models--a--b" / "snapshots" / "c"
    folder.mkdir(parents=True)
    (folder / "file.bin").touch()
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c")
    wanted = [hub.Wanted("https://x/weights.pt"), hub.of_repository("a/b", "file.safetensors", "file.bin")]
    with hub.looked_at(wanted, str(tmp_path)) as reason:
        assert reason == "" and constants.HF_HUB_OFFLINE
    with hub.looked_at([], str(tmp_path)):
        pass


def test_a_download_is_announced_with_its_size(tmp_path, capsys):
    here = server(says(200, Content_Length=str(605 * 2**20)))
    with here as (address, _), hub.looked_at([hub.Wanted(f"{address}/weights.pt")], str(tmp_path)) as reason:
        assert reason == "" and not constants.HF_HUB_OFFLINE
    assert capsys.readouterr().out == f"downloading {address}/weights.pt, 605 MiB\n"


def test_what_the_user_forbade_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not in the cache, and HF_HUB_OFFLINE forbids"):
        building.create_model(*TAG, str(tmp_path))


def test_a_long_reason_is_cut_between_words():
    short = sources.in_short(ValueError("a reason of many words\nand lines " * 30))
    assert len(short) <= 300 and short.endswith(" ...")
    assert set(short.removesuffix(" ...").split()) <= {"a", "reason", "of", "many", "words", "and", "lines"}


@pytest.mark.parametrize(
    ("name", "pretrained", "config", "expected"),
    [
        (*TAG, {}, ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]),
        (TAG[0], "", {}, []),
        ("mine", "", {"text_cfg": {"hf_tokenizer_name": "c/d", "hf_model_name": "e/f"}}, ["c/d", "e/f"]),
    ],
)
def test_what_a_model_needs_from_elsewhere(name, pretrained, config, expected):
    assert [file.repository for file in hub.wanted_of(name, pretrained, config)] == expected
