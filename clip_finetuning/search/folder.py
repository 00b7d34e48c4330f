"""The folder of an index: which files make it, that they are whole, and how a new state takes the old one's place.

    index.json           what the index is: model, counts, reach of its scan, and which generation is valid
    generation-<hex>/    the files of one state, named with size and SHA-256 in index.json
        vectors.npy      (N, D) float32 of unit length, a picture each, in the order of the source
        captions.npy     (M, D) the same of the distinct captions
        rows.npy         (N, 5) int64 a picture: key of its content, numbers of product, category, caption, code (-1: none)
        items.sqlite     the texts of pictures and captions
        codes.npy        (K, B) uint8 the distinct codes of the approximate search (scan.py); none where it is of no use
        quantizer.npy    (D + 17, E) float32 what a code means
    pictures.sqlite      thumbnails, by content
    pending.sqlite       what a run that is not finished has embedded

A state is whole once index.json names it: that file is replaced in one step, and the old generation is deleted after it.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from clip_finetuning.runtime.atomic_write import atomic_write

ABOUT, PICTURES, PENDING = "index.json", "pictures.sqlite", "pending.sqlite"
VECTORS, CAPTIONS, ROWS, ITEMS = "vectors.npy", "captions.npy", "rows.npy", "items.sqlite"
CODES, QUANTIZER = "codes.npy", "quantizer.npy"
NEEDED, OF_SCAN = {VECTORS, CAPTIONS, ROWS, ITEMS}, {CODES, QUANTIZER}
FORMAT = 2  # 1 had a graph for the approximate search
PRECISIONS = ("fp16", "bf16", "fp32")
GENERATION = re.compile(r"generation-[0-9a-f]{16}")
AGAIN = "make it again with search_clip.py index"


def read_about(folder: str | os.PathLike) -> dict[str, Any]:
    """What index.json says. Raises FileNotFoundError, or ValueError for anything but an index of this format."""
    path = Path(folder, ABOUT)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder} holds no index ({ABOUT} is missing); {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}, which this version reads; {AGAIN}")
    if not (_is_model(about.get("model")) and _is_list_of_files(about.get("files")) and _has_counts(about)):
        raise ValueError(f"{path} does not say what an index says of its model, counts and files; {AGAIN}")
    if not GENERATION.fullmatch(str(about.get("generation"))):
        raise ValueError(f"{path} names no generation; {AGAIN}")
    return about


def _is_model(model: object) -> bool:
    if not isinstance(model, dict) or not all(isinstance(model.get(name), str) for name in ("name", "hash")):
        return False
    places = (model.get("pretrained"), model.get("checkpoint"))
    return (
        model.get("precision") in PRECISIONS
        and all(place is None or isinstance(place, str) for place in places)
        and type(model.get("seed", 0)) is int
    )


def _has_counts(about: dict[str, Any]) -> bool:
    counts = about.get("counts")
    return isinstance(counts, dict) and all(type(counts.get(name)) is int for name in ("pictures", "products"))


def _is_list_of_files(files: object) -> bool:
    if not isinstance(files, dict) or set(files) not in (NEEDED, NEEDED | OF_SCAN):
        return False
    return all(
        isinstance(f, dict) and isinstance(f.get("bytes"), int) and isinstance(f.get("sha256"), str)
        for f in files.values()
    )


def generation(folder: str | os.PathLike, about: dict[str, Any]) -> Path:
    """The folder of the valid state's files, each of which is as index.json says. Raises ValueError if one is not."""
    place = Path(folder, about["generation"])
    for name, said in about["files"].items():
        path = place / name
        try:
            found = describe(path) if path.stat().st_size == said["bytes"] else None
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from None
        if found != said:
            cut = "cut short or longer than it was" if found is None else "damaged"
            raise ValueError(f"{path} is {cut}; {AGAIN}")
    return place


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def new_generation(folder: str | os.PathLike) -> Path:
    """A fresh, empty folder for the files of a new state."""
    place = Path(folder, f"generation-{secrets.token_hex(8)}")
    place.mkdir(parents=True)
    return place


def publish(folder: str | os.PathLike, place: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Let the files in `place` be the index's state from now on -> what index.json says."""
    files = {}
    for path in sorted(place.iterdir()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = describe(path)
    about = {"format": FORMAT, **about, "generation": place.name, "files": files}
    with atomic_write(Path(folder, ABOUT)) as temporary:
        temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8", errors="replace")
    return about


def remove_other_generations(folder: str | os.PathLike, valid: str | None) -> None:
    """Delete what earlier states, and runs that were killed, left. Who still reads an old state keeps its open files."""
    for path in Path(folder).iterdir():
        if GENERATION.fullmatch(path.name) and path.name != valid:
            shutil.rmtree(path, ignore_errors=True)
