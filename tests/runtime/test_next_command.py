"""The command that is to be given next is begun as this one was."""

import shlex
import sys

import pytest

from clip_finetuning.runtime import next_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="quoted for another shell")


@pytest.fixture
def started(monkeypatch):
    """started(words...): as if this process had been started by these."""

    def start(*words):
        monkeypatch.setattr(sys, "orig_argv", list(words))
        monkeypatch.setattr(sys, "argv", list(words[next(i for i, word in enumerate(words) if ".py" in word) :]))

    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return start


def test_interpreter_and_path_are_as_they_were_typed(started):
    started("/opt/my env/python3", "-u", "../x/train.py", "--old=1")
    assert next_command.again("train.py", ["--resume"]) == "'/opt/my env/python3' -u ../x/train.py --resume"
    assert (
        next_command.beside("train.py", "test.py", ["--to", "a b"])
        == "'/opt/my env/python3' -u ../x/test.py --to 'a b'"
    )


def test_from_another_program_it_is_what_one_would_type(started):
    started("python", "-m", "pytest", "tests/test_train.py")
    assert next_command.again("train.py", ["--resume"]) == "python train.py --resume"
    assert next_command.beside("train.py", "test.py", []) == "python test.py"


def test_several_processes_are_started_by_torchrun_again(started, monkeypatch):
    started("/usr/bin/python3", "-u", "train.py")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert next_command.again("train.py", ["--resume"]) == "torchrun --nproc-per-node=2 train.py --resume"
    assert next_command.beside("train.py", "test.py", []) == "python test.py"
    for name, value in {"GROUP_WORLD_SIZE": 4, "GROUP_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 9}.items():
        monkeypatch.setenv(name, str(value))
    assert shlex.split(next_command.again("train.py", ["--resume"]))[:6] == [
        "torchrun", "--nnodes=4", "--node-rank=0", "--master-addr=a", "--master-port=9", "--nproc-per-node=2",
    ]  # fmt: skip
