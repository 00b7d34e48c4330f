"""Pictures that look the same though their bytes differ: scaled, saved again, cropped by a hair.

A picture's fingerprint is its perceptual hash (64 bits, ImageHash's `phash`) and its colours (8 x 8 pixels): the hash
sees no colour, and a catalogue shows one garment in many. Hashes within `MAX_DISTANCE` bits agree on at least one of
`MAX_DISTANCE + 1` bands, so only pictures that share a band are compared: a few seconds for 300,000 pictures.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

MAX_DISTANCE = 6  # bits of 64
MAX_COLOUR = 4.0  # mean difference of the colours, in levels of 256: JPEG and scaling make 1, another colour 6 and more
SIDE = 8
COMPARED = 1 << 22  # hash pairs held at a time
CONFIRMED = 1 << 14  # colour pairs held at a time

LOOK = 8 + SIDE * SIDE * 3  # bytes of a packed fingerprint
Look = tuple[int, bytes]  # a hash below 2^64, and 192 bytes of colours
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # first, second, distance


def can_fingerprint() -> bool:
    """Whether the library for it is there."""
    try:
        import imagehash  # noqa: F401
    except ImportError:
        return False
    return True


def fingerprint(picture: Image.Image) -> Look:
    """RGB picture -> (hash, colours): a number below 2^64 and 192 bytes."""
    import imagehash

    bits = imagehash.phash(picture).hash
    colours = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), colours.tobytes()


def packed(look: Look) -> bytes:
    """A fingerprint as `LOOK` bytes."""
    return look[0].to_bytes(8, "big") + look[1]


def unpacked(looks: np.ndarray) -> list[Look]:
    """The fingerprints of packed ones, (N, LOOK) uint8."""
    return [(int.from_bytes(row[:8], "big"), row[8:]) for row in map(bytes, looks)]


def differences(looks: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bits, levels) by which packed fingerprints (N, LOOK) differ from another one (LOOK,): (N,) each."""
    bits = np.unpackbits(np.bitwise_xor(looks[:, :8], other[:8], dtype=np.uint8), axis=1).sum(axis=1, dtype=np.int64)
    return bits, np.abs(looks[:, 8:].astype(np.int16) - other[8:]).mean(axis=1)


def close_pairs(fingerprints: Iterable[Look]) -> Iterator[Pairs]:
    """Yield (first, second, distance), three int arrays, of the pictures that look the same; first < second.

    Of pictures with equal fingerprints, each is paired with their first, and only that is compared with others.
    """
    firsts, repeats = {}, []
    for index, key in enumerate(fingerprints):
        first = firsts.setdefault(key, index)
        if first != index:
            repeats.append((first, index))
    if repeats:
        repeats = np.array(repeats)
        yield repeats[:, 0], repeats[:, 1], np.zeros(len(repeats), dtype=int)
    hashes = np.array([key for key, _ in firsts], dtype=np.uint64)
    colours = np.frombuffer(b"".join(colours for _, colours in firsts), dtype=np.uint8).reshape(
        len(firsts), SIDE * SIDE * 3
    )
    indices = np.fromiter(firsts.values(), dtype=np.int64, count=len(firsts))
    for first, second, distance in close_hashes(hashes):
        same = _same_colours(colours, first, second)
        if same.any():
            yield indices[first[same]], indices[second[same]], distance[same]


def close_hashes(hashes: np.ndarray) -> Iterator[Pairs]:
    """Yield (first, second, distance) of all pairs of 64-bit hashes within `MAX_DISTANCE` bits, each pair once."""
    masks = _band_masks()
    for band, mask in enumerate(masks):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
        for group in np.split(order, starts[1:]):
            if len(group) > 1:
                yield from _close_in_group(hashes, group, masks[:band])


def _band_masks() -> list[np.uint64]:
    bands = np.array_split(np.arange(64), MAX_DISTANCE + 1)
    return [np.uint64(sum(1 << int(bit) for bit in bits)) for bits in bands]


def _close_in_group(hashes, group, earlier_masks):
    """Close pairs among those that share a band, less those that share an earlier band and were found there."""
    rows = max(1, COMPARED // len(group))
    for start in range(0, len(group) - 1, rows):
        left, right = group[start : start + rows], group[start:]
        bits = hashes[left, None] ^ hashes[None, right]
        distance = _bit_count(bits)
        close = np.triu(distance <= MAX_DISTANCE, k=1)
        for mask in earlier_masks:
            close &= (bits & mask) != 0
        row, column = np.nonzero(close)
        if len(row):
            first, second = left[row], right[column]
            yield np.minimum(first, second), np.maximum(first, second), distance[row, column]


def _same_colours(colours, first, second):
    """Which pairs have nearly the same colours, (pairs,) bool."""
    same = np.empty(len(first), dtype=bool)
    for start in range(0, len(first), CONFIRMED):
        part = slice(start, start + CONFIRMED)
        difference = np.abs(colours[first[part]].astype(np.int16) - colours[second[part]])
        same[part] = difference.mean(axis=1) <= MAX_COLOUR
    return same


def _bit_count(values: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(values)
    counts = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
    return counts[values.view(np.uint8)].reshape(*values.shape, 8).sum(axis=-1)
