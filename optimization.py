"""The optimizer and the learning rate: AdamW with decay on matrices only, Muon, and schedules as pure functions of the step."""

import math

import torch
from torch import nn

from muon import Muon, SideBySide

MUON_RATE = 20  # Muon's rate in units of the learning rate: its usual 0.02 where AdamW's is the usual 1e-3
NO_MATRICES = ("positional_embedding", "pos_embed", "cls_token", "bias")  # though some have two dimensions


def create_optimizer(model, *, learning_rate, weight_decay, betas, eps, kind="adamw"):
    """The optimizer of a model's trainable parameters; `kind` is "adamw", or "muon" for Muon and AdamW side by side.

    Only matrices decay (Linear and convolution weights, token embeddings, projections). Biases, gains of norms, class
    tokens, position embeddings, the logit scale and bias do not: pulling those to zero regularises nothing.
    AdamW comes in its fused form where the device has one, which does all parameters in one call; the default one is 8
    times slower for small models on the CPU. Muon takes `multiplied` matrices, AdamW what is left.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters: unlock at least one tower")
    for_muon = multiplied(model) if kind == "muon" else []
    chosen = {id(p) for p in for_muon}
    rest = [(name, p) for name, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for name, p in rest if is_matrix(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in rest if not is_matrix(name, p)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for _, p in rest)
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=eps, fused=fused)
    if not for_muon:
        return adamw
    muon = Muon([{"params": for_muon, "rate": MUON_RATE}], lr=MUON_RATE * learning_rate, weight_decay=weight_decay)
    return SideBySide(muon, adamw)


def is_matrix(name, parameter):
    """Whether weight decay is for this parameter."""
    return parameter.ndim >= 2 and not any(word in name for word in NO_MATRICES)


def multiplied(model):
    """The trainable matrices that activations are multiplied by: of linear layers, attention, and the two projections.

    Not those of which rows are looked up or added (token and position embeddings, queries of a pooling), and no kernels.
    """
    layers = (nn.Linear, nn.MultiheadAttention)
    return [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 2
        and parameter.requires_grad
        and (isinstance(module, layers) or name in ("proj", "text_projection"))
    ]


def pick_optimizer(name, model, batch_size, untrained):
    """`adamw` or `muon`; `auto` takes Muon to train from random weights, AdamW for weights that were trained before.

    A matrix of side `width` costs Muon about 4 width / (tokens in the batch) of what it costs in the step itself. With
    the 50 or so tokens of an image or a caption that is a third where the batch is a quarter of the width; below, `auto`
    stays with AdamW.
    """
    if name != "auto":
        return name
    width = max((min(p.shape) for p in multiplied(model)), default=0)
    return "muon" if untrained and 4 * batch_size >= width > 0 else "adamw"


def usual_learning_rate(untrained):
    """1e-3 to train from random weights, 1e-5 to fine-tune: a hundredth, for what was learnt is to stay."""
    return 1e-3 if untrained else 1e-5


def count_moments(optimizer):
    """How many numbers the optimizer keeps: AdamW two for each of its parameters, Muon one."""
    sizes = [(sum(p.numel() for p in g["params"]), "momentum" in g) for g in optimizer.param_groups]
    return sum(size if is_muon else 2 * size for size, is_muon in sizes)


def set_learning_rate(optimizer, learning_rate):
    """Muon's groups move at `MUON_RATE` times the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1)


def learning_rate_at(step, *, peak, total_steps, warmup_steps, schedule="cosine"):
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


def check_warmup(warmup_steps, total_steps):
    """Raise ValueError if the warmup takes more than half of the training: the peak rate would hardly be used."""
    if warmup_steps > total_steps / 2:
        raise ValueError(
            f"WARMUP_STEPS={warmup_steps} is more than half of the {total_steps} steps of this training: set it to at "
            f"most {total_steps // 2} (about {max(1, total_steps // 10)} is usual), or train longer"
        )
