"""Ctrl-C and SIGTERM as a wish that the training looks at between two steps, an evaluation between two batches."""

import signal
import sys

from clip_finetuning.runtime import distributed


class StopSignals:
    """Ctrl-C and SIGTERM ask the training to stop after the current step; the second Ctrl-C ends it at once."""

    def __init__(self):
        self.requested = ""

    def wished(self) -> bool:
        """Whether a signal came to any of the processes; all of them must ask."""
        return distributed.any_rank(bool(self.requested))

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, _):
        self.requested = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the system's own handler works even where Python's cannot run
        print("\nstopping after this step, with a checkpoint; Ctrl-C again ends at once", file=sys.stderr, flush=True)
