"""What every form offers: write a folder, and load it again as its user will, to be measured."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from clip_finetuning.model.clip_model import ClipModel


@dataclass(frozen=True)
class Options:
    """How a folder is written, whatever its form."""

    dtype: str = "fp32"  # of the weights, or "fp16"
    normalize: bool = False  # onnx: embeddings leave the towers with unit length
    int8: bool = False  # onnx: the towers in eight bits beside them


@dataclass
class Facts:
    """What a form has to tell, as it is in the folder."""

    weights: list[str] = field(default_factory=list)  # files of the folder
    notes: list[str] = field(default_factory=list)  # sentences for console and README.md


class Loaded(Protocol):
    """A folder as its user has it: with the form's own preprocessing and tokenizer."""

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """N pictures as Pillow opens them, of any size and mode -> (N, D) float32 of unit length."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        """N captions -> (N, D) float32 of unit length."""
        ...


class Form(Protocol):
    """A module of this folder that writes one form."""

    def require(self, options: Options) -> None:
        """ValueError naming the extra, if a package is missing."""
        ...

    def refuse(self, clip_model: ClipModel) -> None:
        """ValueError in one line, if the form has no such architecture."""
        ...

    def write(self, clip_model: ClipModel, folder: Path, options: Options) -> Facts:
        """Everything but README.md and preprocess.py."""
        ...

    def load(self, folder: Path) -> Loaded: ...

    def usage(self, name: str, options: Options) -> str:
        """Ten lines of Python at most that embed a picture and a caption, with the folder of that name."""
        ...


def need(extra: str, *packages: str) -> None:
    """Raise ValueError naming the extra that brings a missing package."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f'--form {extra} needs the package {package} ({error}); install it with: pip install -e ".[{extra}]"'
            ) from None


def unit(rows: Any) -> np.ndarray:
    """(N, D) of any float type -> float32 of unit length."""
    return torch.nn.functional.normalize(torch.as_tensor(rows).float(), dim=-1).cpu().numpy()


def half_if(options: Options, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous weights of an own memory each, in the type that is asked for; whole numbers stay.

    Raises ValueError for a weight that fp16 cannot hold.
    """
    if options.dtype == "fp32":
        return {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}
    halves = {}
    for name, weight in weights.items():
        half = weight.detach().cpu().clone().contiguous()
        if half.is_floating_point():
            half = half.half()
            if not torch.isfinite(half).all() and torch.isfinite(weight).all():
                raise ValueError(
                    f"--dtype fp16 cannot hold {name}: it reaches {weight.abs().max():.3g}; use --dtype fp32"
                )
        halves[name] = half
    return halves
