"""The worker processes of a loader: how they start and end, and what is said of one that died."""

import atexit
import contextlib
import signal
import threading
import weakref
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

from torch.utils.data._utils import signal_handling

from clip_finetuning.runtime import signals

SECONDS_TO_END = 5.0  # for a process that has let go of its connections already

_died: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # torch's iterator -> what became of a worker
_waiting: list[Any] = []  # torch's iterator whose batch the main process waits for right now


class WorkerDied(ChildProcessError):
    """A worker process ended although there was work to do."""


def started(loader: Any) -> Any:
    """iter() of a DataLoader, with torch's handler for the end of a process replaced by one that chooses its moment.

    torch's raises wherever the main process is, in the middle of an update of the weights too.
    """
    is_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if is_main else None
    with _watched(loader._iterator):  # that of the last epoch, whose workers go on
        iterator = iter(loader)
    if is_main and loader.num_workers and not isinstance(before, _ChildEnded):
        signal.signal(signal.SIGCHLD, _ChildEnded(before))
    return iterator


class _ChildEnded:
    """A signal handler: whoever waits for a batch is told at once if a worker died."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, number: int, frame: Any) -> None:
        if callable(self.before) and not str(self.before.__module__).startswith("torch."):
            self.before(number, frame)
        for iterator in [one for one in _waiting if one is not None]:  # they have a length, which they cannot tell
            check(iterator)


def batches_of(iterator: Any) -> Iterator[Any]:
    """The batches of torch's iterator. Raises WorkerDied."""
    while True:
        with _watched(iterator):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def _watched(iterator: Any) -> Iterator[None]:
    """Raises WorkerDied if one of its workers has died before, or dies while the main process waits for it."""
    if iterator is not None:
        check(iterator)
    _waiting.append(iterator)
    try:
        yield
    except Exception:  # torch's own word for a dead worker, a reset connection to it, half a message
        _wait_for_an_end(getattr(iterator, "_workers", []))
        if iterator is not None:
            check(iterator)
        raise
    finally:
        _waiting.remove(iterator)


def _wait_for_an_end(processes: list[Any]) -> None:
    """A process lets go of its connections a moment before the system knows how it ended."""
    ended = connection.wait([process.sentinel for process in processes], SECONDS_TO_END) if processes else []
    for process in processes:
        if process.sentinel in ended:
            process.join(SECONDS_TO_END)


def check(iterator: Any) -> None:
    """Raises WorkerDied, after the end of the other workers, if one has died."""
    if iterator in _died:  # torch takes an error of the handler above for one of its queue
        raise WorkerDied(_died[iterator])
    for worker in getattr(iterator, "_workers", []):
        if worker.exitcode and not iterator._shutdown:
            _died[iterator] = _message(worker.exitcode)
            _abandon(iterator)
            raise WorkerDied(_died[iterator])


def _message(exit_code: int) -> str:
    """What became of a worker, and what helps."""
    if exit_code > 0:
        return f"a worker of the loader ended by itself with exit code {exit_code}; NUM_WORKERS=0 shows why"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-exit_code).name
        if name == "SIGKILL":
            return "a worker of the loader was killed (SIGKILL), mostly for want of memory: lower NUM_WORKERS or BATCH_SIZE"
        if name == "SIGBUS":
            return (
                "a worker of the loader was killed (SIGBUS): /dev/shm is full, or a disk failed; lower NUM_WORKERS or "
                "BATCH_SIZE, or make room (with Docker, `--shm-size=1g`)"
            )
        return f"a worker of the loader was killed by {name}; NUM_WORKERS=0 does without workers"
    return f"a worker of the loader was killed by signal {-exit_code}; NUM_WORKERS=0 does without workers"


def _abandon(iterator: Any) -> None:
    """End the workers by force. One that died may have held a lock, and half a message: nothing is to wait for it."""
    iterator._shutdown = True  # else torch would end them its own way, now or at the exit, and wait
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
        iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    for queue in [*iterator._index_queues, iterator._worker_result_queue]:
        queue.cancel_join_thread()


def end_at_exit(loader: Any) -> None:
    """At the exit, before multiprocessing does: it would send SIGTERM, which workers ignore, and wait for ever."""
    atexit.register(_end_of, weakref.ref(loader))


def _end_of(reference: Any) -> None:
    loader = reference()
    if loader is not None:
        end(loader)


def end(loader: Any) -> None:
    """End the workers of a DataLoader; another iteration starts new ones."""
    iterator = loader._iterator  # a private name, which other libraries end workers by too
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()  # one that did not listen
    loader._iterator = None


def ignore_signals(_: int) -> None:
    """In a worker: they are for the main process, which still needs its batches."""
    signals.ignore()
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the parent's would look after workers that are none of its own
