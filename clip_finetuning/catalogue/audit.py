"""What is wrong with JSON mappings before a model learns it: leakage between splits above all."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clip_finetuning.catalogue.caption_checks import caption_findings
from clip_finetuning.catalogue.mapping import Mapping, read_mapping
from clip_finetuning.pictures.decode import PictureError, load_picture, read_source
from clip_finetuning.pictures.near_duplicates import can_fingerprint, close_pairs, fingerprint

MAX_TOKENS = 77  # CLIP's tokenizers cut the rest off
TINY = 64  # pixels of the shorter side: a model sees a blur
EXTREME = 3  # longer side by shorter side: the square crop that a model sees misses most of it
LISTED = 1_000  # findings of a kind that the report lists; all are counted
EXAMPLES = 3  # of them in the summary
TOKEN = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")


class FileEntry(NamedTuple):
    """One usable entry of a mapping; `file` is the number of its mapping."""

    file: int
    image_path: str
    captions: tuple[str, ...]
    category: str
    product: str


class Picture(NamedTuple):
    """What a readable picture was found to be; `look` is its fingerprint, or None where none was asked for."""

    digest: bytes
    width: int
    height: int
    look: tuple[int, bytes] | None


Entries = Sequence[FileEntry]
Pictures = dict[str, Picture]  # by path


class Inspected(NamedTuple):
    """What mappings hold, and what their pictures were found to be."""

    names: list[str]
    mappings: list[Mapping]
    entries: list[FileEntry]  # the usable ones of all mappings, in order
    pictures: Pictures
    unreadable: dict[str, str]  # path -> reason


def inspect(paths: Sequence[str], num_workers: int = 0) -> Inspected:
    """Read mappings and look at each of their pictures once.

    Raises FileNotFoundError, and ValueError for a file that is no list of objects or is named twice.
    """
    names = [Path(path).as_posix() for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice; name each JSON file of --audit once")
    mappings = [read_mapping(name) for name in names]
    entries = [
        FileEntry(number, entry.image_path, entry.captions, entry.category, entry.product_id)
        for number, mapping in enumerate(mappings)
        for entry in mapping.entries
    ]
    return Inspected(names, mappings, entries, *inspect_pictures(entries, num_workers))


def audit(paths: Sequence[str], num_workers: int = 0) -> dict:
    """Check mappings, together and each by itself -> the report, a dict for JSON. Raises as `inspect` does."""
    return report(inspect(paths, num_workers))


def report(inspected: Inspected) -> dict:
    """What was found in mappings, a dict for JSON."""
    names, mappings, entries, pictures, unreadable = inspected
    return {
        "files": {name: describe(mapping, unreadable) for name, mapping in zip(names, mappings)},
        "leakage": {
            "products": shared_products(entries, names),
            "pictures": identical_pictures(entries, pictures, names),
        },
        "near_duplicates": near_duplicates(entries, pictures) if can_fingerprint() else None,
        "pictures_of_several_products": pictures_of_several_products(entries, pictures),
        "repeated_pictures": repeated_pictures(entries, pictures),
        "captions_of_several_products": captions_of_several_products(entries),
        "captions_over_77_tokens": long_captions(entries),
        **questionable_captions(entries),
        "tiny_pictures": sized(pictures, lambda width, height: min(width, height) < TINY),
        "extreme_pictures": sized(pictures, lambda width, height: max(width, height) > EXTREME * min(width, height)),
        "unreadable_pictures": unreadable_pictures(unreadable),
        "categories": categories(entries, names),
    }


def leaks(report: dict) -> bool:
    """Whether the files share products or pictures."""
    return any(finding["count"] for finding in report["leakage"].values())


# ------------------------------------------------------------------------------------------------- reading


def inspect_pictures(entries: Entries, num_workers: int) -> tuple[Pictures, dict[str, str]]:
    """({image_path: Picture}, {image_path: reason}), each picture read once, by `num_workers` processes."""
    paths = list(dict.fromkeys(entry.image_path for entry in entries))
    look = partial(inspect_picture, with_look=can_fingerprint())
    pictures, unreadable = {}, {}
    with ProcessPoolExecutor(num_workers) if num_workers > 1 and len(paths) > 500 else nullcontext() as pool:
        results = pool.map(look, paths, chunksize=64) if pool else map(look, paths)
        for path, result in zip(paths, tqdm(results, total=len(paths), unit=" pictures", disable=None)):
            if isinstance(result, Picture):
                pictures[path] = result
            else:
                unreadable[path] = result
    return pictures, unreadable


def inspect_picture(image_path: str, with_look: bool) -> Picture | str:
    """A Picture, or the reason why there is none."""
    try:
        data = read_source(image_path)
        picture = load_picture(data)
    except PictureError as error:
        return error.reason
    look = fingerprint(picture) if with_look else None
    return Picture(hashlib.sha256(data).digest(), *picture.size, look)


# ------------------------------------------------------------------------------------------------- findings


def finding(items: list) -> dict:
    """How many there are, and the first of them."""
    return {"count": len(items), "listed": items[:LISTED]}


def describe(mapping: Mapping, unreadable: Collection[str]) -> dict:
    """Counts of one file."""
    skipped = defaultdict(list)
    for entry in mapping.skipped:
        skipped[entry.reason].append(entry.number)
    return {
        "entries": len(mapping.entries) + len(mapping.skipped),
        "usable": sum(entry.image_path not in unreadable for entry in mapping.entries),
        "products": len({entry.product_id for entry in mapping.entries}),
        "captions": len({caption for entry in mapping.entries for caption in entry.captions}),
        "unusable_entries": {reason: finding(numbers) for reason, numbers in sorted(skipped.items())},
        "remarks": mapping.remarks(),
    }


def by_file(entries: Entries, names: list[str]) -> dict[str, list[str]]:
    """{file: image paths}, a few each."""
    paths = defaultdict(list)
    for entry in entries:
        paths[names[entry.file]].append(entry.image_path)
    return {name: found[:EXAMPLES] for name, found in paths.items()}


def grouped(entries: Entries, key: Callable[[FileEntry], Any]) -> dict[Any, list[FileEntry]]:
    """{key: entries}, without the entries whose key is None."""
    groups = defaultdict(list)
    for entry in entries:
        value = key(entry)
        if value is not None:
            groups[value].append(entry)
    return groups


def shared_products(entries: Entries, names: list[str]) -> dict:
    """Products that are in more than one file."""
    groups = grouped(entries, lambda entry: entry.product).items()
    return finding(
        [
            {"product_id": product, "images": by_file(group, names)}
            for product, group in groups
            if len({entry.file for entry in group}) > 1
        ]
    )


def digest_of(pictures: Pictures) -> Callable[[FileEntry], bytes | None]:
    """The key that puts entries with identical pictures together."""
    return lambda entry: pictures[entry.image_path].digest if entry.image_path in pictures else None


def identical_pictures(entries: Entries, pictures: Pictures, names: list[str]) -> dict:
    """Pictures whose bytes are in more than one file."""
    groups = grouped(entries, digest_of(pictures)).items()
    return finding(
        [
            {"sha256": digest.hex(), "images": by_file(group, names)}
            for digest, group in groups
            if len({entry.file for entry in group}) > 1
        ]
    )


def pictures_of_several_products(entries: Entries, pictures: Pictures) -> dict:
    """Identical pictures that show different products, in one file or several."""
    found = []
    for group in grouped(entries, digest_of(pictures)).values():
        products = list(dict.fromkeys(entry.product for entry in group))
        if len(products) > 1:
            found.append(
                {"image": group[0].image_path, "products": products[:EXAMPLES], "product_count": len(products)}
            )
    return finding(found)


def repeated_pictures(entries: Entries, pictures: Pictures) -> dict:
    """Identical pictures that are in one file more than once, whatever they show."""
    digest = digest_of(pictures)
    groups = grouped(entries, lambda entry: (entry.file, digest(entry)) if digest(entry) else None).values()
    return finding(
        [
            {"images": [entry.image_path for entry in group[:EXAMPLES]], "times": len(group)}
            for group in groups
            if len(group) > 1
        ]
    )


def captions_of_several_products(entries: Entries) -> dict:
    """Captions that describe different products: each is a wrong answer to the other's question."""
    groups = defaultdict(dict)
    for entry in entries:
        for caption in entry.captions:
            groups[caption][entry.product] = None
    found = [(caption, list(products)) for caption, products in groups.items() if len(products) > 1]
    found.sort(key=lambda item: -len(item[1]))
    return finding(
        [
            {"caption": caption, "products": products[:EXAMPLES], "product_count": len(products)}
            for caption, products in found
        ]
    )


def long_captions(entries: Entries) -> dict:
    """Captions that a tokenizer would cut, by an estimate."""
    lengths = {caption: about_tokens(caption) for entry in entries for caption in entry.captions}
    found = sorted(((count, caption) for caption, count in lengths.items() if count > MAX_TOKENS), reverse=True)
    return finding([{"tokens_about": count, "caption": caption[:1000]} for count, caption in found])


def questionable_captions(entries: Entries) -> dict[str, dict]:
    """Captions with markup, captions that are only a name, captions in another language than most."""
    items = ((caption, entry.image_path, entry.product) for entry in entries for caption in entry.captions)
    return {f"captions_{kind}": finding(found) for kind, found in caption_findings(items).items()}


def about_tokens(caption: str) -> int:
    """About how many tokens CLIP's tokenizer makes of a caption, its two marks included.

    One for each short word, digit and run of signs; a long word takes more. 5 % off on average for English, up to a third
    too low for other scripts.
    """
    count = 2
    for piece in TOKEN.findall(caption):
        if not piece.isascii():
            count += -(-len(piece.encode()) // 2) if piece[0].isalpha() else 2
        else:
            count += -(-len(piece) // 8) if piece.isalpha() else 1
    return count


def sized(pictures: Pictures, odd: Callable[[int, int], bool]) -> dict:
    """Pictures of an odd size."""
    found = [(path, p.width, p.height) for path, p in pictures.items() if odd(p.width, p.height)]
    return finding([{"image": path, "width": width, "height": height} for path, width, height in found])


def unreadable_pictures(unreadable: dict[str, str]) -> dict[str, dict]:
    """Pictures that are missing or damaged, by reason."""
    reasons = defaultdict(list)
    for path, reason in unreadable.items():
        reasons[reason].append(path)
    return {reason: finding(paths) for reason, paths in sorted(reasons.items())}


def categories(entries: Entries, names: list[str]) -> dict[str, dict]:
    """{category: {file: {"images": count, "products": count}}}, the largest first."""
    groups = sorted(grouped(entries, lambda entry: entry.category).items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        category: {
            names[file]: {"images": len(part), "products": len({entry.product for entry in part})}
            for file, part in sorted(grouped(group, lambda entry: entry.file).items())
        }
        for category, group in groups
    }


def near_duplicates(entries: Entries, pictures: Pictures) -> dict[str, dict]:
    """Pairs of pictures that look the same though their bytes differ, by what they have in common."""
    looks = {path: picture.look for path, picture in pictures.items() if picture.look is not None}
    first_of = {}  # one entry for each picture and file
    for entry in entries:
        if entry.image_path in looks:
            first_of.setdefault((pictures[entry.image_path].digest, entry.file), entry)
    items = list(first_of.values())
    kinds = {kind: {"count": 0, "listed": []} for kind in ("across_files", "other_product", "same_product")}
    for pairs in close_pairs(looks[entry.image_path] for entry in items):
        for first, second, distance in zip(*(values.tolist() for values in pairs)):
            a, b = items[first], items[second]
            if pictures[a.image_path].digest == pictures[b.image_path].digest:
                continue
            across = "across_files" if a.file != b.file else None
            kind = kinds[across or ("same_product" if a.product == b.product else "other_product")]
            kind["count"] += 1
            if len(kind["listed"]) < LISTED:
                kind["listed"].append({"images": [a.image_path, b.image_path], "distance": distance})
    for kind in kinds.values():
        kind["listed"].sort(key=lambda pair: pair["distance"])
    return kinds
