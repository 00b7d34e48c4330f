"""A command ends in one line and an exit code; warnings are seen once."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import settings
from clip_finetuning.runtime import command_line, console
from tests.helpers import ROOT


def fail(error):
    def main():
        raise error

    return main


@pytest.fixture
def ended(monkeypatch, capsys):
    """ended(main) -> (exit code, standard error) of the command."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/script.py"])

    def run(main):
        with pytest.raises(SystemExit) as end:
            console.run(main, settings)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("code", [None, 0, 1])
def test_what_main_returns_is_the_exit_code(ended, code):
    assert ended(lambda: code) == (code, "")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, PermissionError])
def test_a_users_mistake_is_one_line(ended, kind):
    assert ended(fail(kind("the thing, the rule,\n the fix"))) == (
        2,
        "script.py: error: the thing, the rule, the fix\n",
    )


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: None, 0),
        (fail(ValueError("x")), 2),
        (fail(KeyError("x")), 1),
        (fail(SystemExit(3)), 3),
        (fail(SystemExit("x")), 1),
    ],
)
def test_the_last_act_knows_the_exit_code(ended, monkeypatch, main, code):
    """And it comes after the message, also of a fault of the program."""
    monkeypatch.setattr(console, "_at_end", [])
    console.at_end(lambda code: print(f"the end: {code}", file=sys.stderr))
    left, said = ended(main)
    assert (left or 0) == code
    assert said.endswith(f"the end: {code}\n")
    assert ("x" in said) == (code in (1, 2))


def test_an_interrupt_is_one_line_too(ended):
    assert ended(fail(KeyboardInterrupt())) == (130, "interrupted\n")


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, AssertionError])
def test_a_fault_of_the_program_shows_where(ended, kind):
    with pytest.raises(kind):
        ended(fail(kind("a fault")))


def test_a_debug_run_shows_where(ended, monkeypatch):
    monkeypatch.setattr(settings, "DEBUG", True)
    with pytest.raises(ValueError, match="the rule"):
        ended(fail(ValueError("the rule")))
    monkeypatch.setenv("CLIP_DEBUG", "false")
    assert ended(fail(ValueError("the rule")))[0] == 2
    monkeypatch.setenv("CLIP_DEBUG", "true")
    with pytest.raises(ValueError, match="the rule"):
        ended(fail(ValueError("the rule")))


def test_only_an_error_asks_for_debug(ended, monkeypatch):
    monkeypatch.setattr(command_line, "debug_is_on", fail(AssertionError("asked")))
    assert ended(lambda: None) == (None, "")


def test_a_device_without_memory_is_one_line(ended):
    class OutOfMemoryError(RuntimeError):  # as torch calls it
        pass

    code, line = ended(fail(OutOfMemoryError("CUDA out of memory.\nTried to allocate")))
    assert (code, line) == (
        2,
        "script.py: error: out of memory: lower BATCH_SIZE, or MICRO_BATCH_SIZE in training (CUDA out of memory.)\n",
    )


def test_a_cpu_without_memory_is_one_line_too(ended):
    import torch

    code, line = ended(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert code == 2
    assert "error: out of memory: lower BATCH_SIZE" in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Invalid buffer size: 12.50 GiB"),
        MemoryError(),
    ],
)
def test_whichever_library_has_no_memory_it_is_one_line(ended, error):
    code, line = ended(fail(error))
    assert code == 2 and line.startswith("script.py: error: out of memory: lower BATCH_SIZE") and line.count("\n") == 1


def test_an_error_of_a_program_keeps_its_traceback(ended):
    with pytest.raises(RuntimeError, match="shapes"):
        ended(fail(RuntimeError("shapes do not match")))


def test_a_console_that_cannot_show_a_caption_shows_what_it_can():
    code = "import settings; from clip_finetuning.runtime import console; console.run(lambda: print('caption \\U0001f457 of a dress'), settings)"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "caption ? of a dress\n")


def test_a_stream_that_cannot_be_told_how_to_encode_is_left_alone(ended, monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=print, flush=lambda: None))
    assert ended(lambda: 0)[0] == 0


@pytest.mark.parametrize(("rank", "line"), [(None, "WARNING: look\n"), ("0", "WARNING: look\n"), ("1", "")])
def test_a_warning_is_said_by_one_process(monkeypatch, capsys, rank, line):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    console.warn("look")
    assert capsys.readouterr() == ("", line)
