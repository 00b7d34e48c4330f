"""Many pictures at a time, by threads, into one folder: each file whole or not at all."""

import contextlib
import errno
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue.remote_picture import fetch_picture, file_name
from clip_finetuning.catalogue.schedule import Schedule
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.http import HttpError

THREADS = 16
TOO_SLOW = 120.0  # seconds of an attempt; nothing else bounds a server that trickles
LOOK = 0.5  # seconds between looks at what takes too long
NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class Manners(NamedTuple):
    """How often a host is asked, and how much of it is taken."""

    rate: float  # requests a second and host
    most_bytes: int  # of a picture


class Failure(NamedTuple):
    """A URL that gave no picture, the reason in one of a few wordings, and whether another attempt may help."""

    url: str
    reason: str
    detail: str
    again: bool


def fetch_all(urls: Sequence[str], folder: Path, manners: Manners) -> Iterator[Failure | None]:
    """Fetch URLs into a folder, in any order -> for each of them None, or why it could not be had.

    Raises OSError if the folder cannot be written.
    """
    crew = _Crew(urls, folder, manners)
    try:
        yield from crew.results()
    finally:
        crew.schedule.stop()


class _Crew:
    """The threads, and what is known of their work by the one that waits for it."""

    def __init__(self, urls: Sequence[str], folder: Path, manners: Manners) -> None:
        self.schedule = Schedule(urls, manners.rate)
        self.folder, self.manners = folder, manners
        self.waiting = set(urls)
        self._begun: dict[str, float] = {}  # URL -> when
        self._done: queue.SimpleQueue[tuple[str, Failure | Exception | None]] = queue.SimpleQueue()
        for _ in range(min(THREADS, len(urls))):
            self._start_thread()

    def results(self) -> Iterator[Failure | None]:
        while self.waiting:
            found: list[tuple[str, Failure | Exception | None]] = [*self._too_slow()]
            with contextlib.suppress(queue.Empty):
                found.append(self._done.get(timeout=LOOK))
            for url, outcome in found:
                if url not in self.waiting:  # one that came after all
                    continue
                if isinstance(outcome, Exception):
                    raise self._explained(outcome)
                self.waiting.discard(url)
                yield outcome
                silent = outcome is not None and outcome.reason in ("no connection", "timed out", "too slow")
                for other in self.schedule.note(url, not silent):
                    self.waiting.discard(other)
                    yield Failure(other, "host does not answer", f"as for {url}", True)

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()  # the last one may wait for a server for ever

    def _work(self) -> None:
        while (url := self.schedule.take()) is not None:
            self._begun[url] = time.monotonic()
            try:
                outcome = self._fetch(url)
            except Exception as error:  # whatever it is, the one who waits must hear of it
                outcome = error
            is_mine = self._begun.pop(url, None) is not None
            self._done.put((url, outcome))
            if not is_mine:  # given up, and another thread has this one's place
                return

    def _fetch(self, url: str) -> Failure | None:
        def sleep(seconds: float, error: OSError) -> None:
            if getattr(error, "wait", None):
                self.schedule.pause(url, seconds)
            if url in self._begun:
                self._begun[url] = math.inf  # what a host asks for is not its slowness
            self.schedule.wait(url, seconds)
            if url in self._begun:
                self._begun[url] = time.monotonic()

        try:
            data = fetch_picture(url, self.manners.most_bytes, sleep)
        except HttpError as error:
            return Failure(url, error.reason, error.detail, error.temporary)
        with atomic_write(self.folder / file_name(url)) as temporary:
            temporary.write_bytes(data)
        return None

    def _too_slow(self) -> list[tuple[str, Failure | None]]:
        late = time.monotonic() - TOO_SLOW
        urls = [url for url, begun in list(self._begun.items()) if begun < late and self._begun.pop(url, None)]
        for _ in urls:
            self._start_thread()
        return [(url, Failure(url, "too slow", f"not there after {TOO_SLOW:g} seconds", True)) for url in urls]

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            what = f"no room left in {self.folder} ({error})"
            return OSError(f"{what}; what is there is whole: make room and run the same command again")
        return error
