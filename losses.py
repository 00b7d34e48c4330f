"""The two contrastive losses for catalogues: several samples of one product are positives of each other, never negatives.

Both take the embeddings of the whole contrastive batch (under torch.distributed, gathered from all ranks) and compute
in float32 whatever the autocast type, because a softmax over thousands of logits of up to 100 needs it.
"""

import torch
from torch.nn import functional


def clip_loss(image_embeddings, text_embeddings, products, logit_scale, logit_bias=None):
    """Multi-positive InfoNCE -> scalar.

        loss_i2t = -1/N sum_i 1/|P(i)| sum_{p in P(i)} log( exp(s x_i.y_p) / sum_j exp(s x_i.y_j) )

    and the same from texts to images, averaged; P(i) are the samples of i's product, i among them.

    image_embeddings, text_embeddings: (N, D), L2-normalised. products: (N,) integers, equal iff of one product.
    logit_scale: scalar s, already exponentiated. logit_bias cancels in the softmax and is there for one signature.

    CLIP's loss (Radford et al. 2021, arXiv:2103.00020) with the targets of UniCL (Yang et al. 2022, arXiv:2204.03610);
    where all products differ, open_clip's `ClipLoss`.
    """
    logits, same = _logits(image_embeddings, text_embeddings, logit_scale), _same(products)
    targets = same / same.sum(1, keepdim=True)  # (N, N), symmetric: the same for both directions
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def siglip_loss(image_embeddings, text_embeddings, products, logit_scale, logit_bias):
    """Multi-positive sigmoid loss -> scalar.

        loss = -1/N sum_i sum_j log sigmoid( z_ij (s x_i.y_j + b) ),  z_ij = 1 for samples of one product, else -1

    image_embeddings, text_embeddings: (N, D), L2-normalised. products: (N,) integers, equal iff of one product.
    logit_scale: scalar s, already exponentiated. logit_bias: scalar b.

    SigLIP (Zhai et al. 2023, arXiv:2303.15343); where all products differ, open_clip's `SigLipLoss`.
    """
    logits, same = _logits(image_embeddings, text_embeddings, logit_scale) + logit_bias, _same(products)
    losses = -functional.logsigmoid(torch.where(same, logits, -logits))
    return losses.sum() / len(logits)


def _logits(image_embeddings, text_embeddings, logit_scale):
    with torch.autocast(image_embeddings.device.type, enabled=False):
        return logit_scale * image_embeddings.float() @ text_embeddings.float().T


def _same(products):
    return products[:, None] == products[None, :]  # (N, N)
