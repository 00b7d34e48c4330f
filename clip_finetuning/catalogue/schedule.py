"""Whose turn it is when many URLs of several hosts are fetched: no host is asked more often than is polite."""

import heapq
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

from clip_finetuning.runtime.http import host_of

SILENT = 10  # pictures in a row without an answer; a host is given up then
LONGEST, FASTER = 10.0, 0.98  # seconds between requests to a host that is overrun; what each answer takes off them
LOOK_AGAIN = 0.2  # seconds: a host may have been told to wait, or all may be over


class Schedule:
    """Hands out URLs to threads: the next one is of the host that may be asked soonest."""

    def __init__(self, urls: Iterable[str], rate: float) -> None:
        self._shortest = 1 / rate
        self._intervals: dict[str, float] = defaultdict(lambda: self._shortest)
        self._lock = threading.Lock()
        self._urls: dict[str, deque[str]] = defaultdict(deque)
        for url in urls:
            self._urls[host_of(url)].append(url)
        # (when it may be asked, at the earliest; order; host): one entry for each host that has URLs.
        self._turns = [(0.0, number, host) for number, host in enumerate(self._urls)]
        self._next: dict[str, float] = defaultdict(float)
        self._silent: Counter[str] = Counter()

    def take(self) -> str | None:
        """The next URL, once its host may be asked; None when there is none left."""
        while True:
            with self._lock:
                if not self._turns:
                    return None
                turn, number, host = heapq.heappop(self._turns)
                now, ready = time.monotonic(), self._next[host]
                if ready <= now:
                    url = self._urls[host].popleft()
                    self._next[host] = now + self._intervals[host]
                    if self._urls[host]:
                        heapq.heappush(self._turns, (self._next[host], number, host))
                    return url
                heapq.heappush(self._turns, (ready, number, host))
            if ready == turn:  # else it was told to wait since, and another one may be first
                time.sleep(min(ready - now, LOOK_AGAIN))

    def wait(self, url: str, seconds: float) -> None:
        """Sleep so long, and until the host of a URL may be asked again."""
        host = host_of(url)
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                now = time.monotonic()
                ready = max(end, self._next[host])
                if ready <= now:
                    self._next[host] = now + self._intervals[host]
                    return
            time.sleep(min(ready - now, LOOK_AGAIN))

    def pause(self, url: str, seconds: float) -> None:
        """Leave the host of a URL alone for so long, since it asked for that, and ask it half as often from then on."""
        with self._lock:
            host, now = host_of(url), time.monotonic()
            if self._next[host] <= now + self._intervals[host]:  # else another thread was told the same
                self._intervals[host] = min(2 * self._intervals[host], max(LONGEST, self._shortest))
            self._next[host] = max(self._next[host], now + seconds)

    def note(self, url: str, answered: bool) -> list[str]:
        """Note whether a host answered -> the URLs that are given up, since it did not so many times in a row."""
        with self._lock:
            host = host_of(url)
            self._silent[host] = 0 if answered else self._silent[host] + 1
            self._intervals[host] = max(self._shortest, self._intervals[host] * FASTER)
            if self._silent[host] < SILENT:
                return []
            self._turns = [turn for turn in self._turns if turn[2] != host]
            heapq.heapify(self._turns)
            given_up = list(self._urls[host])
            self._urls[host].clear()
            return given_up

    def stop(self) -> None:
        """Hand out no more."""
        with self._lock:
            self._turns = []
