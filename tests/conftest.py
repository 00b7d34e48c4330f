"""Shards of small drawn pictures, written with tarfile alone, for every test that reads shards."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

# Tiny models compute fastest with one thread, and children of a test with theirs would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def encoded_picture(number, size=(40, 48), file_format="JPEG"):
    """A picture that tells its number: a random colour gradient, encoded."""
    random = np.random.default_rng(number)
    corners = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    corners.resize(size, Image.Resampling.BICUBIC).save(buffer, file_format, quality=95)
    return buffer.getvalue()


def add_file(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_shard(path, samples):
    """`samples`: dicts of file name -> bytes."""
    with tarfile.open(path, "w") as tar:
        for files in samples:
            for name, data in files.items():
                add_file(tar, name, data)


def catalogue_sample(number, product, **fields):
    """The three files of a sample as create_webdataset.py writes them."""
    record = {
        "product_id": f"P{product}",
        "category": "TOPS",
        "subcategory": "KNITS",
        "image_name": f"P{product}_{number}.png",
    }
    return {
        f"{number:09d}.jpg": encoded_picture(number),
        f"{number:09d}.txt": f"Caption of product {product}".encode(),
        f"{number:09d}.json": json.dumps(record | fields).encode(),
    }


@pytest.fixture(scope="session")
def make_shards():
    """make_shards(folder / "train", products=30, views=3, shards=3): writes them and `sizes.json`, returns the pattern."""

    def make(prefix, products=30, views=3, shards=3, first_product=0):
        first = first_product * views
        samples = [catalogue_sample(number, number // views) for number in range(first, first + products * views)]
        prefix.parent.mkdir(parents=True, exist_ok=True)
        sizes_file = prefix.parent / "sizes.json"
        sizes = json.loads(sizes_file.read_text()) if sizes_file.exists() else {}
        for shard in range(shards):
            part = samples[len(samples) * shard // shards : len(samples) * (shard + 1) // shards]
            path = prefix.with_name(f"{prefix.name}.{shard:06d}.tar")
            write_shard(path, part)
            sizes[path.name] = len(part)
        sizes_file.write_text(json.dumps(sizes))
        return f"{prefix}.{{000000..{shards - 1:06d}}}.tar"

    return make
