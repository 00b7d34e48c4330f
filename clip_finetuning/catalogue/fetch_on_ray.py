"""Fetches pictures on the machines of a Ray cluster, which share the folder, and the manners."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clip_finetuning.catalogue.fetch import Failure, Manners, fetch_all
from clip_finetuning.catalogue.remote_picture import file_name
from clip_finetuning.runtime import ray_tasks

URLS_A_TASK = 500  # what the death of a machine costs, at most: files that are there are not fetched again


class Batch(NamedTuple):
    """What one task fetches."""

    urls: list[str]
    folder: Path
    manners: Manners


def fetch_on_ray(address: str, urls: Sequence[str], folder: Path, manners: Manners) -> Iterator[Failure | None]:
    """As `fetch_all`: for each URL, in any order, None or why it could not be had. Raises OSError."""
    if not urls:
        return
    failed = set()
    with ray_tasks.connected(address) as processors:
        parts = [list(urls[start : start + URLS_A_TASK]) for start in range(0, len(urls), URLS_A_TASK)]
        at_once = min(processors, len(parts))
        share = manners._replace(rate=manners.rate / at_once)
        batches = [Batch(part, folder, share) for part in parts]
        for outcomes in ray_tasks.run(_fetch_batch, batches, at_once):
            failed |= {failure.url for failure in outcomes if failure}
            yield from outcomes
    missing = [url for url in urls if url not in failed and not (folder / file_name(url)).is_file()]
    if missing:
        raise OSError(
            f"{missing[0]} was fetched, and is not in {folder}: with --ray all machines must share that folder"
        )


def _fetch_batch(batch: Batch) -> list[Failure | None]:
    batch.folder.mkdir(parents=True, exist_ok=True)
    wanted = [url for url in batch.urls if not (batch.folder / file_name(url)).is_file()]
    there: list[Failure | None] = [None] * (len(batch.urls) - len(wanted))
    return there + list(fetch_all(wanted, batch.folder, batch.manners))
