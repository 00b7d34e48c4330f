"""Is the model better, not only trained faster? Ours beside open_clip_train and a plain loop, and what each part brings.

    pip install "open_clip_torch[training]==3.3.0"           # brings open_clip_train and pandas
    python benchmarks/recipe.py WORK                                    # the demo's drawn catalogue
    python benchmarks/recipe.py WORK --catalogue emoji=RAW_FOLDER       # another one, in the raw PAI layout
    python benchmarks/recipe.py WORK --ablation                         # ours with one part changed at a time
    python benchmarks/recipe.py WORK --jobs 2                           # two runs at once, each with half of the cores

Every contender starts from the same random weights of the demo's tiny model (one start a seed), sees the same number of
samples of the same JPEGs in batches of the same size, in fp32, and is measured by evaluate_clip.py on the last weights:
Recall@1/5/10 of the product protocol on validation products, mean of both directions.

ours: `clipFineTuner.py` with its defaults, which for random weights are Muon and a rate of 1e-3.
open_clip_train: its own `main`, from a CSV file, with the flags of its README (--lr 1e-3 --wd 0.1) and, separately, its
defaults (5e-4, 0.2). Their warmup of 10,000 steps is longer than the training; it gets a tenth of the steps, as ours does.
plain loop: ordinary shuffle, each caption the one positive of its picture, `torch.optim.AdamW` as it comes, constant 1e-3.

WORK keeps catalogues, runs and results.jsonl: a run that is in there is not done again, so the benchmark may be
interrupted, and `--at-most 1` does one run at a time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BATCH_SIZE, EPOCHS, LEARNING_RATE = 128, 8, 1e-3
RECALLS = (1, 5, 10)
OURS, PEER, PEER_DEFAULTS, PLAIN = "ours", "open_clip_train", "open_clip_train, its defaults", "plain loop"
PEER_FLAGS = {PEER: "--lr 1e-3 --wd 0.1", PEER_DEFAULTS: "--lr 5e-4 --wd 0.2"}
# What a variant of ours changes: flags of clipFineTuner.py, and functions of `CHANGES` by name.
VARIANTS = {
    "AdamW": "--optimizer adamw",
    "AdamW at three times the rate": "--optimizer adamw --learning-rate 3e-3",
    "AdamW, one positive, ordinary batches": "--optimizer adamw ordinary_batches one_positive",
    "constant rate, no warmup": "--lr-schedule constant --warmup-steps 0",
    "no gradient clipping": "--grad-clip-norm none",
    "no weight decay": "--weight-decay 0",
    "half the rate": "--learning-rate 5e-4",
    "twice the rate": "--learning-rate 2e-3",
    "average of the weights, 0.98": "--ema-decay 0.98",
    "sigmoid loss": "--loss siglip",
    "ordinary batches, positives averaged": "ordinary_batches",
    "ordinary batches, other positives masked": "ordinary_batches masked_positives",
    "ordinary batches, one positive": "ordinary_batches one_positive",
    "one view of a product an epoch": "--views random",
}

# ---------------------------------------------------------------------------------------------- catalogues


def prepare(work, name, raw):
    """Shards, JPEGs and a CSV of a raw catalogue, made once -> its folder."""
    folder = work / name
    if (folder / "train.csv").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if raw is None:
        raw = folder / "raw"
        script("demo/draw_catalogue.py", raw, "--train-products", 1200, "--valid-products", 240)
    script("clip_prep.py", "--split", "all", "--data-dir", raw, "--output", folder / "{split}.json")
    for split in ("train", "valid"):
        script("create_webdataset.py", "--json", folder / f"{split}.json", "--output-dir", folder / "shards")
    write_csv(folder)
    return folder


def write_csv(folder):
    """The pictures and captions of the training shards as open_clip_train's CSV loader wants them."""
    (folder / "jpeg").mkdir(exist_ok=True)
    lines = ["filepath\ttitle"]
    for shard in sorted((folder / "shards").glob("train.*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (name for name in files if name.endswith(".jpg")):
            (folder / "jpeg" / name).write_bytes(files[name])
            caption = files[name.replace(".jpg", ".txt")].decode().strip().replace('"', "'")
            lines.append(f"{folder / 'jpeg' / name}\t{caption}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pattern(folder, split):
    count = len(list((folder / "shards").glob(f"{split}.*.tar")))
    return str(folder / "shards" / f"{split}.{{000000..{count - 1:06d}}}.tar")


def total_steps(folder):
    """EPOCHS of the training shards, in full batches."""
    return EPOCHS * ((len((folder / "train.csv").read_text().splitlines()) - 1) // BATCH_SIZE)


def script(path, *arguments, cwd=ROOT, threads=None):
    """Run a script of this repository; RuntimeError with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIP_")}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, str(ROOT / path), *map(str, arguments)]
    finished = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{finished.stdout[-3000:]}")


# ------------------------------------------------------------- contenders, each in a process of its own -> weights file


def start_weights(run, config, seed):
    """The random weights that all contenders of a seed start from -> (their file, the model's number of parameters)."""
    import openClipManagement as clip

    path = run / "start.pt"
    clip.save_checkpoint(path, clip.create_model(str(config), "", seed=seed))
    return path


def ours(run, folder, config, start, seed, steps, changes=()):
    """`clipFineTuner.py`, with `changes` made to it first and further flags."""
    import clipFineTuner

    names = [change for change in changes if change in CHANGES]
    for name in names:
        CHANGES[name](folder)
    flags = [change for change in changes if change not in CHANGES]
    fixed = {
        "--train-dataset-pattern": pattern(folder, "train"),
        "--model-name": config,
        "--model-pretrained": start,
        "--checkpoint-dir": run,
        "--batch-size": BATCH_SIZE,
        "--max-steps": steps,
        "--seed": seed,
        "--precision": "fp32",
        "--eval-interval": "none",
    }
    clipFineTuner.main([str(word) for pair in fixed.items() for word in pair] + flags)
    return run / "final_checkpoint.pt"


def open_clip_train(run, folder, config, start, seed, steps, name):
    import open_clip
    from open_clip_train.main import main as train

    named = run / "ViT-tiny.json"  # the name chooses CLIP's betas and epsilon
    shutil.copy(config, named)
    open_clip.add_model_config(named)
    flags = (
        f"{PEER_FLAGS[name]} --model ViT-tiny --dataset-type csv --csv-separator \t --batch-size {BATCH_SIZE} "
        f"--epochs {EPOCHS} --warmup {steps // 10} --seed {seed} --precision fp32 --workers 2 --save-frequency 0"
    )
    # Split at blanks alone: the separator is a tab.
    paths = ["--train-data", folder / "train.csv", "--pretrained", start, "--logs", run, "--name", "run"]
    train(flags.split(" ") + [str(path) for path in paths])
    return run / "run" / "checkpoints" / f"epoch_{EPOCHS}.pt"


def plain_loop(run, folder, config, start, seed, steps):
    import torch
    from torch.nn.functional import cross_entropy

    import dBManagement
    import openClipManagement as clip
    from clip_finetuning.model.preprocessing import normalize

    CHANGES["ordinary_batches"](folder)
    clip_model: Any = clip.create_model(str(config), str(start))
    model, targets = clip_model.model.train(), torch.arange(BATCH_SIZE)
    transform = clip.image_transform(clip_model, train=True)
    loader = dBManagement.train_loader(
        pattern(folder, "train"), transform, clip_model.tokenizer, batch_size=BATCH_SIZE, seed=seed, num_workers=2
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    step = 0
    while step < steps:
        loader.set_epoch(step)
        for batch in loader:
            pixels = normalize(batch.images, clip_model.preprocess["mean"], clip_model.preprocess["std"])
            image_features, text_features, scale = model(pixels, batch.tokens)
            logits = scale * image_features @ text_features.T
            loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
    clip.save_checkpoint(run / "plain.pt", clip_model)
    return run / "plain.pt"


def use_ordinary_batches(folder):
    """A plain shuffle, in which views of a product may meet in a batch."""
    from clip_finetuning.loading import local
    from clip_finetuning.loading.seeds import generator

    def plan(products, batch_size, seed, epoch, views="all"):
        order = generator(seed, epoch).permutation(len(products))
        return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)

    local.plan_epoch = plan


def use_masked_positives(folder):
    """A sample's other positives take no part in its loss."""
    import torch
    from torch.nn.functional import cross_entropy

    from clip_finetuning.training import losses

    def loss(image_embeddings, text_embeddings, products, logit_scale, logit_bias=None):
        logits, targets = logit_scale * image_embeddings @ text_embeddings.T, torch.arange(len(products))
        others = losses.positives(products) & ~torch.eye(len(products), dtype=torch.bool)
        logits = logits.masked_fill(others, -torch.inf)
        return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2

    losses.clip_loss = loss


def use_one_positive(folder):
    """Every other sample is a negative, of whatever product."""
    import torch

    from clip_finetuning.training import losses

    usual = losses.clip_loss

    def loss(image_embeddings, text_embeddings, products, *rest):
        return usual(image_embeddings, text_embeddings, torch.arange(len(products)), *rest)

    losses.clip_loss = loss


CHANGES = {
    "ordinary_batches": use_ordinary_batches,
    "masked_positives": use_masked_positives,
    "one_positive": use_one_positive,
}


def contend(name, folder, config, seed, run):
    """The process of one run: train, and print the path of the weights last."""
    run, folder, config = Path(run), Path(folder), Path(config)
    start = start_weights(run, config, seed)
    fixed = (run, folder, config, start, seed, total_steps(folder))
    if name in PEER_FLAGS:
        path = open_clip_train(*fixed, name)
    elif name == PLAIN:
        path = plain_loop(*fixed)
    else:
        path = ours(*fixed, VARIANTS[name].split() if name in VARIANTS else ())
    shutil.move(path, run / "trained.pt")


# ---------------------------------------------------------------------------------------------------- runs


def measure(work, catalogue, folder, config, name, seed, threads):
    """Train and evaluate one contender -> its line of results.jsonl."""
    run = work / "runs" / f"{catalogue}, {name}, {seed}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    begin = time.perf_counter()
    contender = json.dumps([name, str(folder), str(config), seed, str(run)])
    script("benchmarks/recipe.py", "WORK", "--contender", contender, threads=threads)
    seconds = time.perf_counter() - begin
    script(
        "evaluate_clip.py", "--model-name", config, "--checkpoint", run / "trained.pt", "--dataset-path",
        pattern(folder, "valid"), "--output", run / "results.json", "--precision", "fp32", "--protocol", "product",
        cwd=run, threads=threads,
    )  # fmt: skip
    product = json.loads((run / "results.json").read_text())["protocols"]["product"]
    shutil.rmtree(run)
    recalls = {way: [product[way][f"recall@{k}"] for k in RECALLS] for way in ("text_to_image", "image_to_text")}
    return {"catalogue": catalogue, "contender": name, "seed": seed, "seconds": round(seconds), **recalls}


def load_results(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(results, catalogue, names):
    print(f"\n{catalogue}: Recall in %, mean of both directions; mean of the seeds ± their standard deviation")
    print(f"| {'':<40} | seeds |" + "".join(f" {f'Recall@{k}':>12} |" for k in RECALLS) + " mean of the three |")
    print(f"|{'-' * 42}|------:|" + "-------------:|" * len(RECALLS) + "------------------:|")
    for name in names:
        mine = [r for r in results if (r["catalogue"], r["contender"]) == (catalogue, name)]
        if not mine:
            continue
        recalls = [[50 * (a + b) for a, b in zip(r["text_to_image"], r["image_to_text"])] for r in mine]
        columns = [*zip(*recalls), [statistics.mean(row) for row in recalls]]
        cells = [
            f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" if len(c) > 1 else f"{c[0]:.1f}" for c in columns
        ]
        print(f"| {name:<40} | {len(mine):>5} |" + "".join(f" {c:>12} |" for c in cells[:-1]) + f" {cells[-1]:>17} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for everything it writes")
    parser.add_argument("--catalogue", action="append", metavar="NAME=FOLDER", help="raw catalogues [demo, drawn]")
    parser.add_argument("--only", action="append", metavar="CONTENDER", help="this one; may be repeated")
    parser.add_argument("--ablation", action="store_true", help="ours and its variants, not the others")
    parser.add_argument("--seeds", type=int, default=3, help="random starts [3]")
    parser.add_argument("--model", type=Path, default=ROOT / "demo/tiny_clip.json", help="config JSON [the demo's]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; the cores are shared out among them [1]")
    parser.add_argument(
        "--at-most", type=int, metavar="N", help="stop after so many new runs; exit code 3 if more are due"
    )
    parser.add_argument("--contender", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contend(*options.contender)
        return
    names = options.only or ([OURS, *VARIANTS] if options.ablation else [OURS, PEER, PEER_DEFAULTS, PLAIN])
    work = options.work.resolve()
    catalogues = dict(pair.split("=", 1) for pair in options.catalogue or ["demo="])
    folders = {name: prepare(work, name, Path(raw).resolve() if raw else None) for name, raw in catalogues.items()}
    results = load_results(work / "results.jsonl")
    done = {(r["catalogue"], r["contender"], r["seed"]) for r in results}
    due = [(c, n, s) for s in range(options.seeds) for c in folders for n in names if (c, n, s) not in done]
    config = options.model.resolve()
    threads = None if options.jobs == 1 else max(1, os.cpu_count() // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(measure, work, c, folders[c], config, n, s, threads) for c, n, s in due[: options.at_most]]
        try:
            for run in as_completed(runs):
                results.append(run.result())
                with open(work / "results.jsonl", "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(json.dumps(results[-1]), flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, only what runs already is waited for
    for catalogue in folders:
        print_table(results, catalogue, names)
    if options.at_most is not None and len(due) > options.at_most:
        sys.exit(3)


if __name__ == "__main__":
    main()
