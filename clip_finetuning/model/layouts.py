"""Where the weights lie in what a file holds: under which key, behind which prefix, averaged or not.

Trainers wrap a model in many ways. A model is known by its image tower: whatever stands before `visual.` (open_clip,
OpenAI) or `vision_model.` (transformers) in the names is a prefix, and what lies beside it belongs to something else. Where
a file holds the model twice, the average of the weights is taken, which is what its trainer evaluated. All but the two
prefixes that everybody knows is said in one line.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from clip_finetuning.model.fingerprint import SCALARS
from clip_finetuning.model.torch_archive import Thing, tensors_of
from clip_finetuning.runtime.text import printable

Weights = dict[str, torch.Tensor]

USUAL_KEYS = ("state_dict", "model_state_dict", "model")
TOWERS = ("visual", "vision_model", "image_encoder")  # open_clip's and OpenAI's, transformers', MobileCLIP's own
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # never part of a name
USUAL_PREFIX = re.compile(r"(module\.)*")  # DistributedDataParallel's
AVERAGED = {"ema", "teacher", "average", "averages", "averaged", "avg", "shadow", "swa", "polyak", "modelema"}
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # as in emaModel
NO_MODEL = {"optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler", "exp_avg", "rng", "momentum"}
DEEPEST = 4  # dictionaries in dictionaries


class Found(NamedTuple):
    """The weights of one model, under which key they lay ("" for the top), and what to say of them ("" for nothing)."""

    weights: Weights
    key: str
    remark: str


class _Place(NamedTuple):
    """Weights of a model: the keys that lead to their dictionary, and what stands before their names."""

    keys: tuple[str, ...]
    prefix: str
    weights: Weights
    others: list[str]  # names beside the model's

    @property
    def is_averaged(self) -> bool:
        return _is_averaged(*self.keys, self.prefix)

    def __str__(self) -> str:
        return printable(".".join([*self.keys, self.prefix]).strip(".") or "the top of the file")[:80]


def find(content: Mapping[Any, Any]) -> Found:
    """The weights that a file's contents hold. Raises ValueError if there are none, or several models to choose from."""
    tables = list(_tables(content, ()))
    places = [place for keys, weights in tables for place in _models(keys, weights)]
    if places:
        chosen = _choose(places)
        scalars, told = _scalars_elsewhere(chosen, tables)
        remark = "; ".join(filter(None, (_remark(chosen, places, [*scalars]), told)))
        return Found({**chosen.weights, **dict(scalars.values())}, ".".join(chosen.keys), remark)
    usual = [table for table in tables if table[0] in [(key,) for key in USUAL_KEYS]] or tables
    if not usual:
        raise ValueError("holds no weights: no tensors under 'state_dict' or at its top level")
    keys, weights = max(usual, key=lambda table: (not _is_averaged(*table[0]), len(table[1])))
    return Found({USUAL_PREFIX.sub("", name, count=1): value for name, value in weights.items()}, ".".join(keys), "")


def _tables(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Weights]]:
    """(the keys that lead to it, a dictionary with tensors by name) of all that lie in a file's contents."""
    if isinstance(content, Thing) and content.attributes:
        weights: Any = tensors_of(content)
    elif isinstance(content, Mapping):
        weights = content
    else:
        return
    tensors = {WRAPPERS.sub("", str(key)): value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield keys, tensors
    if len(keys) < DEEPEST:
        for key, value in content.items():
            if str(key).lower() not in NO_MODEL:
                yield from _tables(value, (*keys, str(key)))


def _models(keys: tuple[str, ...], weights: Weights) -> list[_Place]:
    """The models whose weights lie in one dictionary, each by the prefix of its image tower."""
    shared = os.path.commonprefix(list(weights))  # noqa: RUF071 - by letters: clip_visual.proj
    stripped = {name.removeprefix(shared): value for name, value in weights.items()}
    if shared and any(name.split(".")[0] in TOWERS for name in stripped):  # also where it looks like a tower itself
        return [place._replace(prefix=shared + place.prefix) for place in _models(keys, stripped)]
    prefixes = {prefix for name in weights if (prefix := _prefix(name)) is not None}
    places, left = [], dict(weights)
    for prefix in sorted(prefixes, key=lambda prefix: -len(prefix)):  # a blank one would take them all
        own = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
        places.append((prefix, own))
    return [_Place(keys, prefix, own, list(left)) for prefix, own in places]


def _prefix(name: str) -> str | None:
    """What stands before the image tower in a name; None in a name of something else."""
    parts = name.split(".")
    for number, part in enumerate(parts[:-1]):
        if part in TOWERS:
            return "".join(f"{part}." for part in parts[:number])
    return None


def _is_averaged(*names: str) -> bool:
    return any(AVERAGED & set(re.split(r"[^a-z]+", HUMP.sub("_", name).lower())) for name in names)


def _choose(places: list[_Place]) -> _Place:
    """The averaged weights if there are any, else those under a key that all trainers use, else the only ones.

    A teacher of other shapes than all the rest is no average, but another model to learn from.
    """
    averaged = [place for place in places if place.is_averaged and _has_a_like(place, places)]
    plain = [place for place in places if not place.is_averaged]
    usual = [place for key in USUAL_KEYS for place in plain if place.keys[:1] == (key,)]
    rest = averaged or [place for place in usual if place.keys == usual[0].keys] or plain
    if len(rest) > 1:
        raise ValueError(
            f"holds several models, in {', '.join(map(str, rest))}; save the state dict of one as a file of its own"
        )
    return rest[0]


def _has_a_like(place: _Place, places: list[_Place]) -> bool:
    others = [other for other in places if not other.is_averaged]
    return not others or any(_shapes(other) == _shapes(place) for other in others)


def _shapes(place):
    return {name: value.shape for name, value in place.weights.items() if name not in SCALARS}


def _scalars_elsewhere(chosen: _Place, tables: list[tuple[tuple[str, ...], Weights]]):
    """({where: (name, value)} of the loss's scalars that lie beside the model, as losses of their own keep them; what to say)."""
    found = {}
    for scalar in SCALARS:
        places = [
            (name if keys == chosen.keys else ".".join([*keys, name]), value)
            for keys, weights in tables
            for name, value in weights.items()
            if name.rpartition(".")[2] == scalar and value.numel() == 1
        ]
        if scalar not in chosen.weights and len(places) == 1:
            found[places[0][0]] = scalar, places[0][1]
    return found, "; ".join(f"its {name} is {printable(where)[:60]}" for where, (name, _) in found.items())


def _remark(chosen: _Place, places: list[_Place], taken: list[str]) -> str:
    """One line on what is not to be expected, "" for nothing."""
    parts = []
    if len(chosen.keys) > 1 or (chosen.keys and chosen.keys[0] not in USUAL_KEYS):
        parts.append(f"the weights are those under '{printable('.'.join(chosen.keys))[:80]}'")
    if not USUAL_PREFIX.fullmatch(chosen.prefix):
        parts.append(f"their names are read without '{printable(chosen.prefix)[:80]}'")
    others = [str(place) for place in places if place is not chosen]
    if others:
        why = "the average of the weights is taken" if chosen.is_averaged else "this one is taken"
        parts.append(f"{why}, not {', '.join(others)}")
    others = [name for name in chosen.others if name not in taken]
    if others:
        parts.append(f"{len(others)} tensors of something else are left out ({printable(others[0])[:60]})")
    return "; ".join(parts)
