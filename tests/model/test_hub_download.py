"""The documented default is downloaded by the hub's own client, from a server that speaks its protocol."""

import json
import os
import subprocess
import sys

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save

import openClipManagement as clip
from tests.helpers import ROOT, TINY
from tests.hub_server import Hub, point_to

REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
FILE = "open_clip_model.safetensors"
# The architecture of the default, small enough for a test; everything else is the real thing.
# Large enough for the client, which writes what it gets by 10 MiB.
SMALL = {**TINY, "text_cfg": {**TINY["text_cfg"], "width": 64}}
SHRUNK = f"import open_clip; open_clip.factory._MODEL_CONFIGS['ViT-B-32'] = {SMALL!r}\n"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(9)
    return {name: value.contiguous() for name, value in open_clip.CLIP(**SMALL).state_dict().items()}


def evaluate(folder, endpoint, *arguments):
    """evaluate_clip.py by its defaults, with an empty cache of its own -> the finished process."""
    program = f"{SHRUNK}import runpy; runpy.run_path({str(ROOT / 'evaluate_clip.py')!r}, run_name='__main__')"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CLIP_", "HUGGING"))},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", program, "--device", "cpu", "--num-workers", "0", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=120)


def test_the_default_is_downloaded_and_evaluated_and_goes_on_where_it_broke_off(tmp_path, make_shards, weights):
    data = save(weights)
    shards = make_shards(tmp_path / "valid", products=4, views=1, shards=1)
    half = len(data) - 1000
    with Hub({REPOSITORY: {FILE: data}}, cuts={FILE: [half]}) as hub:
        done = evaluate(tmp_path, hub.address, "--dataset-path", shards, "--output", "a.json")
        if int(huggingface_hub.__version__.split(".")[0]) < 1:  # breaks off itself, and goes on when it is called again
            assert done.returncode == 2 and "could not be had" in done.stderr
            done = evaluate(tmp_path, hub.address, "--dataset-path", shards, "--output", "a.json")
    assert done.returncode == 0, done.stderr
    assert "downloading" in done.stdout
    gets = [(path, asked) for method, path, asked in hub.asked if method == "GET" and path.endswith(FILE)]
    assert [asked for _, asked in gets] == ["", f"bytes={10 * 2**20}-"]
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["model"]["name"], result["model"]["weights"]) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert result["num_samples"] == 4


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", SMALL)


def test_no_file_is_taken_half(tmp_path, monkeypatch, weights, small):
    with Hub(
        {REPOSITORY: {FILE: save(weights)}}, cuts={FILE: [1000, 0]}
    ) as hub:  # it breaks off, then the server fails
        point_to(monkeypatch, hub.address)
        with pytest.raises(ValueError, match="could not be had"):
            clip.create_model("ViT-B-32", "laion2b_s34b_b79k", str(tmp_path))
        assert not list(tmp_path.rglob("snapshots/*/*"))
        loaded = clip.create_model("ViT-B-32", "laion2b_s34b_b79k", str(tmp_path))  # the same again
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    asked = len(hub.asked)
    clip.create_model("ViT-B-32", "laion2b_s34b_b79k", str(tmp_path))  # from the cache
    assert len(hub.asked) == asked
