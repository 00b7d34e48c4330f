"""The form `sentence-transformers`: the folder of `transformers`, and the modules that SentenceTransformer loads of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_finetuning.export import transformers_form
from clip_finetuning.export.form import Facts, Options, need, unit
from clip_finetuning.model.clip_model import ClipModel

NAME = "sentence-transformers"
# As folders of sentence-transformers 5.0 have them; later versions know these names too.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def require(options: Options) -> None:
    """ValueError naming the extra, if a package is missing."""
    need(NAME, "transformers", "tokenizers", "sentence_transformers")


def refuse(clip_model: ClipModel) -> None:
    """ValueError in one line, if it is no CLIPModel of transformers."""
    transformers_form.refuse(clip_model)
    if transformers_form.is_siglip(clip_model):
        raise ValueError(
            f"sentence-transformers' CLIPModel has no such architecture as {clip_model.name}: its text tower is SigLIP's; "
            "--form transformers takes it"
        )


def write(clip_model: ClipModel, folder: Path, options: Options) -> Facts:
    """The files of `transformers`, and modules.json."""
    facts = transformers_form.write(clip_model, folder, options)
    (folder / "1_Normalize").mkdir()
    _write_json(folder / "1_Normalize" / "config.json", {})
    _write_json(folder / "modules.json", MODULES)
    about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    _write_json(folder / "config_sentence_transformers.json", {"__version__": {}, **about})
    return facts


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> "Encoder":
    """The folder by `SentenceTransformer(...)`, in fp32."""
    return Encoder(folder)


class Encoder:
    """A folder as sentence-transformers loads it."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True).float()

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return unit(self.model.encode(list(pictures), show_progress_bar=False))

    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        return unit(self.model.encode(list(captions), show_progress_bar=False))


def usage(name: str, options: Options) -> str:
    """Ten lines of Python at most that embed a picture and a caption, with the folder of that name."""
    return f"""\
import sys
from sentence_transformers import SentenceTransformer
folder = {name!r}  # where this folder lies
sys.path.insert(0, folder)
from preprocess import prepare, clean
model = SentenceTransformer(folder).float()
images = model.encode([prepare("photo.jpg")])
texts = model.encode([clean("red leather ankle boots")])
print(model.similarity(images, texts))
"""
