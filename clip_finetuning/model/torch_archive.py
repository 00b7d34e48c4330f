"""Tensors of a torch file that holds more than plain weights, read without running or building anything of it.

`torch.load(weights_only=True)` refuses what has a class of its own in it: TorchScript as OpenAI publishes CLIP, whole
pickled modules, checkpoints of trainers that keep their callbacks. All are zip archives of one pickle and one record for
each storage. Here the pickle's instructions are read as data: tensors become tensors, modules a tree of attributes,
and anything else stays a name.
"""

import mmap
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch

from clip_finetuning.runtime import safe_pickle

MAX_INSTRUCTIONS = 20_000_000  # moments, callbacks and all; a tensor takes about 40
MAX_PICKLE = 512 << 20  # bytes; numbers lie in records of their own
DEEPEST, LARGEST = 64, 200_000  # a tree of modules
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PARTS = ("_parameters", "_buffers", "_modules")  # of an nn.Module
LOCAL_HEADER = 30  # bytes, before name and extra field


class Name(NamedTuple):
    """Something that the pickle would import."""

    module: str
    name: str


class Thing(dict):
    """An object of a class that stays a name, with the entries and the attributes that it was given."""

    def __init__(self, kind: object) -> None:
        super().__init__()
        self.kind, self.attributes = kind, {}


class Archive(NamedTuple):
    """What a torch file holds."""

    content: object
    names: list[str]  # what it would have imported, but for the parts of tensors


def read(path: str | os.PathLike) -> Archive:
    """The contents of a torch file of plain data, tensors on the CPU, and `Thing`s. Raises ValueError if it is no such file.

    Tensors are mapped from the file, which must not be written to as long as one of them is used.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        found = [info for info in archive.infolist() if PurePosixPath(info.filename).name == "data.pkl"]
        if len(found) != 1:
            raise ValueError(f"{len(found)} files data.pkl in it, where torch writes one")
        root = str(PurePosixPath(found[0].filename).parent)
        entries = {info.filename.removeprefix(f"{root}/"): info for info in archive.infolist()}
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        if found[0].file_size > MAX_PICKLE:
            raise ValueError(f"its pickle has {found[0].file_size:,} bytes, more than {MAX_PICKLE:,}")
        machine = _Machine(_Records(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), entries))
        content = machine.run(archive.read(found[0]))
    return Archive(content, sorted(machine.names))


def tensors_of(thing: Thing) -> dict[str, torch.Tensor]:
    """{dotted name: tensor} of a module, TorchScript's or a pickled one. Raises ValueError for a tree without end."""
    found: dict[str, torch.Tensor] = {}
    visits = 0

    def visit(part: Any, prefix: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        if depth > DEEPEST or visits > LARGEST:
            raise ValueError("its modules hold each other without end")
        if isinstance(part, torch.Tensor):
            found[prefix.removesuffix(".")] = part
        elif isinstance(part, Thing):
            for name, value in part.attributes.items():
                visit_named(name, value, prefix, depth)

    def visit_named(name: str, value: Any, prefix: str, depth: int) -> None:
        if name in PARTS and isinstance(value, Mapping):
            for inner, child in value.items():
                visit(child, f"{prefix}{inner}.", depth + 1)
        elif isinstance(value, (torch.Tensor, Thing)):
            visit(value, f"{prefix}{name}.", depth + 1)

    visit(thing, "", 0)
    return found


class _Records:
    """The storages of an archive, which torch lays into it as they are."""

    def __init__(self, pages: mmap.mmap, entries: Mapping[str, zipfile.ZipInfo]) -> None:
        self.pages, self.entries = pages, entries

    def storage(self, key: object, dtype: torch.dtype) -> torch.Tensor:
        """The numbers of a storage, (N,)."""
        info = self.entries.get(f"data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its record data/{key} is missing or compressed")
        header = self.pages[info.header_offset : info.header_offset + LOCAL_HEADER]
        start = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > len(self.pages):
            raise ValueError(f"its record data/{key} is cut")
        count = info.file_size // dtype.itemsize
        if not count:
            return torch.empty(0, dtype=dtype)
        if start % dtype.itemsize:
            return torch.frombuffer(bytearray(self.pages[start : start + info.file_size]), dtype=dtype, count=count)
        return torch.frombuffer(self.pages, dtype=dtype, count=count, offset=start)


class _Storage(NamedTuple):
    key: object
    dtype: torch.dtype


class _Machine(safe_pickle.Machine):
    """Builds tensors from their parts, and keeps the names of everything else that would be called."""

    def __init__(self, records: _Records) -> None:
        super().__init__(MAX_INSTRUCTIONS)
        self.records, self.names = records, set()

    def opaque(self, name: str, argument: Any, values: list) -> object:
        if name == "GLOBAL":
            return Name(*argument.split(" ", 1))
        if name == "STACK_GLOBAL":
            return Name(*map(str, values))
        if name == "BINPERSID":
            return self._storage(values[0])
        if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            return self._called(values[0], values[1])
        return safe_pickle.STAND_IN

    def set_state(self, target: object, state: object) -> None:
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # (attributes, slots)
            state = state[0]
        if isinstance(target, Thing) and isinstance(state, dict):
            target.attributes.update(state)

    def _storage(self, what: Any) -> object:
        if not isinstance(what, tuple) or len(what) < 3 or what[0] != "storage" or not isinstance(what[1], Name):
            return safe_pickle.STAND_IN
        return _Storage(what[2], STORAGES.get(what[1].name, torch.uint8))

    def _called(self, what: Any, arguments: Any) -> object:
        name = what.name if isinstance(what, Name) else ""
        arguments = arguments if isinstance(arguments, tuple) else ()
        if what == Name("collections", "OrderedDict"):
            return {}
        if isinstance(what, Name) and what.module == "torch._utils" and name.startswith("_rebuild_"):
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
                return self._tensor(arguments)
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return arguments[0]
        if isinstance(what, Name):
            self.names.add(f"{what.module}.{name}")
        return Thing(what)

    def _tensor(self, arguments: tuple) -> torch.Tensor:
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without numbers")
        dtype = storage.dtype
        if len(arguments) > 6 and isinstance(arguments[6], Name):  # version 3 names the type beside bytes
            dtype = getattr(torch, arguments[6].name, None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"numbers of the type {arguments[6].name}")
        try:
            return self.records.storage(storage.key, dtype).as_strided(size, stride, offset)
        except (RuntimeError, TypeError) as error:  # beyond its storage
            raise ValueError(f"a tensor of size {size} that its record does not hold") from error
