"""Pictures of a source -> blocks for the model, in worker processes: what is known already is only hashed.

A picture is known by the bytes of its file, wherever it lies and whatever it is called: a catalogue whose shards are cut
anew, or whose files are renamed, is not embedded again.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from clip_finetuning.loading.failure import Failure, failures_as_values
from clip_finetuning.loading.loader import Loader
from clip_finetuning.loading.source import Group, Options
from clip_finetuning.loading.transport import batch_bytes, packed
from clip_finetuning.pictures.decode import load_picture
from clip_finetuning.runtime.accounting import Guessed, Skipped, reason_of
from clip_finetuning.search.source import Opened

THUMBNAIL, QUALITY = 192, 80  # pixels of the longer side at most, and of the JPEG


class Row(NamedTuple):
    """What the index says of a picture; `content` is a hash of its file's bytes, a signed number of 64 bits."""

    image_key: str
    product_id: str
    category: str
    subcategory: str
    caption: str  # the first one; blank if there is none
    content: int


class Block(NamedTuple):
    """Some pictures of a source, in its order; those that are new come decoded."""

    rows: list[Row]
    new: list[int]  # places in `rows` of the pictures below
    images: torch.Tensor  # uint8 (len(new), 3, H, W)
    thumbnails: list[bytes]
    lost: list[Skipped]
    guessed: list[Guessed]

    @property
    def keys(self) -> list[str]:
        """The pictures' keys."""
        return [row.image_key for row in self.rows]


class Pictures(IterableDataset):
    """The Blocks of one rank, for a `loading.loader.Loader`; `known`: the contents, ascending, that are not decoded."""

    def __init__(
        self, opened: Opened, options: Options, transform: Callable[[bytes], torch.Tensor], known: np.ndarray
    ) -> None:
        super().__init__()
        self.source, self.read, self.options = opened.source, opened.read, options
        self.transform, self.known = transform, known
        self.in_shared_memory = False  # where a worker's Blocks lie until they are taken

    def __len__(self) -> int:
        return self.source.num_batches

    def batch_bytes(self) -> int:
        """About the bytes of a Block's pictures."""
        return batch_bytes(self.transform, self.options.batch_size)

    def set_epoch(self, epoch: int, start: int) -> None:
        """One pass is all there is."""

    def __iter__(self) -> Iterator[Block | Failure]:
        info: Any = get_worker_info()
        if info is None:
            return self._blocks(0, 1)
        return failures_as_values(
            packed(block, self.in_shared_memory) for block in self._blocks(info.id, info.num_workers)
        )

    def _blocks(self, worker: int, num_workers: int) -> Iterator[Block]:
        for group in self.source.groups(0, 0, worker, num_workers):
            yield self._block(group)

    def _block(self, group: Group) -> Block:
        rows, new, images, thumbnails = [], [], [], []
        lost = [entry for entry in group.skipped if isinstance(entry, Skipped)]
        guessed = [entry for entry in group.skipped if isinstance(entry, Guessed)]
        for sample in group.samples:
            try:
                said = self.read(sample)
                content = content_of(said.picture)
                if not self._is_known(content):
                    image, thumbnail = self.transform(said.picture), thumbnail_of(said.picture)
                    new.append(len(rows))
                    images.append(image)
                    thumbnails.append(thumbnail)
            except (ValueError, OSError) as error:
                lost.append(Skipped(1, reason_of(error), self.source.name(sample), self.source.identity(sample)))
                continue
            if said.guess:
                guessed.append(Guessed(1, said.guess, self.source.name(sample), self.source.identity(sample)))
            caption = next(iter(said.captions), "")
            rows.append(Row(said.key, said.product_id, said.category, said.subcategory, caption, content))
        stacked = torch.stack(images) if images else torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        return Block(rows, new, stacked, thumbnails, lost, guessed)

    def _is_known(self, content: int) -> bool:
        place = int(np.searchsorted(self.known, content))
        return place < len(self.known) and int(self.known[place]) == content


def block_loader(
    opened: Opened,
    options: Options,
    transform: Callable[[bytes], torch.Tensor],
    known: np.ndarray,
    num_workers: int,
) -> Loader:
    """A Loader of Blocks. Raises ValueError if there is nothing to read."""
    if not opened.source.num_samples:
        reasons = ", ".join(dict.fromkeys(skipped.reason for skipped in opened.source.skipped))
        raise ValueError(f"no usable picture ({reasons or 'the source is empty'}); nothing was written")
    dataset: Any = Pictures(opened, options, transform, known)
    return Loader(dataset, num_workers)


def content_of(data: bytes | str) -> int:
    """A hash of a picture's bytes or of a text, a signed number of 64 bits, the same on every machine."""
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def thumbnail_of(data: bytes) -> bytes:
    """A small JPEG of an encoded picture, encoded anew by us: whatever else the file held is gone. Raises PictureError."""
    picture = load_picture(data, THUMBNAIL)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def unique_keys(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """(rows with a key of their own each, how many were given another one): the second `000000007` is `000000007#2`."""
    met: dict[str, int] = {}
    taken = {row.image_key for row in rows}
    named, renamed = [], 0
    for row in rows:
        key, times = row.image_key, met.get(row.image_key, 0)
        met[row.image_key] = times + 1
        while times and (key := f"{row.image_key}#{met[row.image_key]}") in taken:
            met[row.image_key] += 1
        taken.add(key)
        renamed += key != row.image_key
        named.append(row._replace(image_key=key))
    return named, renamed
