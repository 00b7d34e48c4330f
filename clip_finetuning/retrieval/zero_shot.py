"""Zero-shot classification: which category name is nearest to a picture (CLIP, Radford et al. 2021, section 3.1)."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_finetuning.model import clip_model as clip
from clip_finetuning.retrieval.embed import embed_rows
from clip_finetuning.retrieval.embeddings import Embeddings

# A few plain ways to name a product's category; their embeddings are averaged.
PROMPTS = (
    "a photo of {}",
    "a product photo of {}",
    "a photo of {}, on a white background",
    "{}, fashion product",
    "a person wearing {}",
)


def classify(clip_model: clip.ClipModel, embeddings: Embeddings, precision: str) -> dict[str, Any]:
    """{classes, images, top1, top5, macro}: accuracy over images, and top-1 averaged over categories.

    `macro` gives every category the same weight, whatever its size. Images without a category are left out, and so are
    those of a category whose name has no finite embedding (`without_embedding`).
    """
    labelled = np.flatnonzero(embeddings.category != "")
    names, labels = np.unique(embeddings.category[labelled], return_inverse=True)
    named = embed_names(clip_model, names, precision) if len(names) else np.empty((0, 1))  # (C, D)
    finite = np.all(np.isfinite(named), axis=1)
    if finite.sum() < 2:
        raise ValueError(f"zero-shot classification needs at least 2 categories, the shards name {finite.sum()}")
    images = embeddings.image_embeddings[labelled][finite[labels]]
    labels = (np.cumsum(finite) - 1)[labels[finite[labels]]]
    scores = images @ named[finite].T  # (N, C)
    own = scores[np.arange(len(labels)), labels]
    rank = (scores >= own[:, None]).sum(1)  # a tie counts against the model
    hits = rank == 1
    return {
        "classes": int(finite.sum()),
        "images": len(labels),
        "without_embedding": names[~finite].tolist(),
        "prompts": list(PROMPTS),
        "top1": float(hits.mean()),
        "top5": float((rank <= 5).mean()),
        "macro": float(np.mean([hits[labels == c].mean() for c in range(finite.sum())])),
    }


def embed_names(clip_model: clip.ClipModel, names: Iterable[str], precision: str) -> np.ndarray:
    """(C, D) unit vectors: the mean over the prompts of each name; NaN where a prompt has none even in fp32."""
    clip_model.model.eval()
    means = []
    for name in names:
        tokens = clip_model.tokenizer([prompt.format(str(name).lower()) for prompt in PROMPTS])
        rows = embed_rows(clip_model, clip.encode_texts, tokens, precision)
        mean = rows.embeddings.mean(0)
        means.append(np.full_like(mean, np.nan) if len(rows.broken) else mean / np.linalg.norm(mean))
    return np.stack(means)
