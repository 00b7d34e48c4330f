"""LoRA for OpenCLIP's towers: which matrices get low-rank additions, and what a file holds of them.

Targets go by what a matrix does, in every kind of tower: `qkv` are attention's inputs, `out` its output, `mlp` the layers
after it. They are found by the names that open_clip, timm and transformers give them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from clip_finetuning.model import low_rank
from clip_finetuning.model.fingerprint import SCALARS, fingerprint
from clip_finetuning.model.low_rank import Lora

# Parameters and linear layers that hold attention's inputs, with the parts that are stacked in their rows.
PACKED = {
    **dict.fromkeys(("in_proj_weight", "qkv", "Wqkv", "qkv_proj"), ("q", "k", "v")),
    "kv": ("k", "v"),
    "query_key_value": ("",),  # the rows of the three lie between each other: one pair for all
}
APART = {
    form.format(part)
    for form in ("{}_proj_weight", "{}_proj", "{}", "{}_lin")
    for part in ("q", "k", "v")
} | {form.format(part) for form in ("{}", "{}_proj") for part in ("query", "key", "value")}  # fmt: skip
# The layers after attention: those in a module of this name, or of these names beside an attention.
FEED_FORWARD = ("mlp", "ffn", "feed_forward", "DenseReluDense", "intermediate", "output")
BESIDE = ("fc1", "fc2", "ffn", "ffn_output")


class Matrix(NamedTuple):
    """A weight that may get additions."""

    name: str  # as in the model's state dict
    module: nn.Module
    attribute: str
    target: str
    tower: str  # "image" or "text"
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """The weights that additions belong to."""

    name: str  # of the architecture
    pretrained: str  # tag or file
    fingerprint: str


@dataclass(frozen=True)
class Added:
    """What a model's additions are, and of what."""

    settings: Lora
    base: Base
    counts: Mapping[tuple[str, str], int]  # of matrices, by tower and target

    def __str__(self) -> str:
        """What was added to what, and what was not found."""
        towers = []
        for tower in ("image", "text"):
            there = [f"{count} {target}" for (where, target), count in self.counts.items() if where == tower]
            missing = [target for target in self.settings.chosen if (tower, target) not in self.counts]
            none = f" (it has no {' or '.join(missing)})" if missing and there else ""
            towers.append(f"{', '.join(there) or 'nothing'} in the {tower} tower{none}")
        return f"rank {self.settings.rank}, alpha {self.settings.alpha:g}, added to {'; '.join(towers)}"


def add(clip_model: Any, lora: Lora, seed: int = 0) -> Added:
    """Give a ClipModel additions, which train with the scalars of the loss while all else is locked; its output stays.

    What was added is noted in `clip_model.lora`. The same `seed` draws the same additions on every machine and device.
    Raises ValueError for unknown targets, for a rank that is larger than a matrix, and if there is nothing to add to.
    """
    model: nn.Module = clip_model.model
    chosen = lora.chosen
    wanted = [matrix for matrix in matrices(model) if matrix.target in chosen]
    if not wanted:
        raise ValueError(
            f"TUNE=lora finds no matrices for LORA_TARGETS={lora.targets} in {clip_model.name}: choose other targets, "
            "or another TUNE"
        )
    _check_rank(wanted, lora.rank)
    base = Base(clip_model.name, clip_model.pretrained, fingerprint(model.state_dict()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in SCALARS)  # these train beside the additions
    generator = torch.Generator().manual_seed(seed)
    for matrix in wanted:
        low_rank.attach(matrix.module, matrix.attribute, matrix.parts, lora, generator)
    clip_model.lora = Added(lora, base, Counter((matrix.tower, matrix.target) for matrix in wanted))
    return clip_model.lora


def _check_rank(wanted, rank):
    for matrix in wanted:
        rows, columns = getattr(matrix.module, matrix.attribute).shape
        smaller = min(rows // len(matrix.parts), columns)
        if rank > smaller:
            raise ValueError(
                f"LORA_RANK={rank} is larger than the matrix {matrix.name}, {rows // len(matrix.parts)} x {columns}: "
                f"set it to at most {smaller}, or leave {matrix.target} out of LORA_TARGETS"
            )


def merged(state_dict: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The weights of a model with additions, in which they are, under open_clip's own names, from its state dict."""
    return low_rank.with_additions(low_rank.without_additions(state_dict), low_rank.additions(state_dict), scale)


# ------------------------------------------------------------------------------------------------------ the matrices


def matrices(model: nn.Module) -> Iterator[Matrix]:
    """The weights of both towers that may get additions, in the order of the model's modules."""
    modules = dict(model.named_modules())
    attentions = {name for name, module in modules.items() if _is_attention(module)}
    for path, module in modules.items():
        tower = _tower(path)
        if tower is None:
            continue
        for attribute in [name for name, _ in module.named_parameters(recurse=False) if path in attentions]:
            if attribute in PACKED or attribute in APART:
                yield Matrix(f"{path}.{attribute}", module, attribute, "qkv", tower, PACKED.get(attribute, ("",)))
        target = _target(path, modules, attentions) if isinstance(module, nn.Linear) else None
        if target is not None:
            parts = PACKED.get(path.rpartition(".")[2], ("",)) if target == "qkv" else ("",)
            yield Matrix(f"{path}.weight", module, "weight", target, tower, parts)


def _tower(path):
    if path.startswith("visual."):
        return "image"
    return (
        "text" if path.startswith(("text.", "transformer.")) else None
    )  # not CoCa's decoder, which retrieval leaves out


def _is_attention(module):
    held = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 2]
    held += [name for name, child in module.named_children() if isinstance(child, nn.Linear)]
    return any(name in PACKED for name in held) or sum(name in APART for name in held) > 1


def _target(path, modules, attentions):
    """What a linear layer does, or None if it is none of the targets."""
    holder, _, leaf = path.rpartition(".")
    outer, _, place = holder.rpartition(".")
    if holder in attentions:
        return "qkv" if leaf in PACKED or leaf in APART else "out"
    # transformers' BERT: ATTENTION.self.query, and beside that ATTENTION.output.dense
    inner = {f"{outer}.self", f"{outer}.attention"}
    if place == "output" and outer.endswith("attention") and inner & attentions:
        return "out"
    if path.startswith("visual.head.") or "rel_pos" in path:  # timm's: the last projection, and tables of positions
        return None
    beside = leaf in BESIDE and any(name.startswith(f"{holder}.") for name in attentions)
    return "mlp" if place in FEED_FORWARD or beside else None
