"""The optimizer and the learning rate: AdamW with decay on matrices only, and schedules as pure functions of the step."""

import math

import torch


def create_optimizer(model, *, learning_rate, weight_decay, betas, eps):
    """AdamW over the trainable parameters, in its fused form where the device has one.

    Only matrices decay (Linear and convolution weights, token embeddings, projections). Biases, gains of norms, class
    tokens, position embeddings, the logit scale and bias do not: pulling those to zero regularises nothing.
    The fused form does all parameters in one call; the default one is 8 times slower for small models on the CPU.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters: unlock at least one tower")
    groups = [
        {"params": [p for name, p in named if is_matrix(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not is_matrix(name, p)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for _, p in named)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=eps, fused=fused)


def is_matrix(name, parameter):
    """Whether weight decay is for this parameter."""
    return parameter.ndim >= 2 and not any(word in name for word in ("positional_embedding", "pos_embed", "cls_token"))


def set_learning_rate(optimizer, learning_rate):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


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
