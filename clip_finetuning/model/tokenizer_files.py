"""A tokenizer's files inside a checkpoint, so that it outlives the folder or the repository that they came from."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

KEPT = re.compile(r"[\w-]+(\.[\w-]+)*\.(json|txt|model|jinja|vocab)")  # no file that could hold code or a pickle
FIELD = "tokenizer_files"


def packed(tokenizer: Any) -> dict[str, torch.Tensor]:
    """{file name: its bytes, uint8} of a tokenizer of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).iterdir() if KEPT.fullmatch(path.name))
        return {path.name: torch.from_numpy(np.fromfile(path, np.uint8)) for path in files}


@contextlib.contextmanager
def unpacked(files: object, where: object) -> Iterator[str]:
    """Within the context, a folder that holds the files. Raises ValueError for what are no such files."""
    if not isinstance(files, dict):
        raise ValueError(f"{where}: its {FIELD} are no files")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            good = isinstance(data, torch.Tensor) and data.dtype == torch.uint8 and data.ndim == 1
            if not isinstance(name, str) or not KEPT.fullmatch(name) or not good:
                raise ValueError(f"{where}: its {FIELD} hold something else than a tokenizer's files")
            data.contiguous().numpy().tofile(Path(folder, name))
        yield folder
