"""Ctrl-C, SIGTERM and a terminal that hangs up: what they raise in a command, and the exit code that a scheduler reads."""

import contextlib
import multiprocessing
import os
import signal
import threading
from typing import NoReturn

# Windows has no SIGHUP.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "ended, since the terminal hung up"}


class StoppedBySignal(KeyboardInterrupt):
    """A signal asks the command to end; whoever minds Ctrl-C minds the others too."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def exit_code(number: int) -> int:
    """What a shell calls the end by a signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


def word_for(stop: KeyboardInterrupt) -> tuple[str, int]:
    """(what to say of a command that a signal ended, its exit code)."""
    number = getattr(stop, "number", signal.SIGINT)
    return WORDS[signal.Signals(number).name], exit_code(number)


def heeded() -> list[int]:
    """The signals that end this process if nobody minds them: `nohup` has it ignore SIGHUP, and so it stays."""
    return [number for number in STOPS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]


def raise_on_stop() -> None:
    """Let these signals raise StoppedBySignal in the main thread, where files are left whole on the way out."""
    for number in heeded():
        with contextlib.suppress(ValueError):  # not the main thread: then signals are another's business
            signal.signal(number, _stop)


def ignore() -> None:
    """In a worker: a signal to the whole group is for the main process, which still needs its workers."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def leave_terminal(number: int) -> None:
    """After SIGHUP: writing to a terminal that is gone would be an error, so what is said from now on goes nowhere."""
    if signal.Signals(number).name != "SIGHUP":
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _stop(number: int, _: object) -> NoReturn:
    if multiprocessing.parent_process() is not None:  # a worker that inherited this
        os._exit(exit_code(number))
    leave_terminal(number)
    threading.excepthook = lambda _: None  # a pool's own thread, which finds its workers gone
    for child in multiprocessing.active_children():
        if not child.daemon:  # of a process pool, which would be waited for until all its work is done
            child.kill()
    raise StoppedBySignal(number)
