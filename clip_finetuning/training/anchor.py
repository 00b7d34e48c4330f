"""What holds a model to the weights it began with: the frozen start is the teacher, on the same pictures and captions.

Fine-tuning on a catalogue bends embeddings that served the whole world. The start, shown the very pixels and tokens of the
step, says where they were; the loss grows with the distance. It costs one forward pass more and no backward pass.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn import functional
from torch.nn.utils import parametrize

from clip_finetuning.model import clip_model as clip

Kind = Literal["embeddings", "similarities", "both"]
KIND: Kind = "embeddings"  # what ANCHOR means


@dataclass(frozen=True)
class Anchor:
    """A frozen start, and how strongly the training is held to what of it."""

    start: clip.ClipModel  # what `frozen` returned
    weight: float
    kind: Kind = KIND

    def targets(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (N, 3, H, W) and tokens (N, L) of a step -> the start's image and text embeddings, (N, D) each, without graph."""
        with torch.no_grad():
            return clip.encode_images(self.start, images, fast=True), clip.encode_texts(self.start, tokens, fast=True)

    def loss(
        self,
        image_embeddings: torch.Tensor,
        text_embeddings: torch.Tensor,
        start_images: torch.Tensor,
        start_texts: torch.Tensor,
    ) -> torch.Tensor:
        """`weight` times the distance to the start -> scalar; all four (N, D), L2-normalised, of the whole batch."""
        distance = image_embeddings.new_zeros(())
        if self.kind in ("embeddings", "both"):
            distance = distance + embedding_distance(image_embeddings, text_embeddings, start_images, start_texts)
        if self.kind in ("similarities", "both"):
            scale = self.start.model.logit_scale.exp()
            distance = distance + similarity_distance(
                image_embeddings, text_embeddings, start_images, start_texts, scale
            )
        return self.weight * distance


def frozen(clip_model: clip.ClipModel) -> clip.ClipModel:
    """A copy of a model as it is now, for evaluation alone, whose weights do not train; parametrizations are worked in."""
    model = copy.deepcopy(clip_model.model).eval()
    for module in [module for module in model.modules() if parametrize.is_parametrized(module)]:
        for name in list(module.parametrizations):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(False)
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(False)  # there is no backward pass to save memory for
    return replace(clip_model, model=model)


def embedding_distance(
    image_embeddings: torch.Tensor, text_embeddings: torch.Tensor, start_images: torch.Tensor, start_texts: torch.Tensor
) -> torch.Tensor:
    """1 - cosine of each embedding and the start's own, the mean over images and texts -> scalar between 0 and 2."""
    images = (image_embeddings.float() * start_images.float()).sum(-1)
    texts = (text_embeddings.float() * start_texts.float()).sum(-1)
    return 1 - (images.mean() + texts.mean()) / 2


def similarity_distance(
    image_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    start_images: torch.Tensor,
    start_texts: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """KL divergence of the batch's softmax over texts (and over images) from the start's, the mean of both -> scalar >= 0.

        KL = 1/N sum_i sum_j p_ij log(p_ij / q_ij),  p_i = softmax_j(s x'_i.y'_j),  q_i = softmax_j(s x_i.y_j)

    Both at the start's scale s: so the trained one stays free to fit the new data. At the start it is 0.
    Learning without Forgetting (arXiv:1606.09282) between the samples of a batch.
    """
    with torch.autocast(image_embeddings.device.type, enabled=False):
        now = scale * image_embeddings.float() @ text_embeddings.float().T  # (N, N)
        then = scale * start_images.float() @ start_texts.float().T
        return (_divergence(then, now) + _divergence(then.T, now.T)) / 2


def _divergence(target_logits, logits):
    target, found = (functional.log_softmax(rows, dim=1) for rows in (target_logits, logits))
    return functional.kl_div(found, target, reduction="batchmean", log_target=True)
