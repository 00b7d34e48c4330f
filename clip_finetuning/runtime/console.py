"""What a command says when something goes wrong: one line and an exit code, and warnings that are seen once."""

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from clip_finetuning.runtime import command_line
from clip_finetuning.runtime.out_of_memory import is_out_of_memory
from clip_finetuning.runtime.text import printable


def run(main: Callable[[], int | None], page: ModuleType) -> NoReturn:
    """Call `main()` as a command: a user's mistake ends in one line and exit code 2, Ctrl-C in exit code 130.

    `page` holds the knobs; where DEBUG is on, the traceback is shown instead of the line.
    """
    for stream in (sys.stdout, sys.stderr):  # a caption that the console cannot show is no reason to stop
        if hasattr(stream, "reconfigure"):  # a notebook's has no such thing, and no need of it
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if command_line.debug_is_on(page):
            raise
        message = " ".join(str(error).split())
        if is_out_of_memory(error):
            first = (str(error).splitlines() or ["of the machine"])[0]
            message = f"out of memory: lower BATCH_SIZE, or MICRO_BATCH_SIZE in training ({first})"
        elif isinstance(error, RuntimeError):
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {printable(message)}", file=sys.stderr)
        sys.exit(2)


def warn(text: str) -> None:
    """A line that is seen among progress bars and redirected output alike."""
    if int(os.environ.get("RANK", 0)) == 0:  # one log, also under torchrun
        print(f"WARNING: {text}", file=sys.stderr, flush=True)
