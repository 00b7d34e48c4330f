"""The numbers of a training run: a console line, metrics.jsonl, TensorBoard."""

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm


class Clock:
    """Throughput and the share of time spent waiting for data, over the steps since the last log line."""

    def __init__(self) -> None:
        self._samples, self._waiting, self._working = 0, 0.0, 0.0
        self._steps = 0
        self.restart()
        self._begin = self._mark

    def restart(self) -> None:
        """Time that passed since the last step, on an evaluation or a checkpoint say, does not count."""
        self._mark = time.perf_counter()

    def data_arrived(self) -> None:
        """The batch is here: what passed was waiting."""
        self._waiting += self._since_mark()

    def step_done(self, samples: int) -> None:
        """The step is done: what passed was work."""
        self._working += self._since_mark()
        self._samples += samples
        self._steps += 1

    def lap(self) -> dict[str, float]:
        """{samples_per_second, data_wait} since the last lap; data_wait is a share between 0 and 1."""
        seconds = max(self._waiting + self._working, 1e-9)
        numbers = {"samples_per_second": self._samples / seconds, "data_wait": self._waiting / seconds}
        self._samples, self._waiting, self._working = 0, 0.0, 0.0
        return numbers

    def seconds_left(self, steps: int) -> float:
        """How long so many more steps take if they go like those until now, evaluations and checkpoints included."""
        return steps * (self._mark - self._begin) / max(1, self._steps)

    def _since_mark(self):
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed


class Recorder:
    """Writes every logged number to the console, to metrics.jsonl and, if asked, to TensorBoard; nowhere without a folder."""

    def __init__(self, folder: Any | None, tensorboard: bool = False) -> None:
        self._folder, self._board, self._tensorboard = folder, None, tensorboard
        self.last = {}  # the last evaluation's and the last log line's numbers
        self._first_step, self._resumed_from = 0, None
        if tensorboard and folder is not None:
            try:
                import torch.utils.tensorboard  # noqa: F401 - before the training, not at its first line
            except ImportError as error:
                raise ValueError("TENSORBOARD is true, but tensorboard is missing: pip install tensorboard") from error

    def go_on(self, step: int, last: Mapping[str, Any]) -> None:
        """Take up a run after this step, with the `last` numbers of its checkpoint."""
        self.last, self._first_step, self._resumed_from = dict(last), step + 1, step

    def log_training(
        self,
        record: Mapping[str, Any],
        speed: Mapping[str, float],
        progress: Any,
        total_steps: int,
        epochs: int | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Two lines of the training, of 80 columns: `record` of the step, `speed` from the clock; `epochs`: of the whole run."""
        numbers = {**{name: float(value) for name, value in record.items()}, **speed}
        numbers["skipped_steps"] = progress.skipped_steps
        tqdm.write(
            f"step {progress.step}/{total_steps}  loss {numbers['loss']:.4f}  lr {numbers['learning_rate']:.2e}  "
            f"logit scale {numbers['logit_scale']:.2f}"
        )
        parts = [f"epoch {progress.epoch + 1}{f'/{epochs}' if epochs else ''}"]
        parts += [f"{numbers['samples_per_second']:.0f} samples/s", f"data wait {numbers['data_wait']:.0%}"]
        parts += [] if seconds_left is None else [f"{timedelta(seconds=round(seconds_left))} left"]
        best = "best of both" if progress.keep == "both" else "best Recall@10"
        parts += [] if progress.best_score is None else [f"{best} {progress.best_score:.4f}"]
        tqdm.write("  " + "  ".join(parts))
        self._write({"step": progress.step, "epoch": progress.epoch, **numbers})

    def log_evaluation(
        self, results: Mapping[str, Any], score: float, progress: Any, retention: Mapping[str, Any] | None = None
    ) -> None:
        """Two lines of an evaluation: Recall@10 in both directions, and its mean beside that of others; as many of retention."""
        both = progress.keep == "both" and retention is not None
        best = None if both else progress.best_score
        self._say(
            "validation", results, progress, {"mean": score, "best": best, "before training": progress.first_score}
        )
        numbers = {"mean_recall@10": score, **_numbers(results)}
        if retention is not None:
            kept = mean_recall(retention)
            told = {"mean": kept, "before training": progress.first_retention}
            if both:
                numbers["mean_of_both"] = told["both"] = progress.kept_score(score, kept)
                told["best"] = progress.best_score
            self._say("retention", retention, progress, told)
            of_retention = {"mean_recall@10": kept, **_numbers(retention)}
            numbers |= {f"retention/{name}": value for name, value in of_retention.items()}
        self._write({"step": progress.step, "epoch": progress.epoch, **numbers})

    @staticmethod
    def _say(what, results, progress, told):
        recalls = results["recall@10"].items()
        words = "  ".join(f"{way.replace('_to_', '->')} {recall:.4f}" for way, recall in recalls)
        tqdm.write(f"step {progress.step}  {what} Recall@10  {words}")
        later = ("best", "before training") if progress.step == 0 else ()
        parts = [f"{name} {value:.4f}" for name, value in told.items() if value is not None and name not in later]
        tqdm.write("  " + "  ".join(parts))

    def _write(self, numbers):
        # JSON knows no NaN and no infinity: a step that was skipped has null there
        numbers = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.last = {**self.last, **numbers}
        if self._folder is not None:
            resumed = {} if self._resumed_from is None else {"resumed_from": self._resumed_from}
            self._folder.log(numbers | resumed)
            self._resumed_from = None
        if self._tensorboard and self._folder is not None:
            board = self._opened_board(self._folder.path)
            for name, value in numbers.items():
                if value is not None:
                    board.add_scalar(name, value, numbers["step"])

    def _opened_board(self, path):
        """The events file, at the first numbers; it hides later steps of the run that this one goes on with."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(path), purge_step=self._first_step)
        return self._board


def mean_recall(results: Mapping[str, Any]) -> float:
    """The mean Recall@10 of both directions."""
    return sum(results["recall@10"].values()) / 2


def _numbers(results):
    """Every recall in both directions, with the certainty of Recall@10, by name."""
    recalls = {name: value for name, value in results.items() if name.startswith("recall@")}
    numbers = {f"{name}/{way}": recall for name, ways in recalls.items() for way, recall in ways.items()}
    return numbers | _certainty(results)


def _certainty(results):
    """Recall@10's interval and chance in both directions, by name; none where no sample had an embedding."""
    protocol = results.get("protocols", {}).get("product", {})
    found = {}
    for way in results["recall@10"]:
        numbers, name = protocol.get(way, {}), f"recall@10/{way}"
        if "intervals" in numbers:
            low, high = numbers["intervals"]["recall@10"]
            found |= {f"{name}/low": low, f"{name}/high": high, f"{name}/chance": numbers["chance"]["recall@10"]}
    return found


def progress_bar(total: int, done: int, shown: bool) -> tqdm:
    """A bar over the steps on a terminal, nothing elsewhere."""
    return tqdm(total=total, initial=done, unit="step", disable=None if shown else True)
