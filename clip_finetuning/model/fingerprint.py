"""Which weights a model has, as one hash: the same on every device, and whatever file they came from."""

import hashlib
from collections.abc import Mapping

import torch

from clip_finetuning.model import low_rank

# Of the loss, not of what a picture or a caption comes to: another loss, or FIT_TEMPERATURE, sets them anew.
SCALARS = ("logit_scale", "logit_bias")


def fingerprint(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of all weights and statistics of a plain model, to the bit; the scalars of the loss and counts are left out.

    Low-rank additions are left out too: a model that has some has the hash of its base.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(low_rank.without_additions(state_dict).items()):
        if name in SCALARS or not weight.is_floating_point():
            continue
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
