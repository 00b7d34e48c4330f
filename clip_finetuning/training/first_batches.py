"""The first batches of a training, embedded before it begins; its place in the data stays where it is."""

import itertools
import math
from typing import Any

import torch

from clip_finetuning.model import clip_model as clip
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed

SAMPLES = 1024  # as many of each process are looked at, and at least one batch


def embedded(
    clip_model: clip.ClipModel, loader: Any, precision: str, micro_batch_size: int | None = None
) -> list[list[torch.Tensor]]:
    """[image embeddings (N, D), text embeddings (N, D), identities (N, 1 + C)] of each batch, of all ranks, on the CPU.

    The loader's next epoch and its counts of lost samples stay as they are.
    """
    loader.dataset.set_epoch(0)
    number = math.ceil(SAMPLES / loader.batch_size)
    own = [
        embed(clip_model, batch, precision, micro_batch_size)
        for batch in itertools.islice(loader.dataset, min(number, len(loader)))
    ]
    shares = distributed.gather_objects(own)  # (world size, batches, 3)
    return [[torch.cat(column) for column in zip(*batch)] for batch in zip(*shares)]


def embed(
    clip_model: clip.ClipModel, batch: Any, precision: str, micro_batch_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(image embeddings (N, D), text embeddings (N, D), identities (N, 1 + C)) of a training batch, on the CPU."""
    clip_model.model.eval()

    def all_of(encode, rows):
        encoded = []
        for part in rows.split(micro_batch_size or len(rows)):
            encoded += devices.in_halves(lambda half: encode(clip_model, half).cpu(), part, clip_model.device)
        return torch.cat(encoded)

    with torch.no_grad(), devices.autocast(clip_model.device, precision):
        return all_of(clip.encode_images, batch.images), all_of(clip.encode_texts, batch.tokens), batch.identities.cpu()
