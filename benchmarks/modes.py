"""What each mode of TUNE costs: trainable parameters, peak memory, samples a second, size of a checkpoint.

    python benchmarks/modes.py                               # ViT-B-32 and the demo's model, on the best device
    python benchmarks/modes.py --device cpu --steps 3
    python benchmarks/modes.py --case RN50 64 --mode full --mode head

Each mode is a process of its own, which trains the same model from the same weights on the same batches, that lie in memory,
with the suite's default settings for weights that were trained before. The modes take turns of one step, after two to warm
up: the first of them also makes AdamW's moments. Printed are the median, the peak memory of the device if that is a GPU,
else of the whole process, and the sizes of a periodic checkpoint, which a run goes on from, and of the final one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types

from training import DEMO_MODEL, ROOT, make_batches, peak_memory

CASES = [["ViT-B-32", 16], [DEMO_MODEL, 128]]  # model, batch size
MODES = ["full", "image", "text", "head", "lora"]
WARMUP = 2


def train(mode, model_name, batch_size, precision, device):
    """A mode's process: for each line on standard input a step; prints what was asked for as JSON."""
    sys.path.insert(0, str(ROOT))
    import torch

    import openClipManagement as clip
    import settings
    from clip_finetuning.model import tuning
    from clip_finetuning.model.clip_model import count_parameters
    from clip_finetuning.runtime import knobs as page
    from clip_finetuning.training import knobs, plan
    from clip_finetuning.training.run_folder import FINAL, CheckpointFolder
    from clip_finetuning.training.state import planned_optimizer
    from clip_finetuning.training.step import train_step

    torch.set_float32_matmul_precision("high")
    path = str(ROOT / model_name) if model_name.endswith(".json") else model_name
    clip_model = clip.create_model(path, "", device=clip.pick_device(device), seed=0)
    batches = make_batches(clip_model, model_name, batch_size)
    values = {name: page.value(settings, name) for name in knobs.ALL}
    values |= {"TUNE": mode, "BATCH_SIZE": batch_size, "PRECISION": precision, "MAX_STEPS": 10_000, "WARMUP_STEPS": 0}
    facts = plan.Facts(clip_model.model, False, clip_model.device, 1, 10_000, batch_size, False)
    what = plan.resolve(values, (), facts)
    tuning.apply(clip_model, what.tuning)
    optimizer = planned_optimizer(what, clip_model)
    scaler = torch.amp.GradScaler(clip_model.device.type, enabled=precision == "fp16")
    identities = torch.arange(batch_size)[:, None].expand(-1, 2).contiguous()
    on_gpu = clip_model.device.type == "cuda"
    say({"trainable": count_parameters(clip_model.model)[1]})
    for step, _ in enumerate(sys.stdin):
        images, tokens = batches[step % len(batches)]
        batch = types.SimpleNamespace(images=images, tokens=tokens, identities=identities)
        start = time.perf_counter()
        done = train_step(clip_model, optimizer, scaler, batch, what, step=step, micro_batch_size=batch_size)
        done.loss.item()
        if on_gpu:
            torch.cuda.synchronize(clip_model.device)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(clip_model.device) / 2**20 if on_gpu else peak_memory()
        say({"seconds": seconds, "peak": peak})
    with tempfile.TemporaryDirectory() as scratch:
        folder = CheckpointFolder(scratch, 1)
        files = [folder.periodic(1), folder.path / FINAL]
        for file in files:
            folder.save(file, clip_model, needed=True, optimizer=optimizer.state_dict())
        say({"files": [file.stat().st_size / 2**20 for file in files]})


def say(answer):
    print(json.dumps(answer), file=sys.stderr, flush=True)  # libraries print on standard output


class Mode:
    """A process that trains in one mode, and what it told."""

    def __init__(self, name, *arguments):
        command = [sys.executable, __file__, "--process", json.dumps([name, *arguments])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            text=True,
        )
        self.name, self.seconds, self.peak = name, [], 0.0
        self.trainable = self.answer()["trainable"]

    def answer(self):
        other = []
        for line in self.process.stderr:
            if line.startswith("{"):
                return json.loads(line)
            other.append(line)
        raise RuntimeError(f"TUNE={self.name} ended early: {''.join(other)}")

    def step(self, keep):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        told = self.answer()
        self.peak = told["peak"]
        self.seconds += [told["seconds"]] * keep

    def close(self):
        """The sizes of its checkpoints, in MiB."""
        self.process.stdin.close()
        files = self.answer()["files"]
        self.process.wait()
        return files


def measure(model_name, batch_size, options):
    """Let the modes take turns and print a line for each."""
    names = options.mode or MODES
    modes = [Mode(name, model_name, batch_size, options.precision, options.device) for name in names]
    for turn in range(WARMUP + options.steps):
        for mode in modes:
            mode.step(keep=turn >= WARMUP)
    print(f"\n{model_name}, batch {batch_size}, {options.precision}, medians of {options.steps} steps", flush=True)
    print(f"  {'TUNE':<6} {'trainable':>12} {'peak MiB':>9} {'samples/s':>10} {'periodic MiB':>13} {'final MiB':>10}")
    for mode in modes:
        rate = batch_size / statistics.median(mode.seconds)
        periodic, final = mode.close()
        print(
            f"  {mode.name:<6} {mode.trainable:>12,} {mode.peak:>9,.0f} {rate:>10,.1f} {periodic:>13,.1f} {final:>10,.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, action="append", metavar=("MODEL", "BATCH"), help="instead of both")
    parser.add_argument("--mode", action="append", choices=MODES, help="instead of all")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="autocast type [fp32]")
    parser.add_argument("--steps", type=int, default=9, help="steps of each mode that are timed [9]")
    parser.add_argument("--device", default="auto", help="torch device [auto]")
    parser.add_argument("--process", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        train(*options.process)
        return
    print(f"{os.cpu_count()} cores, device {options.device}")
    for model_name, batch_size in options.case or CASES:
        measure(model_name, int(batch_size), options)


if __name__ == "__main__":
    main()
