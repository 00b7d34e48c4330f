"""Scripts and functions in processes of their own, which begin with torch and open_clip imported: that takes seconds.

They are forked from a process that has done so, where there is fork. What is about the start of a process itself, such as
torchrun and what packages read from the environment when they are imported, starts one: `helpers.launch`, subprocess.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OURS = {path.stem for path in ROOT.glob("*.py")} | {"clip_finetuning"}
CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    CONTEXT.set_forkserver_preload(
        ["dBManagement", "openClipManagement", "clip_finetuning.training.state", "clipFineTuner", "torch.distributed"]
    )


class Done(NamedTuple):
    """What became of scripts, as of subprocess.run."""

    returncode: int  # the first that is not 0
    stdout: str
    stderr: str


def run_script(script, *arguments, cwd=None, env=None, timeout=300):
    """`python script arguments` -> Done; `env` is all that it has of environment."""
    return _run(script, arguments, cwd, [dict(os.environ if env is None else env)], timeout)


def run_ranks(script, *arguments, processes=2, cwd=None, timeout=300):
    """The same of several processes that find each other, as torchrun starts them -> Done, with what all of them printed."""
    return _run(script, arguments, cwd, [{**os.environ, **place} for place in places(processes)], timeout)


def places(processes):
    """What torchrun tells each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        {name: str(value) for name, value in {**together, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]


def exit_codes(processes, seconds):
    """Start processes and wait for each -> their exit codes; None for one that does not end, which is killed."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def take_over(stdout, stderr):
    """In a process of CONTEXT, before anything else: print into these files, as a process of its own would compute and fork."""
    import torch

    for descriptor, console in enumerate((stdout, stderr), start=1):
        with open(console, "a") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    if os.name == "posix":  # a process of a forkserver would start its workers by another one, which outlives a kill
        multiprocessing.set_start_method("fork", force=True)


def _run(script, arguments, cwd, environments, timeout):
    with tempfile.TemporaryDirectory() as folder:
        consoles = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        command = [str(script), *map(str, arguments)]
        children = [
            CONTEXT.Process(target=_script, args=(command, str(cwd or os.getcwd()), environment, consoles))
            for environment in environments
        ]
        codes = exit_codes(children, timeout)
        stdout, stderr = (Path(console).read_text(encoding="utf-8", errors="replace") for console in consoles)
    assert None not in codes, f"{command} did not end in {timeout} seconds\n{stdout}\n{stderr}"
    return Done(next(filter(None, codes), 0), stdout, stderr)


def _script(command, folder, environment, consoles):
    """Be `python script arguments`."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    take_over(*consoles)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]  # they have read another environment
    sys.argv = command
    sys.path.insert(0, os.path.dirname(command[0]))
    runpy.run_path(command[0], run_name="__main__")
