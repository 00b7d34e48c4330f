"""The form `onnx`: image.onnx and text.onnx, each from a batch of any size to embeddings, for onnxruntime.

The exporter is TorchScript's: it takes every tower of open_clip and timm in every torch from 2.6 on, in a tenth of the other
one's time, and needs no onnxscript.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clip_finetuning.export import tokenizer_files
from clip_finetuning.export.check import read_preprocess
from clip_finetuning.export.form import Facts, Options, need, unit
from clip_finetuning.export.preprocess_file import FILE
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.model.weights import quiet

NAME = "onnx"
TOWERS = ("image", "text")
OPSET = 17  # the first with LayerNormalization
QUANTIZED = ["MatMul", "Gemm", "Gather"]  # of the embeddings too; convolutions in eight bits are slower


def require(options: Options) -> None:
    """ValueError naming the extra, if a package is missing."""
    need(NAME, "onnx", "onnxruntime", *(["onnxruntime.quantization"] if options.int8 else []))
    need("transformers", "tokenizers")


def refuse(clip_model: ClipModel) -> None:
    """ValueError in one line, if the tokenizer cannot be written down; the towers are tried."""
    tokenizer_files.refuse(clip_model, NAME)


class _Tower(torch.nn.Module):
    """One of the two encoders as a module of its own."""

    def __init__(self, model: Any, tower: str, normalize: bool) -> None:
        super().__init__()
        self.model, self.tower, self.normalize = model, tower, normalize

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        embeddings = self.model.encode_image(rows) if self.tower == "image" else self.model.encode_text(rows)
        return torch.nn.functional.normalize(embeddings, dim=-1) if self.normalize else embeddings


def write(clip_model: ClipModel, folder: Path, options: Options) -> Facts:
    """image.onnx, text.onnx, in eight bits image_int8.onnx and text_int8.onnx beside them, and tokenizer.json."""
    size = clip_model.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    examples = {
        "image": torch.zeros(2, 3, height, width),
        "text": clip_model.tokenizer(["a", "b"]),
    }
    tokenizer_files.write(clip_model, folder, ["input_ids"])
    for tower in TOWERS:
        path = folder / f"{tower}.onnx"
        _export(_Tower(clip_model.model, tower, options.normalize).eval(), examples[tower], tower, path)
        if options.int8:
            _quantize(path, folder / f"{tower}_int8.onnx")
        if options.dtype == "fp16":
            _halve(path)
    unit_length = (
        "of unit length" if options.normalize else "of any length: divide each by its norm before comparing them"
    )
    notes = [f"The embeddings are {unit_length}."]
    if options.dtype == "fp16":
        notes.append("The weights are fp16; pixels and embeddings are float32 all the same.")
    return Facts(sorted(path.name for path in folder.glob("*.onnx")), notes)


def _export(tower: torch.nn.Module, example: torch.Tensor, name: str, path: Path) -> None:
    given = {"image": "pixels", "text": "tokens"}[name]
    axes = {given: {0: "batch"}, "embeddings": {0: "batch"}}
    try:
        with _plain_attention(), torch.no_grad():
            torch.onnx.export(
                tower.cpu(),
                (example,),
                str(path),
                input_names=[given],
                output_names=["embeddings"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except OSError:
        raise
    except Exception as error:  # an operator without a counterpart, in any of its ways
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"--form onnx: the {name} tower cannot be written as ONNX ({reason}); --form open_clip keeps it"
        ) from error


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in parts that ONNX has, not in one fused kernel; and no warnings of the exporter about itself."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _quantize(path: Path, target: Path) -> None:
    """Weights in eight bits, one scale a column; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            str(path),
            str(target),
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,  # 7 bits: products of 8 overflow on processors without VNNI
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)


def _halve(path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are too small for fp16 and become 0
        half = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    onnx.save(half, str(path))


def load(folder: Path, suffix: str = "") -> "Sessions":
    """The towers by onnxruntime; `suffix` is "_int8" for those in eight bits."""
    return Sessions(folder, suffix)


class Sessions:
    """A folder as onnxruntime runs it, behind its preprocess.py: the form has no preprocessing of its own."""

    def __init__(self, folder: Path, suffix: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.preprocess = read_preprocess(folder / FILE)
        self.image, self.text = (
            onnxruntime.InferenceSession(str(folder / f"{tower}{suffix}.onnx"), options, ["CPUExecutionProvider"])
            for tower in TOWERS
        )

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return unit(self.image.run(None, {"pixels": self.preprocess.pixels(list(pictures))})[0])

    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        return unit(self.text.run(None, {"tokens": self.preprocess.tokens(list(captions))})[0])


def usage(name: str, options: Options) -> str:
    """Ten lines of Python at most that embed a picture and a caption, with the folder of that name."""
    product = "images @ texts.T"
    if not options.normalize:
        product += " / np.outer(np.linalg.norm(images, axis=1), np.linalg.norm(texts, axis=1))"
    numpy = "" if options.normalize else "import numpy as np\n"
    return f"""\
import sys, onnxruntime
{numpy}folder = {name!r}  # where this folder lies
sys.path.insert(0, folder)
from preprocess import pixels, tokens
image_tower, text_tower = (onnxruntime.InferenceSession(f"{{folder}}/{{tower}}.onnx") for tower in ("image", "text"))
(images,) = image_tower.run(None, {{"pixels": pixels(["photo.jpg"])}})
(texts,) = text_tower.run(None, {{"tokens": tokens(["red leather ankle boots"])}})
print({product})
"""
