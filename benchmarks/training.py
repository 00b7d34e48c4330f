"""Training throughput and memory beside open_clip_train's own step and a plain loop.

    pip install "open_clip_torch[training]==3.3.0"           # brings open_clip_train
    python benchmarks/training.py                            # ViT-B-32 and the demo's model, on the best device
    python benchmarks/training.py --device cpu --rounds 9
    python benchmarks/training.py --case ViT-B-32 256 4      # any model, batch size, steps a turn

Contenders: ours is `train_step` with AdamW and without an anchor, then held to its start by ANCHOR=1, as weights that were
trained before are by default, and for the demo's model also with Muon, the default for random ones; open_clip_train is its `train_one_epoch` with its
AdamW and ClipLoss and its defaults; the plain loop is the model's own forward, cross entropy and `torch.optim.AdamW` as
it comes, in fp32. All train the same model from the same random weights, at full batch, on batches that lie in memory.
Ours gets uint8 pictures, as its loader gives, and normalises them within the step; the others get finished floats.

Captions are product descriptions: for ViT-B-32 about 53 tokens of 77, for the demo's model the demo's own.

A contender is a process of its own; they take turns of a few steps, after one turn to warm up. Printed are medians, ratios
of medians, and the peak memory of a contender: of the device if that is a GPU, else of its whole process.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = "demo/tiny_clip.json"
CASES = [["ViT-B-32", 16, 1], [DEMO_MODEL, 128, 3]]  # model, batch size, steps a turn
OURS, HELD, OURS_MUON = "ours", "ours, held to its start", "ours with Muon"
PEER, PLAIN = "open_clip_train", "plain loop"
DIFFERENT_BATCHES = 4
LEARNING_RATE = 1e-5
PEER_PRECISION = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}


def captions(model_name, count):
    """Product descriptions as this model would be trained on."""
    if model_name == DEMO_MODEL:
        sys.path.insert(0, str(ROOT / "demo"))
        from draw_catalogue import caption_of, draw_product

        dice = random.Random(0)
        return [caption_of(draw_product(dice), dice) for _ in range(count)]
    import numpy as np
    from loader import caption

    dice = np.random.default_rng(0)
    return [caption(dice) for _ in range(count)]


def make_batches(clip_model, model_name, batch_size):
    """`DIFFERENT_BATCHES` of (uint8 images (B, 3, H, W), tokens (B, L)) on the CPU."""
    import torch

    torch.manual_seed(0)
    size = clip_model.preprocess["size"]
    size = size if isinstance(size, int) else size[0]
    tokens = clip_model.tokenizer(captions(model_name, DIFFERENT_BATCHES * batch_size)).split(batch_size)
    images = (torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8) for _ in tokens)
    return [(i.contiguous(memory_format=torch.channels_last), t) for i, t in zip(images, tokens)]


# -------------------------------------------------------------------------------- contenders: steps -> None


def ours(clip_model, batches, precision, optimizer_kind="adamw", held=False):
    import torch

    from clip_finetuning.training.anchor import Anchor, frozen
    from clip_finetuning.training.plan import Plan
    from clip_finetuning.training.state import planned_optimizer
    from clip_finetuning.training.step import train_step

    size = len(batches[0][1])
    plan = Plan(
        total_steps=10_000,
        batch_size=size,
        micro_batch_size=size,
        precision=precision,
        loss="clip",
        optimizer=optimizer_kind,
        learning_rate=LEARNING_RATE,
        schedule="cosine",
        warmup_steps=0,
        weight_decay=0.1,
        betas=(0.9, 0.98),
        eps=1e-6,
        grad_clip_norm=1.0,
        ema_decay=None,
        seed=0,
        log_interval=10,
        checkpoint_interval=1000,
        eval_interval=None,
        patience=None,
        keep="gain",
        settings={},
    )
    anchor = Anchor(frozen(clip_model), 1.0) if held else None
    optimizer = planned_optimizer(plan, clip_model)
    scaler = torch.amp.GradScaler(clip_model.device.type, enabled=precision == "fp16")
    identities = torch.arange(size)[:, None].expand(-1, 2).contiguous()
    batches = [types.SimpleNamespace(images=i, tokens=t, identities=identities) for i, t in batches]

    def run(steps):
        for step in range(steps):
            batch = batches[step % len(batches)]
            done = train_step(
                clip_model, optimizer, scaler, batch, plan, step=step, micro_batch_size=size, anchor=anchor
            )
        done.loss.item()

    return run


def open_clip_train(clip_model, batches, precision):
    import torch
    from open_clip import create_loss
    from open_clip_train.params import parse_args
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    size, model = len(batches[0][1]), clip_model.model
    flags = f"--batch-size {size} --lr {LEARNING_RATE} --warmup 1 --precision {PEER_PRECISION[precision]}"
    args = parse_args([*flags.split(), "--model", "ViT-B-32"])  # the name chooses CLIP's betas and epsilon
    args.__dict__.update(device=str(clip_model.device), rank=0, world_size=1, distill=False, wandb=False)
    # As its main.py chooses them.
    no_decay = {n for n, p in model.named_parameters() if p.ndim < 2 or any(w in n for w in ("bn", "ln", "bias"))}
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in no_decay], "weight_decay": 0.0},
        {"params": [p for n, p in model.named_parameters() if n not in no_decay], "weight_decay": args.wd},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
    scheduler = cosine_lr(optimizer, args.lr, args.warmup, 10_000)
    scaler = torch.amp.GradScaler(device=args.device) if precision == "fp16" else None
    loss = create_loss(args)
    model.output_dict = True
    batches = as_floats(clip_model, batches)

    class Loader:
        def __init__(self, steps):
            self.num_batches, self.num_samples = steps, steps * size

        def __iter__(self):
            return (batches[step % len(batches)] for step in range(self.num_batches))

    def run(steps):
        data = {"train": types.SimpleNamespace(dataloader=Loader(steps), set_epoch=lambda epoch: None)}
        train_one_epoch(model, data, loss, 0, optimizer, scaler, scheduler, None, args)

    return run


def plain_loop(clip_model, batches, precision):
    import torch
    from torch.nn.functional import cross_entropy

    model, device = clip_model.model, clip_model.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    batches, targets = as_floats(clip_model, batches), torch.arange(len(batches[0][1]), device=device)

    def run(steps):
        model.train()
        for step in range(steps):
            images, tokens = (tensor.to(device) for tensor in batches[step % len(batches)])
            image_features, text_features, scale = model(images, tokens)
            logits = scale * image_features @ text_features.T
            loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def as_floats(clip_model, batches):
    from clip_finetuning.model.preprocessing import normalize

    mean, std = clip_model.preprocess["mean"], clip_model.preprocess["std"]
    return [(normalize(images, mean, std), tokens) for images, tokens in batches]


# ------------------------------------------------------------------------------------------------- turns


def contend(name, model_name, batch_size, precision, device):
    """A contender's process: for each line on standard input that many steps; prints seconds and peak memory in MiB."""
    sys.path.insert(0, str(ROOT))
    import torch

    import openClipManagement as clip

    torch.set_float32_matmul_precision("high")
    model_name = str(ROOT / model_name) if model_name.endswith(".json") else model_name
    clip_model = clip.create_model(model_name, "", device=clip.pick_device(device), seed=0)
    batches = make_batches(clip_model, model_name.removeprefix(f"{ROOT}/"), batch_size)
    contender = {OURS: ours, HELD: partial(ours, held=True), OURS_MUON: partial(ours, optimizer_kind="muon")}
    contender |= {PEER: open_clip_train, PLAIN: plain_loop}
    run = contender[name](clip_model, batches, precision)
    on_gpu = clip_model.device.type == "cuda"
    real = statistics.mean(float((tokens > 0).sum(1).float().mean()) for _, tokens in batches)
    print(json.dumps({"tokens": real, "context": batches[0][1].shape[1]}), file=sys.stderr, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        if on_gpu:
            torch.cuda.synchronize(clip_model.device)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(clip_model.device) / 2**20 if on_gpu else peak_memory()
        print(json.dumps([seconds, peak]), file=sys.stderr, flush=True)


def peak_memory():
    """The largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Contender:
    def __init__(self, name, precision, model_name, batch_size, device):
        arguments = json.dumps([name, model_name, batch_size, precision, device])
        command = [sys.executable, __file__, "--contender", arguments]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        # The answers come on standard error's place, because libraries print on standard output.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.name, self.precision, self.seconds, self.peak = name, precision, [], 0.0
        self.about = self._read()

    def _read(self):
        other = []
        for line in self.process.stderr:
            if line.startswith(("{", "[")):
                return json.loads(line)
            other.append(line)
        raise RuntimeError(f"{self.name} ended early: {''.join(other)}")

    def run(self, steps, keep=True):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds, self.peak = self._read()
        if keep:
            self.seconds.append(seconds / steps)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(model_name, batch_size, steps, precisions, options):
    """Let ours and open_clip_train in a precision, and the plain fp32 loop, take turns; print and return the ratios."""
    timed = (OURS, HELD, OURS_MUON, PEER) if model_name == DEMO_MODEL else (OURS, HELD, PEER)
    names = [(name, precision) for precision in precisions for name in timed] + [(PLAIN, "fp32")]
    contenders = [Contender(*name, model_name, batch_size, options.device) for name in names]
    for contender in contenders:
        contender.run(steps, keep=False)
    for _ in range(options.rounds):
        for contender in contenders:
            contender.run(steps)
    rates = [batch_size / statistics.median(contender.seconds) for contender in contenders]
    for contender, rate in zip(contenders, rates):
        low, high = batch_size / max(contender.seconds), batch_size / min(contender.seconds)
        spread = f"({low:,.1f} to {high:,.1f})"
        ratio = f"ours is {rates[0] / rate:.2f}x" if contender.name != OURS else ""
        print(
            f"  {contender.name:<16} {contender.precision}  {rate:9,.1f} samples/s  {spread:>20}  "
            f"peak {contender.peak:7,.0f} MiB  {ratio}",
            flush=True,
        )
        contender.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, action="append", metavar=("MODEL", "BATCH", "STEPS"), help="instead of both")
    parser.add_argument("--precision", action="append", choices=list(PEER_PRECISION), help="instead of fp32 and bf16")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender [9]")
    parser.add_argument("--device", default="auto", help="torch device [auto]")
    parser.add_argument("--contender", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contend(*options.contender)
        return
    print(f"{os.cpu_count()} cores, device {options.device}; medians of {options.rounds} turns")
    for model_name, batch_size, steps in options.case or CASES:
        for precision in options.precision or ["fp32", "bf16"]:
            print(f"\n{model_name}, batch {batch_size}, {steps} steps a turn")
            compare(model_name, int(batch_size), int(steps), [precision], options)


if __name__ == "__main__":
    main()
