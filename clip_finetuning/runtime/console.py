"""What a command says when something goes wrong: one line and an exit code, and warnings that are seen once."""

import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from clip_finetuning.runtime import command_line, machine_error, signals
from clip_finetuning.runtime.out_of_memory import is_out_of_memory
from clip_finetuning.runtime.text import printable

_at_end: list[Callable[[int], None]] = []


def at_end(call: Callable[[int], None]) -> None:
    """Let a command call `call(exit code)` as its last act, after every message."""
    _at_end.append(call)


def run(main: Callable[[], int | None], page: ModuleType) -> NoReturn:
    """Call `main()` as a command: a user's mistake ends in one line and exit code 2, a signal in its own (`signals`).

    `page` holds the knobs; where DEBUG is on, the traceback is shown instead of the line.
    """
    for stream in (sys.stdout, sys.stderr):  # a caption that the console cannot show is no reason to stop
        if hasattr(stream, "reconfigure"):  # a notebook's has no such thing, and no need of it
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    signals.raise_on_stop()
    try:
        code = _exit_code(main, page)
    except (Exception, SystemExit) as error:
        if not _at_end:
            raise
        code = error.code if isinstance(error, SystemExit) else None
        if not isinstance(code, int):
            traceback.print_exc()
            code = 1
    for call in _at_end:
        call(code or 0)
    sys.exit(code)


def _exit_code(main, page) -> int | None:
    try:
        return main()
    except KeyboardInterrupt as stop:
        word, code = signals.word_for(stop)
        print(word, file=sys.stderr)
        return code
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if command_line.debug_is_on(page):
            raise
        message = " ".join(str(error).split())
        if is_out_of_memory(error):
            first = (str(error).splitlines() or ["of the machine"])[0]
            message = f"out of memory: lower BATCH_SIZE, or MICRO_BATCH_SIZE in training ({first})"
        elif isinstance(error, RuntimeError):
            failed = machine_error.explain(error)
            if failed is None:  # a mistake of this code
                raise
            message = f"{failed}; --debug shows where"
        print(f"{os.path.basename(sys.argv[0])}: error: {printable(message)}", file=sys.stderr)
        return 2


def warn(text: str) -> None:
    """A line that is seen among progress bars and redirected output alike."""
    if int(os.environ.get("RANK", 0)) == 0:  # one log, also under torchrun
        print(f"WARNING: {text}", file=sys.stderr, flush=True)
