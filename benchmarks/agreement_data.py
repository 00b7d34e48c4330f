"""What benchmarks/agreement.py compares on: a drawn catalogue's shards, a small model that knows something of it."""

import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "demo" / "tiny_clip.json"
SHARDS = "shards/clip_dataset_valid.{000000..000001}.tar"


def make_data(work: Path, products: int) -> None:
    """By the documented commands: a catalogue, its shards, a model that knows something of it, and our results."""
    work.mkdir(parents=True, exist_ok=True)
    knobs = {"ON_COLAB": "false", "MODEL_NAME": str(CONFIG), "MODEL_PRETRAINED": "", "NUM_WORKERS": "0"}
    knobs |= {"PRECISION": "fp32", "TRAIN_DATASET_PATTERN": SHARDS, "VALID_DATASET_PATTERN": SHARDS}
    environment = os.environ | {f"CLIP_{name}": value for name, value in knobs.items()}
    shard_size = math.ceil(products * 3.5 / 2)  # two shards: a product has two to four pictures
    for command in (
        f"demo/draw_catalogue.py . --train-products 0 --valid-products {products}",
        "clip_prep.py --split valid",
        f"create_webdataset.py --json clip_dataset_valid.json --output-dir shards --shard-size {shard_size}",
        "clipFineTuner.py --batch-size 64 --max-steps 8",
        "evaluate_clip.py --checkpoint checkpoints/final_checkpoint.pt --protocol all --output ours.json "
        "--save-embeddings embeddings.npz --candidates candidates.npz",
    ):
        script, *arguments = command.split()
        run = subprocess.run(
            [sys.executable, ROOT / script, *arguments], cwd=work, env=environment, capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(f"{command}\n{run.stdout}{run.stderr}")


def lay_out(work: Path, name: str, first_views_only: bool) -> str:
    """Our shards where CLIP_benchmark's webdataset reader looks for them -> that folder."""
    folder = work / name
    (folder / "test").mkdir(parents=True, exist_ok=True)
    shards = sorted((work / "shards").glob("*.tar"))
    for number, shard in enumerate(shards):
        target = folder / "test" / f"{number}.tar"
        target.unlink(missing_ok=True)
        if first_views_only:
            copy_first_views(shard, target)
        else:
            target.symlink_to(shard)
    (folder / "test" / "nshards.txt").write_text(str(len(shards)))
    (folder / "dataset_type.txt").write_text("retrieval")
    return str(folder)


def copy_first_views(shard: Path, target: Path) -> None:
    """The samples that are the first of their product; `image_name` ends in the number of the view."""
    with tarfile.open(shard) as source, tarfile.open(target, "w") as copy:
        members = {member.name: member for member in source}
        for name in members:
            key = name.partition(".")[0]
            facts = source.extractfile(members[f"{key}.json"])
            if facts and json.load(facts)["image_name"].rpartition(".")[0].endswith("_1"):
                copy.addfile(members[name], source.extractfile(members[name]))


def coarse(rows: np.ndarray) -> np.ndarray:
    """Unit rows whose only numbers are the signs of the 16 largest: scores are sixteenths, exact in any order of adding."""
    signs = np.zeros_like(rows)
    largest = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :16]
    np.put_along_axis(signs, largest, np.sign(np.take_along_axis(rows, largest, 1)) / 4, 1)
    return signs
