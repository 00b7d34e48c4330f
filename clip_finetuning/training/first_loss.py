"""Whether the first loss is above guessing: trained weights that are too sure of what they do not know.

The first steps then tear down what makes them sure, at any learning rate, and the old domain with it.
"""

import math
from typing import Any

import torch

from clip_finetuning.runtime import distributed
from clip_finetuning.training import losses
from clip_finetuning.training.plan import Plan

MARGIN = 1.01  # less is the chance of one batch


def guessing_loss(identities: torch.Tensor, loss: str) -> float:
    """The lowest `clip` or `siglip` loss that a model has which gives all pairs of a batch the same logit.

    identities: (N, 1 + C) or (N,), see `losses.positives`. For `clip` it is ln N, whatever is right for what: each row of
    targets sums to one. For `siglip` with P pairs that are right and M that are wrong the best logit is ln(P / M), and the
    loss (P ln((P + M) / P) + M ln((P + M) / M)) / N.
    """
    if loss == "clip":
        return math.log(len(identities))
    same, counts = losses.sigmoid_pairs(identities)
    right = int(same.sum())
    wrong = int(counts.sum()) - right
    return sum(count * math.log((right + wrong) / count) for count in (right, wrong) if count) / len(identities)


def remark(loss: float, identities: torch.Tensor, scale: float, plan: Plan) -> str | None:
    """What to say of the first step's contrastive loss, if it is above guessing; every rank calls this, with its identities."""
    everywhere = torch.cat(distributed.gather_objects(identities.cpu()))
    guessing = guessing_loss(everywhere, plan.loss)
    if not loss > MARGIN * guessing:
        return None
    sum_of = f"ln {len(everywhere)} = " if plan.loss == "clip" else ""
    cures: list[Any] = [] if plan.fit_temperature else ["FIT_TEMPERATURE=true sets it to where the loss is lowest"]
    cures.append(f"a longer WARMUP_STEPS than {plan.warmup_steps} softens it")
    return (
        f"the first loss, {loss:.4g}, is above guessing ({sum_of}{guessing:.4g}): at a logit scale of {scale:.4g} these weights "
        f"are surer of this data than they are right, and the first steps undo what they knew; {', '.join(cures)}"
    )
