"""A signal to a real torchrun while something slow is going on; this file is also the slowed-down trainer that it runs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clipFineTuner
import openClipManagement as clip
import settings
from clip_finetuning.model import clip_model as clip_model_module
from clip_finetuning.runtime import console
from clip_finetuning.training import state
from clip_finetuning.training import step as training_step
from tests.helpers import ROOT, write_config


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_to_torchrun_during_an_evaluation_leaves_a_checkpoint(tmp_path, make_shards):
    """Steps, evaluation and saving are slow; torchrun kills its processes before such an evaluation could end."""
    train = make_shards(tmp_path / "train", products=16, views=1, shards=2)
    valid = make_shards(tmp_path / "valid", products=80, views=1, shards=2, first_product=100)
    knobs = {
        "model_name": write_config(tmp_path), "model_pretrained": "", "train_dataset_pattern": train,
        "valid_dataset_pattern": valid, "checkpoint_dir": tmp_path / "run", "batch_size": 4, "num_workers": 0,
        "device": "cpu", "precision": "fp32", "max_steps": 4, "warmup_steps": 0, "eval_interval": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__]
    command += [str(tmp_path / "evaluating"), *(f"--{name.replace('_', '-')}={knobs[name]}" for name in knobs)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "25",
    }
    with open(tmp_path / "console.txt", "w") as console:
        launcher = subprocess.Popen(command, env=environment, stdout=console, stderr=console)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "evaluating").exists() and launcher.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(120)
        finally:
            launcher.kill()
    text = (tmp_path / "console.txt").read_text()
    assert "stopped by SIGTERM at step 2; go on with --resume" in text, text
    assert "forcefully exiting" not in text
    assert clip.read_checkpoint(tmp_path / "run" / "checkpoint_00000002.pt")["progress"]["evaluated_step"] == 0


def test_the_slurm_recipe_gives_the_trainers_nearly_all_the_time_that_slurm_grants():
    """And not torchrun's own half a minute."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    granted = [int(seconds) for seconds in re.findall(r"#SBATCH.*--signal=B:TERM@(\d+)", pages)]
    given = [int(seconds) for seconds in re.findall(r"^export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", pages, re.M)]
    assert len(granted) == len(given) == 1
    assert 0.8 * granted[0] < given[0] < granted[0]


def slow_trainer(evaluating, *arguments):
    """The trainer with slow steps, slow saving and, from the second one on, slow evaluations; `evaluating` tells of those."""
    real_step, real_encode, real_save = training_step.train_step, clip_model_module.encode_images, state.save

    def train_step(*step_arguments, **options):
        time.sleep(0.5)
        Path(evaluating).with_name("steps").touch()
        return real_step(*step_arguments, **options)

    def encode_images(clip_model, images):
        if not clip_model.model.training and Path(evaluating).with_name("steps").exists():
            Path(evaluating).touch()
            time.sleep(2)
        return real_encode(clip_model, images)

    def save(*save_arguments, **options):
        time.sleep(1)
        return real_save(*save_arguments, **options)

    training_step.train_step, clip_model_module.encode_images, state.save = train_step, encode_images, save
    console.run(lambda: clipFineTuner.main(arguments), settings)


if __name__ == "__main__":
    slow_trainer(*sys.argv[1:])
