"""Files and folders of weights, whoever wrote them: their contents as plain data, and what a stranger looks like.

Nothing of a file is run. A torch file is read by `torch.load(weights_only=True)`, and one that holds more than plain
weights (TorchScript, a whole module, a trainer's callbacks) as `torch_archive` says.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clip_finetuning.model import torch_archive
from clip_finetuning.runtime.text import printable

INDEX = ".index.json"
# What a folder's weights are called, the likeliest first: open_clip's names, then transformers'.
IN_FOLDER = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
# What else a folder may be: a file in it, and what that says.
FOLDERS = {
    ".metadata": "it is a distributed checkpoint; `python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
    "FOLDER FILE` makes one file of it",
    "zero_to_fp32.py": "it is a checkpoint of DeepSpeed; its own zero_to_fp32.py makes one file of it",
    "modules.json": "it is a model of sentence-transformers; name the folder in it that has a config.json",
    "saved_model.pb": "it is a model of TensorFlow; save it from PyTorch",
}
# How a file may begin, or end, that is none of weights for torch.
BEGINS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself; `git lfs pull` fetches it",
    b"<!": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
    b"GGUF": "it is a GGUF file, quantised for llama.cpp; take the original weights",
    b"\x89HDF": "it is HDF5, as Keras writes it; save the weights from PyTorch",
}
ENDS = {
    ".npz": "it holds weights of big_vision; published ones are tags of open_clip, as MODEL_PRETRAINED=webli",
    ".msgpack": "it holds weights of Flax; `CLIPModel.from_pretrained(FOLDER, from_flax=True).save_pretrained(FOLDER)` "
    "writes safetensors",
    ".onnx": "it is an ONNX graph; take the weights that it was made of",
    ".distcp": "it is a part of a distributed checkpoint; name its folder",
}


class Contents(NamedTuple):
    """What a file holds."""

    content: Any
    is_quick_gelu: bool = False  # a TorchScript that says so
    remark: str = ""  # "" for nothing


def resolve(path: Path) -> Path:
    """The file of weights that a path means: itself, or the one in a folder.

    Raises FileNotFoundError for nothing there, ValueError for a folder without weights.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist; train first, or give its path")
    found = in_folder(path)
    if found is not None:
        return found
    what = next((words for name, words in FOLDERS.items() if (path / name).exists()), "")
    raise ValueError(
        f"{path} is a folder without weights that are known here: {what or f'none of {_listed(IN_FOLDER)}'}"
    )


def in_folder(folder: Path) -> Path | None:
    """The file of weights in a folder: under a usual name, else the only one; None for none. Raises ValueError for several."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    others = sorted(
        path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
    )
    others = [
        path for path in others if not path.name.startswith(("adapter_", "optimizer", "scheduler", "training_args"))
    ]
    if len(others) > 1:
        raise ValueError(
            f"{folder} has {len(others)} files of weights, {_listed(o.name for o in others)}; name one of them"
        )
    return others[0] if others else None


def read(path: Path, mapped: bool = False) -> Contents:
    """What a file of weights holds, or the files that an index names. Raises ValueError, naming the file and what it is."""
    try:
        if path.name.endswith(INDEX):
            return Contents(_of_index(path, mapped))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return Contents(load_file(path))
        return _torch_file(path, mapped)
    except Exception as error:  # zip, pickle and safetensors errors have no common class
        reason = _stranger(path) or str(error).split("\n")[0][:160]
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged or holds more than plain weights ({reason})"
        ) from error


def _torch_file(path: Path, mapped: bool) -> Contents:
    """The contents of a torch file, if asked for with its tensors mapped; it says so where a whole file cannot be."""
    refused = None
    if mapped:
        try:
            return Contents(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except Exception as error:  # a file of before torch 1.6, a file system without maps, damage: no common class
            refused = str(error).split("\n")[0][:100]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # classes of its own, TorchScript, or damage
        if not zipfile.is_zipfile(path):
            raise
        archive = torch_archive.read(path)
        names = [name for name in archive.names if not name.startswith(("__torch__.", "torch."))]
        remark = (
            f"nothing of {_listed(map(printable, names))} is built or run: the weights alone are read" if names else ""
        )
        return Contents(archive.content, any(name.endswith(".QuickGELU") for name in archive.names), remark)
    if refused:
        print(f"{path} cannot be mapped into memory ({refused}), so it is read as a whole")
    return Contents(content)


def _of_index(path: Path, mapped: bool) -> dict[str, torch.Tensor]:
    """The weights of all files that an index names, which lie beside it."""
    table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    names: Callable[[str], bool] = lambda name: Path(name).name == name and not name.endswith(INDEX)  # noqa: E731
    if not all(isinstance(name, str) and names(name) for name in table.values()):
        raise ValueError("its weight_map names something else than files beside it")
    parts = {name: path.with_name(name) for name in sorted(set(table.values()))}
    absent = [name for name, part in parts.items() if not part.is_file()]
    if absent:
        raise ValueError(f"{len(absent)} of its {len(parts)} files are missing, first of all {absent[0]}")
    weights: dict[str, torch.Tensor] = {}
    for part in parts.values():
        weights |= read(part, mapped).content
    lost = sorted(set(table) - set(weights))
    if lost:
        raise ValueError(f"{len(lost)} of its {len(table)} tensors are in none of its files, first of all {lost[0]}")
    return weights


def _stranger(path: Path) -> str:
    """What a file is that cannot be read, by how it begins or ends; "" if nothing is known."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    by_start = next((words for begin, words in BEGINS.items() if start.startswith(begin.lower())), "")
    return by_start or ENDS.get(path.suffix.lower(), "")


def _listed(names: Any) -> str:
    """The first of some names, and how many there are more."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
