"""Low-rank additions to weight matrices (LoRA, Hu et al. 2021, arXiv:2106.09685), as parametrizations of torch.

W becomes W + alpha / rank * B A wherever W is read, by open_clip's code as by `fast_towers`: B (out, rank) begins at zero,
so at first W is what it was, to the bit. A matrix that holds several, such as attention's `in_proj_weight`, gets a pair
for each of them. It is computed at each reading, up to three times a forward pass (nn.MultiheadAttention looks at its
weight before it multiplies): keeping it for a pass (`parametrize.cached`) measures the same on the CPU, and would not be
there when gradient checkpointing reads it again.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

TARGETS = ("qkv", "out", "mlp")
PLACE = ".parametrizations."  # how torch names what belongs to a parametrized weight: MODULE + this + WEIGHT.original


@dataclass(frozen=True)
class Lora:
    """How additions are made: the settings LORA_*."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str = ",".join(TARGETS)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    @property
    def chosen(self) -> list[str]:
        """The targets one by one; ValueError for one that is none."""
        names = [name.strip() for name in self.targets.split(",")]
        unknown = [name for name in names if name not in TARGETS]
        if unknown:
            raise ValueError(
                f"LORA_TARGETS={self.targets} is not allowed: '{unknown[0]}' is none of {', '.join(TARGETS)}; "
                "name one or more of these, with commas between them"
            )
        return names


class LowRank(nn.Module):
    """The additions to one weight (out, in): for each of its `parts`, stacked in its rows, A (rank, in) and B (out / parts, rank).

    Dropout cannot act on the inputs of a layer from here, but on the columns of A by which they are multiplied. That drops
    the same inputs for all tokens of a forward pass, where a dropout of its own would draw others for each token; the
    expected value is the same. In evaluation nothing is dropped.
    """

    def __init__(
        self, weight: torch.Tensor, parts: tuple[str, ...], lora: Lora, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.parts, self.scale, self.dropout = parts, lora.scale, lora.dropout
        rows, columns = weight.shape
        bound = 1 / math.sqrt(columns)  # as nn.Linear draws its weight
        for part in parts:
            a = torch.empty(lora.rank, columns).uniform_(-bound, bound, generator=generator)
            b = torch.zeros(rows // len(parts), lora.rank)
            for name, value in ((f"A{part}", a), (f"B{part}", b)):
                self.register_parameter(name, nn.Parameter(value.to(weight)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        a = torch.stack([getattr(self, f"A{part}") for part in self.parts])
        b = torch.stack([getattr(self, f"B{part}") for part in self.parts])
        if self.training and self.dropout:
            kept = torch.empty_like(a[:, :1]).bernoulli_(1 - self.dropout)
            a = a * (kept / (1 - self.dropout))
        return _sum(weight, a, b, self.scale)


def _sum(weight, a, b, scale):
    """(out, in) + scale * B A, for stacked pairs (P, rank, in) and (P, out / P, rank); in the weight's own precision."""
    with torch.autocast(weight.device.type, enabled=False):
        parts = weight.unflatten(0, (len(a), -1))
        return torch.baddbmm(parts, b, a, alpha=scale).flatten(0, 1)


def attach(
    module: nn.Module, attribute: str, parts: tuple[str, ...], lora: Lora, generator: torch.Generator | None
) -> None:
    """Add to the weight that a module has under that name; the weight itself is locked."""
    weight = getattr(module, attribute)
    weight.requires_grad_(False)
    parametrize.register_parametrization(module, attribute, LowRank(weight, parts, lora, generator))


# ------------------------------------------------------------------------------------------- in a state dict and a file


def is_addition(name: str) -> bool:
    """Whether a parametrized model's parameter of that name is an addition."""
    return PLACE in name and not name.endswith(".original")


def additions(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The additions of a parametrized model's state dict, named by the weight that they belong to: WEIGHT.A, WEIGHT.Bq..."""
    found = {}
    for key in filter(is_addition, state_dict):
        module, _, rest = key.rpartition(PLACE)
        weight, name = rest.split(".0.")
        found[f"{module}.{weight}.{name}"] = state_dict[key]
    return found


def with_additions(state_dict: Mapping[str, torch.Tensor], added: Mapping[str, torch.Tensor], scale: float) -> dict:
    """A plain state dict whose weights are those of `state_dict`, which has no additions, with the `added` ones in them."""
    merged = dict(state_dict)
    for weight, pairs in by_weight(added).items():
        a, b = (torch.stack([pairs[f"{side}{part}"] for part in parts_of(pairs)]) for side in "AB")
        merged[weight] = _sum(merged[weight], a.to(merged[weight]), b.to(merged[weight]), scale)
    return merged


def without_additions(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plain state dict, under the model's own names, of the weights that a parametrized model's additions add to."""
    plain = {}
    for key, value in state_dict.items():
        module, parametrized, rest = key.rpartition(PLACE)
        if not parametrized:
            plain[key] = value
        elif rest.endswith(".original"):
            plain[f"{module}.{rest.removesuffix('.original')}"] = value
    return plain


def by_weight(added: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{weight: {"A": (rank, in), "B": (out, rank)}} of additions, with `Aq`, `Bq`... for a weight of several parts."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in added.items():
        weight, _, name = key.rpartition(".")
        found.setdefault(weight, {})[name] = value
    return found


def parts_of(pairs: Mapping[str, torch.Tensor]) -> list[str]:
    """The parts of a weight that a `by_weight` entry has pairs for, in their order."""
    return [name[1:] for name in pairs if name.startswith("A")]


def low_ranks(model: nn.Module) -> Iterator[LowRank]:
    """The additions of a model."""
    return (module for module in model.modules() if isinstance(module, LowRank))
