"""The contenders of `fine_tuning.py`: one start, the same samples, different ways to train."""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.fine_tuning_data import BATCH_SIZE, Kept, shuffled

WARMUP = 10  # a tenth of the steps warm up, where a recipe warms up
PEER, PLAIN, OURS = "open_clip_train", "plain AdamW loop", "ours, no ingredient"
# What a contender changes of the settings of "ours, no ingredient"; "kind" is what the anchor matches.
INGREDIENTS: dict[str, dict[str, Any]] = {
    "anchor 0.3, embeddings": {"anchor": 0.3, "kind": "embeddings"},
    "anchor 1, embeddings": {"anchor": 1.0, "kind": "embeddings"},
    "anchor 3, embeddings": {"anchor": 3.0, "kind": "embeddings"},
    "anchor 1, similarities": {"anchor": 1.0, "kind": "similarities"},
    "anchor 1, both": {"anchor": 1.0, "kind": "both"},
    "average 0.98": {"ema_decay": 0.98},
    "layer decay 0.7": {"layer_decay": 0.7},
    "image tower alone": {"tune": "image"},
    "text tower alone": {"tune": "text"},
    "head alone": {"tune": "head"},
    "LoRA, rank 16": {"tune": "lora"},
    "temperature first": {"fit_temperature": True},
    "statistics first, 20 steps": {"warm_statistics": 20},
    "temperature and statistics first": {"fit_temperature": True, "warm_statistics": 20},
    "Muon": {"optimizer": "muon"},
}
SHARES = (0.1, 0.2, 0.3, 0.5)  # of the start, for interpolation after the training


def train(name: str, start: Any, kept: list[Kept], rate: float, seed: int) -> Any:
    """A contender, from a start (a ClipModel, left as it is) over all kept batches -> the trained ClipModel."""
    clip_model = copy.copy(start)
    clip_model.model = copy.deepcopy(start.model)
    if name == PEER:
        train_peer(clip_model, kept, rate, seed)
    elif name == PLAIN:
        train_plain(clip_model, kept, rate, seed)
    else:
        return train_ours(clip_model, start, kept, rate, seed, **changes_of(name))
    return clip_model


def changes_of(name: str) -> dict[str, Any]:
    """The settings that "ours" has in a contender; a combination's name joins those of its parts by " + "."""
    changes: dict[str, Any] = {}
    for part in name.split(" + "):
        changes |= {} if part == OURS else INGREDIENTS[part]
    return changes


# ---------------------------------------------------------------------------------------------------------- ours


def train_ours(clip_model: Any, start: Any, kept: list[Kept], rate: float, seed: int, **changes: Any) -> Any:
    """Step after step of clipFineTuner.py, on batches that are there already."""
    from clip_finetuning.training import step as steps

    settings = {"optimizer": "adamw", "loss": "clip", "precision": "fp32"} | changes
    run = prepared(clip_model, start, kept, rate, seed, settings)
    with steps_of(clip_model.device):
        for number, batch in enumerate(run.batches):
            steps.train_step(clip_model, run.optimizer, run.scaler, batch, run.plan, step=number, **run.more)
    return run.finished()
