"""The optimizer and the learning rate: AdamW with decay on matrices only, Muon, and schedules as pure functions of the step."""

import contextlib
import math
from collections.abc import Mapping

import torch
from torch import nn

from clip_finetuning.model.low_rank import LowRank
from clip_finetuning.training.muon import CombinedOptimizer, Muon

MUON_RATE = 20  # Muon's rate in units of the learning rate: its usual 0.02 where AdamW's is the usual 1e-3
# Parameters that belong to no layer of their own, and by which activations are multiplied.
PROJECTIONS = ("proj", "text_projection")
KERNELS = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def create_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    kind: str = "adamw",
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer | CombinedOptimizer:
    """The optimizer of a model's trainable parameters; `kind` is "adamw", or "muon" for Muon and AdamW side by side.

    rates: {parameter name: factor of the learning rate}, as `model.tuning` has them; without it the same rate everywhere.

    AdamW comes in its fused form where the device has one, which does all parameters in one call; the default one is 8
    times slower for small models on the CPU. Muon takes the `hidden_matrices`, AdamW what is left, with weight decay on
    those of it that are `decaying`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters: unlock at least one tower")
    chosen = {id(p) for p in hidden_matrices(model)} if kind == "muon" else set()
    decay = {id(p) for p in decaying(model)}
    for_muon = [(name, p) for name, p in named if id(p) in chosen]
    rest = [(name, p) for name, p in named if id(p) not in chosen]
    factors = rates or {}
    groups = [  # the names go into the checkpoint
        *_by_rate([(name, p) for name, p in rest if id(p) in decay], factors, weight_decay=weight_decay),
        *_by_rate([(name, p) for name, p in rest if id(p) not in decay], factors, weight_decay=0.0),
    ]
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for _, p in rest)
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
    optimizer = adamw
    if for_muon:
        muon = Muon(_by_rate(for_muon, factors, MUON_RATE), lr=learning_rate, weight_decay=weight_decay)
        optimizer = CombinedOptimizer(muon, adamw)
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def _by_rate(named, factors, times=1, **options):
    """A group of parameters for each rate, the highest first; the rate stands in units of the learning rate."""
    groups: dict[float, list] = {}
    for name, parameter in named:
        groups.setdefault(times * factors.get(name, 1), []).append((name, parameter))
    return [{"params": groups[rate], "rate": rate, **options} for rate in sorted(groups, reverse=True)]


def decaying(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that weight decay is for: matrices and kernels that activations are multiplied by, token embeddings.

    Not biases, gains of norms and of layers (LayerScale), class and register tokens, queries of a pooling, embeddings of
    positions and token types, tables of relative positions, scales of logits: pulling those to zero regularises nothing.
    What kind a parameter is, the layer that it belongs to tells, for names differ from library to library.
    """
    tokens = _token_embeddings(model)
    return [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_multiplied(module, name, parameter) or (module in tokens and name == "weight")
    ]


def _is_multiplied(module, name, parameter):
    if isinstance(module, LowRank):
        return True
    if isinstance(module, KERNELS):
        return name == "weight"
    if isinstance(module, (nn.Embedding, *NORMS)):
        return False
    # Attention keeps several matrices as in_proj_weight, q_proj_weight...; a gain may have the shape (C, 1, 1).
    return sum(size > 1 for size in parameter.shape) > 1 and (name.endswith("weight") or name in PROJECTIONS)


def _token_embeddings(model):
    """The layers that look up tokens, of open_clip's towers and of Hugging Face's."""
    found = set()
    for module in model.modules():
        found.add(getattr(module, "token_embedding", None))
        if hasattr(module, "get_input_embeddings"):
            with contextlib.suppress(NotImplementedError):  # a part of a model that has none
                found.add(module.get_input_embeddings())
    return found


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices that activations are multiplied by: of linear layers, attention, LoRA, and the two projections.

    Not those of which rows are looked up or added (token and position embeddings, queries of a pooling), and no kernels.
    """
    layers = (nn.Linear, nn.MultiheadAttention, LowRank)
    return [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 2 and parameter.requires_grad and (isinstance(module, layers) or name in PROJECTIONS)
    ]


def load_state(optimizer: torch.optim.Optimizer | CombinedOptimizer, model: nn.Module, state_dict: dict) -> list[str]:
    """Give the optimizer the moments of a checkpoint, to each parameter by its name; all else stays as this run has it.

    -> names of the parameters that decayed when the checkpoint was written, and no longer do. Raises ValueError if the
    checkpoint has other parameters.
    """
    saved = state_dict["param_groups"]
    numbers = [number for group in saved for number in group["params"]]
    names = [name for group in saved for name in group.get("param_names", ())] or _names_before(model, saved)
    own = optimizer.state_dict()["param_groups"]
    wanted = [name for group in own for name in group["param_names"]]
    if sorted(names) != sorted(wanted) or len(names) != len(numbers):
        other = sorted({*names} ^ {*wanted})[:3]
        raise ValueError(
            f"the checkpoint's optimizer has {len(numbers)} parameters, the model trains {len(wanted)} "
            f"({', '.join(other)} ...): start a new run with the checkpoint as MODEL_PRETRAINED"
        )
    moments = {name: state_dict["state"].get(number) for name, number in zip(names, numbers)}
    places = zip(wanted, (number for group in own for number in group["params"]))
    state = {number: _copied(moments[name]) for name, number in places if moments[name] is not None}
    optimizer.load_state_dict({"state": state, "param_groups": own})
    return sorted(_decayed(saved, names) - _decayed(own, wanted))


def _copied(moments):
    """Moments of their own: those of a mapped checkpoint would keep its file on the disk after it was deleted."""
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in moments.items()}


def _decayed(groups, names):
    """Those of the names that are in groups with weight decay."""
    names = iter(names)
    return {name for group in groups for _, name in zip(group["params"], names) if group["weight_decay"]}


def _names_before(model, groups):
    """Names in the order of a checkpoint from before they were saved: Muon's, two and more dimensions, and the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = {id(p) for p in hidden_matrices(model)} if "momentum" in groups[0] else set()

    def place(name, parameter):
        flat = any(word in name for word in ("positional_embedding", "pos_embed", "cls_token", "bias"))
        return 0 if id(parameter) in muon else 1 if parameter.ndim >= 2 and not flat else 2

    return [name for name, p in sorted(named, key=lambda pair: place(*pair))]


def pick_optimizer(name: str, model: nn.Module, batch_size: int, untrained: bool) -> str:
    """`adamw` or `muon`; `auto` takes Muon to train from random weights, AdamW for weights that were trained before.

    A matrix of side `width` costs Muon about 4 width / (tokens in the batch) of what it costs in the step itself. With
    the 50 or so tokens of an image or a caption that is a third where the batch is a quarter of the width; below, `auto`
    stays with AdamW.
    """
    if name != "auto":
        return name
    width = max((min(p.shape) for p in hidden_matrices(model)), default=0)
    return "muon" if untrained and 4 * batch_size >= width > 0 else "adamw"


def usual_learning_rate(untrained: bool) -> float:
    """1e-3 to train from random weights, 1e-5 to fine-tune: a hundredth, for what was learnt is to stay."""
    return 1e-3 if untrained else 1e-5


def count_moments(optimizer: torch.optim.Optimizer | CombinedOptimizer) -> int:
    """How many numbers the optimizer keeps: AdamW two for each of its parameters, Muon one."""
    sizes = [(sum(p.numel() for p in g["params"]), "momentum" in g) for g in optimizer.param_groups]
    return sum(size if is_muon else 2 * size for size, is_muon in sizes)


def set_learning_rate(optimizer: torch.optim.Optimizer | CombinedOptimizer, learning_rate: float) -> None:
    """Each group moves at its `rate` times the learning rate; `MUON_RATE` is in that of Muon's groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


def learning_rate_at(step: int, *, peak: float, total_steps: int, warmup_steps: int, schedule: str = "cosine") -> float:
    """The learning rate of step `step` of `total_steps`, counted from 0.

    Linear warmup: `peak * (step + 1) / warmup_steps`, so that no step has rate 0. Then `constant`, or half a cosine from
    `peak` at the first step after the warmup towards 0 just after the last one (SGDR, arXiv:1608.03983).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def warmup_complaints(warmup_steps: int, total_steps: int) -> list[str]:
    """A sentence if the warmup takes more than half of the training: the peak rate would hardly be used."""
    if warmup_steps <= total_steps / 2:
        return []
    return [
        f"WARMUP_STEPS={warmup_steps} is more than half of the {total_steps} steps of this training: set it to at "
        f"most {total_steps // 2} (about {max(1, total_steps // 10)} is usual), or train longer"
    ]
