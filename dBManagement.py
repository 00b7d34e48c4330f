"""Shards -> batches, for scripts of one's own: every sample once an epoch in a fresh random order, or once in order.

    from dBManagement import train_loader, eval_loader

    loader = train_loader("shards/train.{000000..000260}.tar", transform, tokenizer, batch_size=256, num_workers=2)
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = step(batch.images, batch.tokens, batch.identities)

`transform` and `tokenizer` are those of openClipManagement; `clip_finetuning.loading.dataset` says what they must do.
"""

from clip_finetuning.loading.dataset import Batch, ClipDataset
from clip_finetuning.loading.loader import Loader, eval_loader, train_loader
from clip_finetuning.runtime.accounting import count_lost

__all__ = ["Batch", "ClipDataset", "Loader", "count_lost", "eval_loader", "train_loader"]
