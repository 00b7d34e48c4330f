"""Zero-shot classification: which category name is nearest to a picture (CLIP, Radford et al. 2021, section 3.1)."""

import numpy as np
import torch

import openClipManagement as clip

# A few plain ways to name a product's category; their embeddings are averaged.
PROMPTS = (
    "a photo of {}",
    "a product photo of {}",
    "a photo of {}, on a white background",
    "{}, fashion product",
    "a person wearing {}",
)


def classify(clip_model, embeddings, precision):
    """{classes, images, top1, top5, macro}: accuracy over images, and top-1 averaged over categories.

    `macro` gives every category the same weight, whatever its size. Images without a category are left out.
    """
    labelled = embeddings.category != ""
    names, labels = np.unique(embeddings.category[labelled], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"zero-shot classification needs at least 2 categories, the shards name {len(names)}")
    scores = embeddings.image_embeddings[labelled] @ embed_names(clip_model, names, precision).T  # (N, C)
    own = scores[np.arange(len(labels)), labels]
    rank = (scores >= own[:, None]).sum(1)  # a tie counts against the model
    hits = rank == 1
    return {
        "classes": len(names),
        "images": len(labels),
        "prompts": list(PROMPTS),
        "top1": float(hits.mean()),
        "top5": float((rank <= 5).mean()),
        "macro": float(np.mean([hits[labels == c].mean() for c in range(len(names))])),
    }


def embed_names(clip_model, names, precision):
    """(C, D) unit vectors: the mean over the prompts of each name."""
    clip_model.model.eval()
    means = []
    with torch.inference_mode(), clip.autocast(clip_model.device, precision):
        for name in names:
            tokens = clip_model.tokenizer([prompt.format(str(name).lower()) for prompt in PROMPTS])
            mean = clip.encode_texts(clip_model, tokens).mean(0)
            means.append((mean / mean.norm()).float().cpu().numpy())
    return np.stack(means)


def line(result):
    """The result in one line of at most 80 columns."""
    return (
        f"zero-shot, {result['classes']} categories: top-1 {result['top1']:.4f}, top-5 {result['top5']:.4f}, "
        f"macro {result['macro']:.4f}"
    )
