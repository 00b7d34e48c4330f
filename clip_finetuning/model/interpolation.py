"""Weights between two models of one architecture: the start of a fine-tuning, and what it came to.

Their straight line is WiSE-FT's (Wortsman et al. 2022, arXiv 2109.01903): on it a model often keeps most of what it
gained, and gets back much of what it forgot.
"""

from collections.abc import Iterator, Mapping

import torch

Weights = Mapping[str, torch.Tensor]
OF_LOSS = ("logit_scale", "logit_bias")  # what makes a loss of similarities; another loss, other values


class Line:
    """The line between two state dicts of one architecture. Raises ValueError, in one line, if there is none.

    `remark` says what stays the fine-tuned one's all along the line, if anything does. Both dicts are referred to, not copied.
    """

    def __init__(self, start: Weights, tuned: Weights) -> None:
        one_bias = ("logit_bias" in start) != ("logit_bias" in tuned)
        self._kept = OF_LOSS if one_bias else ()
        self.remark = (
            "one of the two was trained with the sigmoid loss: the mixes have the logit scale and bias of the fine-tuned"
            if one_bias
            else ""
        )
        _check_alike(*({name: w for name, w in part.items() if name not in self._kept} for part in (start, tuned)))
        _check_finite(start, "start")
        _check_finite(tuned, "fine-tuned model")
        self._start, self._tuned = start, tuned

    def weights(self, share: float) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, weight) of the mix with this share of the fine-tuned one, as open_clip's state dicts have them.

        0 is the start, 1 the fine-tuned one, both to the bit; whole numbers are the fine-tuned one's.
        """
        if not 0 <= share <= 1:
            raise ValueError(
                f"a share of {share} is not allowed: it takes a number from 0 (the start) to 1 (fine-tuned)"
            )
        for name, tuned in self._tuned.items():
            keeps = name in self._kept or not tuned.is_floating_point()
            yield name, tuned if keeps else _between(self._start[name], tuned, share)

    @torch.no_grad()
    def put(self, model: torch.nn.Module, share: float) -> None:
        """Give a model the weights of a mix, one after the other: no third copy of them is made."""
        places = model.state_dict()
        for name, weight in self.weights(share):
            places[name].copy_(weight)


def _between(start, tuned, share):
    exact = torch.promote_types(tuned.dtype, torch.float32)  # half precision would round twice
    return torch.lerp(start.to(tuned.device, exact), tuned.to(exact), share).to(tuned.dtype)


def _check_alike(start, tuned):
    """ValueError unless both are of one architecture, as far as weights tell."""
    missing, unknown = [name for name in tuned if name not in start], [name for name in start if name not in tuned]
    other = [name for name in tuned if name in start and _kind(start[name]) != _kind(tuned[name])]
    counts = {"lacks": missing, "has besides": unknown, "has in another shape": other}
    told = [f"the start {what} {len(names):,} ({names[0]} ...)" for what, names in counts.items() if names]
    if told:
        raise ValueError(
            f"the two are no models of one architecture: of the {len(tuned):,} weights of the fine-tuned one {', '.join(told)}; "
            "mix a model with the weights that it began with"
        )


def _kind(weight):
    return weight.shape, weight.is_floating_point()


def _check_finite(weights, whose):
    broken = [name for name, w in weights.items() if w.is_floating_point() and not torch.isfinite(w).all()]
    if broken:
        raise ValueError(
            f"{len(broken):,} weights of the {whose} are not finite ({broken[0]} ...): there is no mix with it"
        )
