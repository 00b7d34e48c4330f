"""Independent jobs as tasks of a Ray cluster: one whose machine dies is done again on another.

The machines need the packages of requirements.txt; this suite's own code is sent to them. They run in the folder that the
command was given in, so that relative paths mean the same: it must be on a file system that all of them see.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
ATTEMPTS = 5  # of a job whose machine or process dies
SECONDS = 10.0  # to reach a cluster
PACKAGE = Path(__file__).parents[1]


@contextmanager
def connected(address: str) -> Iterator[int]:
    """A context with the cluster -> how many of its processors there are. Raises ValueError and ConnectionError.

    `address` as Ray has it: `auto` finds a running cluster, `local` starts one on this machine, else HOST:6379 or ray://HOST:10001.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked the user
    try:
        import ray
    except ImportError:
        raise ValueError('--ray needs Ray, which is not installed: pip install -e ".[ray]"') from None
    start: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _look_for(address)
        ray.init(
            address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"py_modules": [str(PACKAGE)]},
            **start,
        )
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "start one with `ray start --head`, or give --ray local"
        raise ConnectionError(f"--ray {address}: no cluster there ({first}); {remedy}") from error
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _look_for(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would look for minutes."""
    place = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    if place:
        socket.create_connection((place[1], int(place[2])), SECONDS).close()


def run(function: Callable[[Job], Result], jobs: Sequence[Job], at_once: int) -> Iterator[Result]:
    """`function(job)` of each job, `at_once` at a time, as they end. Raises what the function raised, and OSError."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    # Ray pickles by name what can be imported, which the machines can.
    task = ray.remote(_in_folder).options(max_retries=ATTEMPTS)
    folder, waiting, running = os.getcwd(), list(reversed(jobs)), []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(task.remote(folder, function, waiting.pop()))
        done, running = ray.wait(running)
        try:
            yield from ray.get(done)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OSError(
                f"a machine of the cluster failed {ATTEMPTS} times ({first}); run the same command again"
            ) from error


def _in_folder(folder: str, function: Callable[[Job], Result], job: Job) -> Result:
    try:
        os.chdir(folder)
    except OSError as error:
        raise not_shared(folder) from error
    return function(job)


def not_shared(path: str | os.PathLike) -> OSError:
    """The error of a machine that does not see what the one sees that gave it the job."""
    machine = os.uname().nodename if hasattr(os, "uname") else "a machine"
    return OSError(
        f"{machine} does not see {path} as the machine that runs the command does: --ray needs a shared file system"
    )
