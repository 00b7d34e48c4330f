"""Embeddings that can be measured: what overflows in half precision comes again in fp32, what stays broken is told."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from clip_finetuning.runtime import device as devices


class Rows(NamedTuple):
    """The embeddings of some pictures or texts, and which of them need a word."""

    embeddings: np.ndarray  # (n, D) float32
    again: np.ndarray  # numbers of the rows that overflowed and were embedded again in fp32
    broken: np.ndarray  # numbers of the rows that are no direction even so


def embed_rows(clip_model, encode, rows, precision):
    """Embed in evaluation mode -> Rows; `encode(clip_model, rows)` is one of openClipManagement's."""
    encode = partial(encode, clip_model)
    with torch.inference_mode(), devices.autocast(clip_model.device, precision):
        embeddings = _arrays(encode, rows, clip_model.device)
    broken = _no_direction(embeddings)
    again = broken if precision != "fp32" else broken[:0]
    if len(again):
        with torch.inference_mode():
            embeddings[again] = _arrays(encode, rows[again.tolist()], clip_model.device)
        broken = _no_direction(embeddings)
    return Rows(embeddings, again, broken)


def _no_direction(embeddings):
    """Numbers of the rows that are not finite, or of length 0."""
    lengths = np.linalg.norm(embeddings, axis=1)
    return np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))


def _arrays(encode, rows, device):
    return np.concatenate(devices.in_halves(lambda part: encode(part).float().cpu().numpy(), rows, device))
