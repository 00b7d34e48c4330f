"""Words and pictures -> vectors that an index answers, by the model that the index was made with and no other."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.architecture import check_preprocess
from clip_finetuning.model.building import create_model, load_model
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval.embed import embed_rows
from clip_finetuning.runtime.text import one_line, printable
from clip_finetuning.search import folder as files

CUT = "the query is longer than the model reads: its end takes no part in the search"


class Encoder:
    """Queries of a model: texts and pictures -> (Q, D) float32 of unit length."""

    def __init__(self, clip_model: ClipModel, precision: str = "fp32") -> None:
        clip_model.model.eval()
        self.clip_model, self.precision = clip_model, precision
        self._transform = clip.image_transform(clip_model, train=False)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Queries in words -> (Q, D). Raises ValueError for an empty one."""
        lines = [one_line(text) for text in texts]
        if not all(lines):
            raise ValueError("the query is empty: give some words, such as 'red leather ankle boots'")
        return self._encoded(clip.encode_texts, self.clip_model.tokenizer(lines), "text")

    def is_cut(self, text: str) -> bool:
        """Whether the model does not see the end of a text: then its tokens are the same without its last letter."""
        line = re.sub(r"\W+$", "", one_line(text))  # some tokenizers drop what is no letter
        whole, shorter, least = self.clip_model.tokenizer([line, line[:-1], ""])
        return bool(torch.equal(whole, shorter) and whole[-1] != least[-1])

    def pictures(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Encoded pictures of any kind -> (Q, D), seen as in training. Raises pictures.PictureError (a ValueError)."""
        return self._encoded(clip.encode_images, torch.stack([self._transform(data) for data in pictures]), "picture")

    def _encoded(self, encode: Any, rows: torch.Tensor, what: str) -> np.ndarray:
        found = embed_rows(self.clip_model, encode, rows, self.precision)
        if len(found.broken):
            raise ValueError(f"the {what} has no finite embedding: the model is broken, look at its training log")
        return found.embeddings.astype(np.float32)


def mixed(*queries: np.ndarray) -> np.ndarray:
    """The direction in the middle of several queries, (1, D) each: words and a picture that both should fit."""
    middle = np.sum(queries, axis=0)
    return (middle / np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-12)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ the right model


def model_hash(clip_model: ClipModel) -> str:
    """A hash of all that decides a model's embeddings: architecture, preprocessing and every weight."""
    digest = hashlib.sha256()
    for part in (clip_model.config, clip_model.preprocess):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    for name, tensor in sorted(clip_model.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_encoder(
    about: dict[str, Any],
    device: str | torch.device = "cpu",
    cache_dir: str | None = None,
    checkpoint: str | Path | None = None,
    named: str | None = None,
) -> Encoder:
    """The Encoder of an index's own model; `about` is `Index.about`.

    `checkpoint`: where its file is now, if it moved; `named`: MODEL_NAME, if the user set it. Raises ValueError if it is
    another model by its hash, or one that would be fetched from where the index alone says.
    """
    model = about["model"]
    name, path = model["name"], checkpoint or model.get("checkpoint")
    if name.startswith(("hf-hub:", "local-dir:")) and name != named:
        raise ValueError(
            f"the index was made with {printable(name)}, which would be fetched; if you trust that, set MODEL_NAME to it"
        )
    if path:
        clip_model = load_model(path, device, cache_dir, named, default_name=name)
    else:
        clip_model = create_model(name, model.get("pretrained"), cache_dir, device, seed=int(model.get("seed") or 0))
    image, size = model.get("image"), clip_model.preprocess["size"]
    if isinstance(image, dict):
        clip_model.preprocess = check_preprocess({**clip_model.preprocess, **image}, files.ABOUT, size)
    if model_hash(clip_model) != model["hash"]:
        raise ValueError(
            f"the index was made with another model than {printable(path or name)} (by the hash of weights and "
            "preprocessing): give that one by --checkpoint, or index the catalogue with this one"
        )
    return Encoder(clip_model, model["precision"])
