"""Muon: the optimizer that replaces the momentum of each weight matrix by the nearest orthogonal matrix.

Adam scales every number of a gradient by itself. The gradient of a matrix is mostly of low rank, so a few directions get
all of the step; Muon gives every direction the same. From random weights three epochs of it reach what eight of AdamW's do
(the catalogues of `benchmarks/recipe.py`).
"""

from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for 2-D parameters.

        M <- momentum M + (1 - momentum) G;   O = orthogonalized((1 - momentum) G + momentum M)
        W <- (1 - lr weight_decay) W - lr sqrt(max(1, rows / columns)) O

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon). The mathematics of `torch.optim.Muon`, which computes in
    bfloat16 whatever the device and one matrix after the other: 20 times slower on a CPU without bfloat16 instructions.
    Here it is float32 (TF32 where that is on), and all matrices of a shape at once. Raises ValueError for parameters that
    are no matrices.
    """

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for shape in (p.shape for group in self.param_groups for p in group["params"]):
            if len(shape) != 2:
                raise ValueError(
                    f"Muon is for matrices, not for a parameter of shape {tuple(shape)}: give that to AdamW"
                )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step along the gradients; parameters without one stay as they are."""
        for group in self.param_groups:
            of_shape = {}
            for parameter in (p for p in group["params"] if p.grad is not None):
                of_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in of_shape.items():
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                directions = torch.stack([self._direction(p, group["momentum"]) for p in parameters])
                for parameter, update in zip(parameters, orthogonalized(directions)):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _direction(self, parameter, momentum):
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """(B, M, N) -> about U V^T of each singular value decomposition U S V^T, by five Newton-Schulz iterations.

    The coefficients are Jordan's, tuned for speed: singular values end between 0.7 and 1.2, not at 1. A zero matrix stays.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (B, M, M), M the smaller side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class CombinedOptimizer:
    """Two optimizers with different parameters, used as one, also by a GradScaler."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """What is remembered of each parameter; the dictionaries are the optimizers' own."""
        return {parameter: values for optimizer in self.optimizers for parameter, values in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """In the form of one optimizer's: the parameters of the second are numbered on from those of the first."""
        merged, first = {"state": {}, "param_groups": []}, 0
        for optimizer in self.optimizers:
            own = optimizer.state_dict()
            merged["state"].update((first + number, values) for number, values in own["state"].items())
            merged["param_groups"] += _renumbered(own["param_groups"], first)
            first += _count(own["param_groups"])
        return merged

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups, first = list(state_dict["param_groups"]), 0
        for optimizer in self.optimizers:
            own, groups = groups[: len(optimizer.param_groups)], groups[len(optimizer.param_groups) :]
            numbers = range(first, first + _count(own))
            state = {number - first: values for number, values in state_dict["state"].items() if number in numbers}
            optimizer.load_state_dict({"state": state, "param_groups": _renumbered(own, -first)})
            first += len(numbers)


def _renumbered(groups, by):
    return [{**group, "params": [number + by for number in group["params"]]} for group in groups]


def _count(groups):
    return sum(len(group["params"]) for group in groups)
