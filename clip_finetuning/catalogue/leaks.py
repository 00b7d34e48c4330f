"""Takes out of a data set's files what would let a model see in training what it is tested on."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from clip_finetuning.catalogue.audit import FileEntry, Inspected
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import printable

EXAMPLES = 3  # products that are named for each reason
WITH_PRODUCT, WITH_PICTURE = "their product is in {}", "a picture of their product is in {}"


def drop_leaks(inspected: Inspected) -> str:
    """Write each file that shares products or pictures with another as `{name}_clean.json`, without these -> what went.

    They leave the training split rather than validation, and validation rather than test; so do all views of a product
    of which one picture leaks. Raises ValueError if nothing would be left of a file.
    """
    order = training_first(inspected.names)
    gone = leaking_products(inspected, order)
    lines = [f"what leaks leaves {' rather than '.join(inspected.names[file] for file in order)}"]
    written = {}
    for file in order:
        if gone[file]:
            written[file], text = cleaned(inspected, file, gone[file])
            lines.append(text)
    for file, text in written.items():
        with atomic_write(clean_name(inspected.names[file])) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return "\n".join(map(printable, lines if written else ["nothing leaks: no file was written"]))


def training_first(names: Sequence[str]) -> list[int]:
    """Numbers of the files: training before others before test, by their names; else as they were named."""
    return sorted(range(len(names)), key=lambda number: _rank(Path(names[number]).name.lower()))


def leaking_products(inspected: Inspected, order: Sequence[int]) -> dict[int, dict[str, str]]:
    """{file: {product that leaves it: why}}: those that a later file of the order has too, by id or by picture."""
    gone: dict[int, dict[str, str]] = defaultdict(dict)
    products: dict[str, str] = {}  # of the later files -> the file
    digests: dict[bytes, str] = {}
    for file in reversed(order):
        entries = [entry for entry in inspected.entries if entry.file == file]
        for entry in entries:
            if entry.product in products:
                gone[file].setdefault(entry.product, WITH_PRODUCT.format(products[entry.product]))
            elif (digest := _digest(inspected, entry)) in digests:
                gone[file].setdefault(entry.product, WITH_PICTURE.format(digests[digest]))
        for entry in entries:
            if entry.product not in gone[file]:
                products.setdefault(entry.product, inspected.names[file])
                if digest := _digest(inspected, entry):
                    digests.setdefault(digest, inspected.names[file])
    return gone


def clean_name(name: str) -> str:
    """Where what is left of a file is written."""
    path = Path(name)
    return path.with_name(f"{path.stem}_clean{path.suffix}").as_posix()


def cleaned(inspected: Inspected, file: int, gone: dict[str, str]) -> tuple[str, str]:
    """(the file's JSON without the entries of these products, a line that says what went)."""
    name, mapping = inspected.names[file], inspected.mappings[file]
    unusable = {entry.number for entry in mapping.skipped}
    values = json.loads(Path(name).read_text(encoding="utf-8-sig"))
    usable = iter(mapping.entries)
    kept = [value for number, value in enumerate(values) if number in unusable or next(usable).product_id not in gone]
    if len(kept) == len(unusable):
        raise ValueError(f"{name}: all of it is in the other files too; nothing was written, split the catalogue anew")
    went = Counter(gone[entry.product_id] for entry in mapping.entries if entry.product_id in gone)
    reasons = [
        f"{count:,} entries because {reason} ({', '.join([p for p, why in gone.items() if why == reason][:EXAMPLES])})"
        for reason, count in went.items()
    ]
    text = "[\n" + ",\n".join(json.dumps(value, ensure_ascii=False) for value in kept) + "\n]\n"
    return text, (
        f"{clean_name(name)}: {len(kept):,} of {len(values):,} entries; {len(gone):,} products went: "
        + "; ".join(reasons)
    )


def _rank(name: str) -> int:
    return 0 if "train" in name else 2 if "test" in name else 1


def _digest(inspected: Inspected, entry: FileEntry) -> bytes | None:
    picture = inspected.pictures.get(entry.image_path)
    return picture.digest if picture else None
