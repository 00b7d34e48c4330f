"""Zero-shot classification: which category name is nearest to a picture (CLIP, Radford et al. 2021, section 3.1)."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_finetuning.model import clip_model as clip
from clip_finetuning.retrieval import classification
from clip_finetuning.retrieval.embed import embed_rows
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.runtime.text import caption_numbers

# A few plain ways to name a product's category; their embeddings are averaged.
PROMPTS = (
    "a photo of {}",
    "a product photo of {}",
    "a photo of {}, on a white background",
    "{}, fashion product",
    "a person wearing {}",
)
SHOWN = 60  # characters of a line that a message quotes


def classify(
    clip_model: clip.ClipModel, embeddings: Embeddings, precision: str, prompts: Sequence[str] | None = None
) -> dict[str, Any]:
    """What `classification.measure` makes of pictures and the names of their categories, and how these were asked.

    Categories that differ in case or blanks alone are one (`other_spellings` counts the further ones). Images without a category are left out (`without_category`), and so are those of a category whose name has no finite
    embedding (`without_embedding`). Raises ValueError if fewer than two categories are left.
    """
    prompts = prompts or PROMPTS
    labelled = np.flatnonzero(embeddings.category != "")
    spelled, labels = np.unique(embeddings.category[labelled], return_inverse=True)
    number, first = caption_numbers(spelled.tolist())  # the prompts make no difference between Shoes and shoes
    names, labels = spelled[first], np.array(number, dtype=int)[labels]
    named = embed_names(clip_model, names, precision, prompts) if len(names) else np.empty((0, 1))  # (C, D)
    finite = np.all(np.isfinite(named), axis=1)
    if finite.sum() < 2:
        raise ValueError(f"zero-shot classification needs at least 2 categories, the shards name {finite.sum()}")
    used = labelled[finite[labels]]
    labels = (np.cumsum(finite) - 1)[labels[finite[labels]]]
    scores = embeddings.image_embeddings[used] @ named[finite].T  # (N, C)
    return {
        "prompts": list(prompts),
        "without_category": len(embeddings.category) - len(labelled),
        "without_embedding": names[~finite].tolist(),
        "other_spellings": len(spelled) - len(names),
        **classification.measure(scores, labels, names[finite].tolist(), embeddings.image_product[used]),
    }


def embed_names(clip_model: clip.ClipModel, names: Iterable[str], precision: str, prompts: Sequence[str]) -> np.ndarray:
    """(C, D) unit vectors: the mean over the prompts of each name; NaN where a prompt has none even in fp32."""
    clip_model.model.eval()
    means = []
    for name in names:
        tokens = clip_model.tokenizer([prompt.replace("{}", str(name).lower()) for prompt in prompts])
        rows = embed_rows(clip_model, clip.encode_texts, tokens, precision)
        mean = rows.embeddings.mean(0)
        means.append(np.full_like(mean, np.nan) if len(rows.broken) else mean / np.linalg.norm(mean))
    return np.stack(means)


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a file, one a line with {} where the category's name goes; blank lines count for nothing.

    Raises FileNotFoundError, or ValueError naming the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--prompts {path} does not exist; write one prompt a line, as: a photo of {{}}"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"--prompts {path} cannot be read as UTF-8 text: {error}") from error
    prompts: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        where = f"--prompts {path}, line {number}"
        if "{}" not in line:
            raise ValueError(f"{where}: {line[:SHOWN]!r} has no {{}}; write {{}} where the category's name goes")
        if line in prompts:
            raise ValueError(
                f"{where} says the same as line {prompts[line]}, so that it would count twice; leave one out"
            )
        prompts[line] = number
    if not prompts:
        raise ValueError(f"--prompts {path} holds no prompt; write one a line, as: a photo of {{}}")
    return list(prompts)
