"""The pictures of a table's URLs in a folder: each URL is fetched once, and never again while its file is there.

    wanted = Wanted()
    wanted.read(open_table(..., of_url=wanted.picture))
    downloads = Downloads("pictures")
    print(downloads.fetch(wanted.urls, Manners(rate=20, most_bytes=20_000_000)))
    open_table(..., of_url=downloads.picture)  # has files where the URLs were

`failures.jsonl` in the folder says which could not be had, a line each, and whether another attempt may help: of these,
the next run tries those alone.
"""

import collections
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clip_finetuning.catalogue.fetch import Failure, Manners, fetch_all
from clip_finetuning.catalogue.remote_picture import absolute, file_name, too_large
from clip_finetuning.catalogue.rows import RowError, Source
from clip_finetuning.catalogue.summary import skipped_lines
from clip_finetuning.runtime.atomic_write import atomic_write, remove_leftovers
from clip_finetuning.runtime.text import printable

OfUrl = Callable[[str], tuple[str, str]]  # (path, file name) of a URL's picture; raises RowError
FetchAll = Callable[[Sequence[str], Path, Manners], Iterator[Failure | None]]
FAILURES = "failures.jsonl"


class Wanted:
    """Stands in for the Downloads while a table is read for its URLs."""

    def __init__(self) -> None:
        self.urls: dict[str, None] = {}  # each once, in the table's order

    def read(self, source: Source) -> None:
        """Read a table that was opened with `of_url=self.picture`."""
        rows = tqdm(source.rows, total=source.total, unit=" rows", desc="looking for URLs", disable=None)
        collections.deque(rows, maxlen=0)

    def picture(self, url: str) -> tuple[str, str]:
        """Note a URL. Raises RowError."""
        self.urls[absolute(url)] = None
        raise RowError("not downloaded yet")


class Downloads:
    """What a folder has of the web, and what it could not get."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.failures, self.damaged_lines = read_failures(self.folder / FAILURES)

    def picture(self, url: str) -> tuple[str, str]:
        """(path, file name) of a URL's picture. Raises RowError with the reason why there is none."""
        url = absolute(url)
        path = self.folder / file_name(url)
        if not path.is_file():
            failure = self.failures.get(url)
            raise RowError(f"download: {failure.reason if failure else 'not tried'}")
        return path.as_posix(), path.name

    def fetch(self, urls: Iterable[str], manners: Manners, fetch_all: FetchAll = fetch_all) -> str:
        """Fetch what is not there -> what was done, in lines. Raises OSError if the folder cannot be written.

        `fetch_all` is `fetch.fetch_all`, or another one that does it elsewhere.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        urls = list(urls)
        missing = [url for url in urls if not (self.folder / file_name(url)).is_file()]
        hopeless = {url: self.failures[url] for url in missing if self._is_hopeless(url, manners)}
        tried = [url for url in missing if url not in hopeless]
        self.failures = hopeless
        self._write_failures()
        bar = tqdm(fetch_all(tried, self.folder, manners), total=len(tried), unit=" pictures", disable=None)
        with open(self.folder / FAILURES, "a", encoding="utf-8") as log:
            for failure in filter(None, bar):
                self.failures[failure.url] = failure
                log.write(_line_of(failure))
                log.flush()
                bar.set_postfix(failed=len(self.failures), refresh=False)
        there = len(urls) - len(missing)
        return "\n".join(map(printable, self._report(len(urls) - there - len(self.failures), there, len(tried))))

    def _is_hopeless(self, url: str, manners: Manners) -> bool:
        failure = self.failures.get(url)
        if failure is None or failure.again:
            return False
        limit = too_large(manners.most_bytes).reason  # another one may help
        return failure.reason == limit or not failure.reason.startswith(limit.split("than")[0])

    def _write_failures(self) -> None:
        with atomic_write(self.folder / FAILURES) as temporary:
            temporary.write_text("".join(map(_line_of, self.failures.values())), encoding="utf-8")

    def _report(self, fetched: int, there: int, tried: int) -> list[str]:
        failures = self.failures.values()
        lines = [f"{self.folder}: {fetched:,} pictures fetched, {there:,} were there, {len(failures):,} failed"]
        reasons = collections.defaultdict(list)
        for failure in failures:
            reasons[failure.reason].append(failure.url)
        lines += [f"  {line}" for line in skipped_lines(reasons)]
        if failures:
            again = sum(failure.again for failure in failures)
            lines.append(
                f"  {self.folder / FAILURES} lists them; the same command tries {again:,} again that may succeed"
            )
        if self.damaged_lines:
            lines.append(f"  {self.damaged_lines:,} damaged lines of {FAILURES} told nothing: those were tried again")
        return lines


def read_failures(path: Path) -> tuple[dict[str, Failure], int]:
    """({URL: Failure} of a list that an earlier run wrote, how many of its lines say none)."""
    if not path.is_file():
        return {}, 0
    failures, damaged = {}, 0
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        fields: list[Any] = [values.get(name) for name in Failure._fields] if isinstance(values, dict) else []
        if list(map(type, fields)) == [str, str, str, bool] and fields[1].strip():
            failures[fields[0]] = Failure(*fields)
        else:
            damaged += 1
    return failures, damaged


def _line_of(failure: Failure) -> str:
    return json.dumps(failure._asdict()) + "\n"  # escaped: half of a character in a URL is no UTF-8
