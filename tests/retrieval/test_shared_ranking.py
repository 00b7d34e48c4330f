"""Several processes rank a part each, and other devices than the CPU; this file is also the worker of the processes."""

import json
import sys

import numpy as np
import pytest
import torch

from clip_finetuning.retrieval import ranking, results, tiles
from clip_finetuning.retrieval.names import STANDARD
from clip_finetuning.retrieval.positives import by_group
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed
from tests.helpers import embedded_catalogue
from tests.processes import run_ranks


def numbers(shared=False):
    """The results of all protocols, of a model in which much ties."""
    embeddings = embedded_catalogue(
        products=40, views=3, noise=1.0, dimensions=24, captions=["two"] * 2 + [*map(str, range(38))]
    )
    embeddings.image_embeddings[5:60:9] = embeddings.image_embeddings[4]
    return results.measure_embeddings(embeddings, list(STANDARD), (1, 5), shared=shared)


def test_processes_that_share_the_ranking_have_the_numbers_of_one_to_the_last_bit(tmp_path):
    done = run_ranks(__file__, "numbers", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["results"] == json.loads(json.dumps(numbers())) and found[1]["results"] == {}
    asked = [part["asked"] for part in found]
    assert sum(asked) == 2 * (39 + 120) + 2 * 40 and abs(asked[0] - asked[1]) <= 4  # each has ranked half


def case():
    random = np.random.default_rng(0)
    return (
        random.normal(size=(30, 8)).astype(np.float32),
        random.normal(size=(50, 8)).astype(np.float32),
        by_group(np.arange(30) % 7, np.arange(50) % 7),
    )


def test_float32_is_not_shortened_for_ranking_and_the_setting_is_put_back(monkeypatch):
    seen, real = [], torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *a, **b: (seen.append(torch.get_float32_matmul_precision()), real(*a, **b))[1]
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        ranking.rank_positives(*case(), device=torch.device("cpu"))
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "high"
        broken = np.full((30, 8), np.nan)
        with pytest.raises(ValueError, match="NaN"):
            ranking.rank_positives(broken, *case()[1:])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("room", [3000, 500, 300])
def test_a_block_that_memory_does_not_hold_is_made_smaller(monkeypatch, room):
    """Fewer queries first, then fewer items; the ranks are the same."""
    real, shapes = torch.mm, []

    def mm(a, b, out):
        if len(a) * len(b) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shapes.append((len(a), len(b)))
        return real(a, b, out=out)

    whole = ranking.rank_positives(*case(), top=3)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(tiles, "FILL", 1)
    smaller = ranking.rank_positives(*case(), top=3)
    assert shapes and all(np.allclose(a, b) for a, b in zip(whole, smaller) if a is not None)
    monkeypatch.setattr(torch, "mm", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("another fault")))
    with pytest.raises(RuntimeError, match="another fault"):
        ranking.rank_positives(*case())


def test_a_device_with_much_memory_takes_larger_blocks(monkeypatch):
    class Elsewhere:
        type = "cuda"

    for free, shape in ((80 * 2**30, (4096, 30_000)), (2**30, (1118, 30_000)), (2**26, (512, 4096))):
        monkeypatch.setattr(tiles, "free_bytes", lambda _, free=free: free)
        assert tiles.shape_for(tiles.Source(np.empty((30_000, 512)), "gallery", Elsewhere())) == shape
    assert devices.free_bytes(torch.device("cpu")) is None


if __name__ == "__main__":
    place = distributed.start("cpu")
    counted = []
    rank_block = tiles.Held.count
    tiles.Held.count = lambda self, *a, **b: (counted.append(self.last - self.first), rank_block(self, *a, **b))[1]
    found = numbers(shared=True)
    with open(f"{sys.argv[2]}/{place.rank}.json", "w") as file:
        json.dump({"results": found, "asked": sum(counted)}, file)
    distributed.end(0)
