"""Weights between two models of one architecture: the start of a fine-tuning, and what it came to.

Their straight line is WiSE-FT's (Wortsman et al. 2022, arXiv 2109.01903): on it a model often keeps most of what it
gained, and gets back much of what it forgot.
"""

from collections.abc import Iterator, Mapping

import torch

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.fingerprint import SCALARS

Weights = Mapping[str, torch.Tensor]


class Line:
    """The line between two state dicts of one architecture. Raises ValueError, in one line, if there is none.

    `remarks` say what is not as one may think. Both dicts are referred to, not copied.
    """

    def __init__(self, start: Weights, tuned: Weights) -> None:
        one_bias = ("logit_bias" in start) != ("logit_bias" in tuned)
        self._kept = SCALARS if one_bias else ()
        self.remarks = (
            ["one of the two had the sigmoid loss: mixes have the fine-tuned model's logit scale and bias"]
            if one_bias
            else []
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


def line_between(start: ClipModel, tuned: ClipModel) -> Line:
    """The line from one model to another; the second one may then be given the weights of its mixes. Raises as Line."""
    if bool(start.config.get("quick_gelu")) != bool(tuned.config.get("quick_gelu")):
        quick, plain = (start, tuned) if start.config.get("quick_gelu") else (tuned, start)
        raise ValueError(
            f"the two are no models of one architecture: {quick.pretrained or quick.name} computes with QuickGELU, "
            f"{plain.pretrained or plain.name} with GELU; mix a model with the weights that it began with"
        )
    line = Line(start.model.state_dict(), {name: w.clone() for name, w in tuned.model.state_dict().items()})
    if other := [key for key, value in tuned.preprocess.items() if start.preprocess.get(key) != value]:
        line.remarks.append(
            f"the start prepares pictures otherwise ({', '.join(other)}): all mixes get those of the fine-tuned model"
        )
    return line


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
