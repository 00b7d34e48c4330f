"""Fixtures of every test."""

import json
import os
import shutil

import pytest

from tests.helpers import catalogue_sample, write_shard

# Tiny models compute fastest with one thread, and children of a test with theirs would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium; tests that need one are skipped where none is."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
