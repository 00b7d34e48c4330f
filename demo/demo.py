"""The whole pipeline on a drawn catalogue: `make demo`, or `python demo/demo.py`.

Draws a catalogue in Fashion-Gen's raw layout, then runs the scripts by their documented commands in `demo_run/`; at the end
there is an index of each model, for `make serve`.
A tiny OpenCLIP model, trained from random weights, stands in for a pretrained one; knobs are set as a user would set
them, by flags and CLIP_... variables.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "demo_run"
KNOBS = {
    "CLIP_ON_COLAB": "false",  # everything stays in demo_run
    "CLIP_MODEL_NAME": "../demo/tiny_clip.json",
    "CLIP_MODEL_PRETRAINED": "",
    "CLIP_TRAIN_DATASET_PATTERN": "webdataset_shards/clip_dataset_train.{000000..000003}.tar",
    "CLIP_VALID_DATASET_PATTERN": "webdataset_shards/clip_dataset_valid.{000000..000000}.tar",
}
COMMANDS = [
    "../demo/draw_catalogue.py . --train-products 1200 --valid-products 240",
    "../clip_prep.py --split train",
    "../clip_prep.py --split valid",
    "../create_webdataset.py --json clip_dataset_train.json --output-dir webdataset_shards --shard-size 1000",
    "../create_webdataset.py --json clip_dataset_valid.json --output-dir webdataset_shards --shard-size 1000",
    "../evaluate_clip.py",
    "../clipFineTuner.py --batch-size 128 --max-steps 200 --log-interval 20",
    "../evaluate_clip.py --use-checkpoint",
    f"../search_clip.py index {KNOBS['CLIP_VALID_DATASET_PATTERN']} --output index_base",
    f"../search_clip.py index {KNOBS['CLIP_VALID_DATASET_PATTERN']} --output index --checkpoint checkpoints/final_checkpoint.pt",
]


def main():
    """Run every command; the first that fails ends the demo with its exit code."""
    start = time.perf_counter()
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIP_")} | KNOBS
    print("In demo_run/, with", *(f"{name}='{value}'" for name, value in KNOBS.items()), sep="\n    ")
    for commands in [*([command] for command in COMMANDS[:-2]), COMMANDS[-2:]]:  # the indexes side by side
        print("", *(f"$ python {command}" for command in commands), sep="\n", flush=True)
        running = [
            subprocess.Popen([sys.executable, *command.split()], cwd=RUN, env=environment) for command in commands
        ]
        if status := next(filter(None, [process.wait() for process in running]), 0):
            sys.exit(status)
    print(f"\n{summary()}\n\n{time.perf_counter() - start:.0f} seconds in all; everything is in {RUN.name}/")
    print("make serve: both models side by side in a browser, at http://127.0.0.1:8000")


def summary():
    """Recall before and after beside chance, from the two result files."""
    before, after = (
        json.loads((RUN / name).read_text())
        for name in ("evaluation_results.json", "evaluation_results_checkpoint.json")
    )
    products = before["num_products"]
    lines = [f"Recall on {products} products that the model never saw{'':9}chance   before    after"]
    for k in (5, 10):
        for direction in ("text_to_image", "image_to_text"):
            chance = before["protocols"]["product"][direction]["chance"][f"recall@{k}"]
            values = (chance, before[f"recall@{k}"][direction], after[f"recall@{k}"][direction])
            label = f"  Recall@{k}, {direction.replace('_to_', ' -> ')}"
            lines.append(label.ljust(len(lines[0]) - 26) + "".join(f"{value:9.3f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
