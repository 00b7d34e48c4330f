"""Ctrl-C, SIGTERM and SIGHUP as a wish that the training looks at between two steps, an evaluation between two batches."""

import contextlib
import os
import signal
import sys

from clip_finetuning.runtime import distributed, signals


class StopSignals:
    """Signals ask the training to stop after the current step; the second Ctrl-C ends it at once."""

    def __init__(self):
        self.number = 0  # of the signal that came to this process; 0: none

    def wished(self) -> bool:
        """Whether a signal came to any of the processes; all of them must ask."""
        return distributed.any_rank(bool(self.number))

    def agreed(self) -> signal.Signals:
        """The signal by which all processes stop; all of them must ask, after `wished()`."""
        return signal.Signals(max(distributed.gather_objects(self.number)))

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._request) for number in signals.heeded()}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, _):
        self.number = number
        signals.leave_terminal(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the system's own handler works even where Python's cannot run
        if int(os.environ.get("RANK", 0)) == 0:
            with contextlib.suppress(OSError):
                print(
                    "\nstopping after this step, with a checkpoint; Ctrl-C again ends at once",
                    file=sys.stderr,
                    flush=True,
                )
