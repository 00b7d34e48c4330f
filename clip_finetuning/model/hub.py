"""What open_clip downloads, and the look whether it can: one request of a few seconds, before anything waits for minutes.

The clients of the hub and of urllib retry, and wait for ever for a network that swallows what is sent.
"""

import contextlib
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
from huggingface_hub import constants

PATIENCE = 4.0  # seconds for an answer
WEIGHTS, SAFE_WEIGHTS = (
    "open_clip_pytorch_model.bin",
    "open_clip_model.safetensors",
)  # what open_clip takes of a repository that says nothing else
CONFIG = "open_clip_config.json"
OUT_OF_ORDER = 500  # and above: the server answers that it cannot


class Wanted(NamedTuple):
    """A file that a model needs; `repository` is blank where it lies at a plain address."""

    address: str
    repository: str = ""
    names: tuple[str, ...] = ()  # under which it is in the cache

    def is_cached(self, cache_dir: str | None) -> bool:
        """Whether no network is needed for it."""
        if not self.repository:
            folder = cache_dir or os.path.expanduser("~/.cache/clip")  # open_clip's
            return os.path.isfile(os.path.join(folder, os.path.basename(self.address)))
        load = huggingface_hub.try_to_load_from_cache
        return any(isinstance(load(self.repository, name, cache_dir=cache_dir), str) for name in self.names)


def of_repository(repository: str, *names: str) -> Wanted:
    """A file of a repository on the hub, under the first of these names that it has."""
    return Wanted(f"{constants.ENDPOINT}/{repository}/resolve/main/{names[-1]}", repository, names)


def wanted_of(name: str, pretrained: str, config: Mapping[str, Any]) -> list[Wanted]:
    """What the model of a name, a tag and an architecture needs from elsewhere."""
    found = []
    if pretrained:
        cfg = open_clip.get_pretrained_cfg(name, pretrained) or {}
        repository, _, file = cfg.get("hf_hub", "").rpartition("/")
        file = file or WEIGHTS
        if repository:
            safe = SAFE_WEIGHTS if file == WEIGHTS else f"{os.path.splitext(file)[0]}.safetensors"
            found.append(of_repository(repository, safe, file))
        elif cfg.get("url"):
            found.append(Wanted(cfg["url"]))
    text = config.get("text_cfg", {})
    for key, file in (("hf_tokenizer_name", "tokenizer_config.json"), ("hf_model_name", "config.json")):
        source = text.get(key)
        if source and not os.path.isdir(source):
            found.append(of_repository(source, file))
    return found


@contextlib.contextmanager
def looked_at(wanted: Iterable[Wanted], cache_dir: str | None) -> Iterator[str]:
    """Within the context the hub is asked for nothing if all is there, or if it cannot be reached; yields why not, or "".

    Says what is about to be downloaded.
    """
    missing = [file for file in wanted if not file.is_cached(cache_dir)]
    reason = ""
    if missing and constants.HF_HUB_OFFLINE:
        reason = "it is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
    elif missing:
        reason, size = look(missing[0].address)
        if not reason:
            print(f"downloading {missing[0].address}{f', {size / 2**20:,.0f} MiB' if size else ''}", flush=True)
    if missing and not reason:
        yield ""
        return
    with _offline():
        yield reason


def look(address: str) -> tuple[str, int]:
    """(why an address cannot be reached, or "", size of what is there in bytes or 0), after PATIENCE seconds at most."""
    host = urlsplit(address).netloc
    answers: list[tuple[str, int]] = []
    # In a thread: looking up a name knows no time limit. A daemon, so that the end of the process does not wait for it.
    thread = threading.Thread(target=lambda: answers.append(_ask(address)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    problem, size = answers[0] if answers else (_no_answer(), 0)
    return (f"{host} cannot be reached: {problem}" if problem else ""), size


def _ask(address):
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "clip-finetuning"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return "", int(answer.headers.get("Content-Length") or 0)
    except urllib.error.HTTPError as error:  # a server that has no such file, or wants a password, is there
        return (f"it answers {error.code} {error.reason}" if error.code >= OUT_OF_ORDER else ""), 0
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # the hub's client may know another certificate
            return "", 0
        if isinstance(reason, TimeoutError):
            return _no_answer(), 0
        return " ".join(str(reason).split()) or type(reason).__name__, 0


def _no_answer():
    return f"no answer in {PATIENCE:.0f} seconds"


@contextlib.contextmanager
def _offline():
    """The hub's client takes what is in the cache, and asks nobody."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    _forget_sessions()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        _forget_sessions()


def _forget_sessions():
    """huggingface_hub before 1.0 asks by a session that was made online or offline."""
    reset = getattr(huggingface_hub.utils, "reset_sessions", None)
    if reset is not None:
        reset()
