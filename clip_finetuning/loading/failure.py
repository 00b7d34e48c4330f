"""An error of a worker on its way to the main process, as a value.

torch would make another error of it there, with the worker's whole traceback for a message, and calls the constructor
of its class, which may want other arguments.
"""

import pickle
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

T = TypeVar("T")


class WorkerTraceback(Exception):
    """Where in a worker an error was raised: the cause of what is raised in the main process."""


class Failure(NamedTuple):
    """What a worker yields instead of a batch, and then no more."""

    pickled: bytes  # (class, arguments, state); made in the worker, where one that cannot be sent would end in silence
    traceback: str

    def throw(self) -> NoReturn:
        """Raise the error as it was: of the same class, with the same message and attributes."""
        kind, arguments, state = pickle.loads(self.pickled)
        base: Any = _builtin_base(kind)
        error = base.__new__(kind, *arguments)
        base.__init__(error, *arguments)
        error.__setstate__(state)
        try:
            raise error from WorkerTraceback(f"in a worker of the loader:\n{self.traceback}")
        finally:
            del error  # its traceback holds this frame: a circle would keep the loader and its workers alive


def failures_as_values(batches: Iterable[T]) -> Iterator[T | Failure]:
    """The batches, and a Failure where making the next one raised an error."""
    try:
        yield from batches
    except Exception as error:
        yield _failure(error)


def _failure(error: Exception) -> Failure:
    """Of an error that cannot be sent whole, what can: without attributes, else of the built-in class that it is a kind of."""
    base: Any = _builtin_base(type(error))
    _, arguments, *state = base.__reduce__(error)
    text = "".join(traceback.format_exception(error))
    forms = [(type(error), arguments, *(state or [{}])), (type(error), arguments, {}), (base, arguments, {})]
    for form in forms:
        try:
            pickled = pickle.dumps(form)
            pickle.loads(pickled)
        except Exception:  # whatever a stranger's class does when it is pickled
            continue
        return Failure(pickled, text)
    return Failure(pickle.dumps((RuntimeError, (f"{type(error).__name__}: {error}",), {})), text)


def _builtin_base(kind: type[BaseException]) -> type[BaseException]:
    """The class that keeps the message: its constructor takes `args` as they are."""
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")
