"""The two contrastive losses for catalogues: what belongs together is never a negative.

A text is right for an image if both are of one product, or if the very same caption is one of the image's: several views
of a product, and several products that are described alike. Both losses take the embeddings of the whole contrastive
batch (under torch.distributed, gathered from all ranks) and compute in float32 whatever the autocast type, because a
softmax over thousands of logits of up to 100 needs it.
"""

import torch
from torch.nn import functional


def clip_loss(
    image_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    products: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-positive InfoNCE -> scalar.

        loss_i2t = -1/N sum_i 1/|P(i)| sum_{p in P(i)} log( exp(s x_i.y_p) / sum_j exp(s x_i.y_j) )

    and the same from texts to images, averaged; P(i) are the samples whose text is right for image i, i among them (from
    texts to images, those whose image text i is right for).

    image_embeddings, text_embeddings: (N, D), L2-normalised. products: integers (N,) or (N, 1 + C), see `positives`.
    logit_scale: scalar s, already exponentiated. logit_bias cancels in the softmax and is there for one signature.

    CLIP's loss (Radford et al. 2021, arXiv:2103.00020) with the targets of UniCL (Yang et al. 2022, arXiv:2204.03610);
    where all products and captions differ, open_clip's `ClipLoss`.
    """
    logits, right = _logits(image_embeddings, text_embeddings, logit_scale), positives(products)
    texts_of_image = right / right.sum(1, keepdim=True)  # (N, N)
    images_of_text = texts_of_image
    if products.ndim == 2 and products.shape[1] > 2:  # else the relation is symmetric
        images_of_text = right.T.contiguous() / right.sum(0)[:, None]
    return (functional.cross_entropy(logits, texts_of_image) + functional.cross_entropy(logits.T, images_of_text)) / 2


def siglip_loss(
    image_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    products: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
) -> torch.Tensor:
    """Multi-positive sigmoid loss -> scalar.

        loss = -1/N sum_i sum_j log sigmoid( z_ij (s x_i.y_j + b) ),  z_ij = 1 for samples of one product, else -1

    over the pairs (i, j) of one product, and those whose text j is wrong for image i. A text that is right for images of
    other products is no negative of theirs, but no positive either: a caption that many share would have a positive for
    each pair of them and outweigh everything else. (In a softmax it makes no difference: equal texts have equal logits.)

    image_embeddings, text_embeddings: (N, D), L2-normalised. products: integers (N,) or (N, 1 + C), see `positives`.
    logit_scale: scalar s, already exponentiated. logit_bias: scalar b.

    SigLIP (Zhai et al. 2023, arXiv:2303.15343); where all products and captions differ, open_clip's `SigLipLoss`.
    """
    logits, same = _logits(image_embeddings, text_embeddings, logit_scale) + logit_bias, _same_product(products)
    losses = -functional.logsigmoid(torch.where(same, logits, -logits))
    if products.ndim == 2:
        losses = losses.masked_fill(positives(products) & ~same, 0)
    return losses.sum() / len(logits)


def _logits(image_embeddings, text_embeddings, logit_scale):
    with torch.autocast(image_embeddings.device.type, enabled=False):
        return logit_scale * image_embeddings.float() @ text_embeddings.float().T


def positives(products: torch.Tensor) -> torch.Tensor:
    """[i, j]: whether text j is right for image i -> bool (N, N).

    products: (N,) integers, equal iff of one product; or (N, 1 + C), with the numbers of the captions of each sample
    behind that of its product. The first of these captions is the text.
    """
    right = _same_product(products)
    if products.ndim == 1:
        return right
    for own_captions in products[:, 1:].unbind(1):  # one after another: C (N, N) matrices at once could be large
        right |= own_captions[:, None] == products[None, :, 1]
    return right


def sigmoid_pairs(products: torch.Tensor, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """(the positive pairs, all pairs that count) of `siglip_loss`, bool (R, N) each: the images of some rows, all texts."""
    own = products[rows]
    if products.ndim == 1:
        same = own[:, None] == products[None, :]
        return same, torch.ones_like(same)
    same = own[:, None, 0] == products[None, :, 0]
    shared = (own[:, 1:, None] == products[None, None, :, 1]).any(1)
    return same, same | ~shared


def _same_product(products):
    products = products if products.ndim == 1 else products[:, 0]
    return products[:, None] == products[None, :]  # (N, N)
