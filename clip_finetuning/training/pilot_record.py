"""What is kept of pilots: rates.json says what they are of, what each came to in every round, and which rate was chosen.

It is written whole after every pilot's round. Pilots of other settings, data or weights are moved out of the way, not taken.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from clip_finetuning.model.fingerprint import fingerprint
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import printable
from clip_finetuning.training import knobs
from clip_finetuning.training.halving import Halving, Outcome
from clip_finetuning.training.state import Run

FOLDER, FILE = "pilots", "rates.json"
# Settings that decide over a pilot; the rate is what is tried, and the warmup follows from the steps.
DECISIVE = [
    *knobs.MODEL[:2],
    *(name for name in knobs.MATHEMATICAL if name not in ("LEARNING_RATE", "WARMUP_STEPS")),
    "KEEP",
]


@dataclass
class Record:
    """The contents of rates.json."""

    of: dict[str, Any]  # what decides over the pilots
    start: dict[str, Any] | None = None  # the evaluation before the first step, the same for all
    outcomes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # {rate: {step: fields of Outcome}}
    chosen: float | None = None

    def outcome(self, rate: float, step: int) -> Outcome | None:
        """What the pilot of a rate came to by a step, or None if it is not there yet."""
        found = self.outcomes.get(repr(rate), {}).get(str(step))
        return None if found is None else Outcome(**found)

    def note(self, rate: float, step: int, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes.setdefault(repr(rate), {})[str(step)] = asdict(outcome)

    def numbers(self) -> list[dict[str, Any]]:
        """All outcomes for a log: what is small of them."""
        return [
            {"rate": float(rate), **{name: value for name, value in outcome.items() if name != "by_product"}}
            for rate, outcomes in self.outcomes.items()
            for outcome in outcomes.values()
        ]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all, into the folder of the pilots."""
        with atomic_write(path / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read(path: Path) -> Record | None:
    """The record in a folder of pilots, or None if there is none that can be used."""
    try:
        record = Record(**json.loads((path / FILE).read_text(encoding="utf-8")))
        for outcomes in record.outcomes.values():
            for outcome in outcomes.values():
                Outcome(**outcome)
        json.dumps(record.of["rates"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return record


def take_up(path: Path, of: dict[str, Any]) -> Record:
    """The record of just these pilots, as far as they are done; a folder of others is renamed, which is said."""
    if not path.exists():
        return Record(of)
    found = read(path)
    if found is None:
        why = f"without a {FILE} that can be read"
    elif names := [name for name in of if found.of.get(name) != of[name]]:
        why = "of " + "; ".join(_change(name, found.of.get(name), of[name]) for name in names)
    else:
        return found
    number = next(n for n in range(1, 10**6) if not path.with_name(f"earlier_{path.name}_{n}").exists())
    aside = path.rename(path.with_name(f"earlier_{path.name}_{number}"))
    print(printable(f"{path} held other pilots, {why}: they are now in {aside} (delete it if you do not need it)"))
    return Record(of)


def _change(name, before, now):
    if name in ("start", "training data"):
        return f"other {name}" if name == "training data" else "another start"
    return f"{name}={before}, not {now}"


def described(run: Run, halving: Halving, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What decides over the pilots of a run, as plain data; `weights`: those that all begin with."""
    decisive = {
        **{name: run.plan.settings[name] for name in DECISIVE},
        "rates": list(halving.rates),
        "steps of a round": halving.round_steps,
        "steps of the training": run.plan.total_steps,
        "steps of its warmup": run.plan.warmup_steps,
        "training data": run.loader.state(),
        "validation samples": _samples(run.valid_loader),
        "retention samples": _samples(run.retention_loader),
        "start": fingerprint(weights),
    }
    return json.loads(json.dumps(decisive))


def _samples(loader):
    return 0 if loader is None else loader.num_samples
