"""Commands to be given next, as one can paste them: begun as this process was, quoted for its shell."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def again(script: str, arguments: Sequence[str]) -> str:
    """The script `NAME.py` that this process runs, once more with these arguments, by as many processes as now."""
    interpreter, path = _start(script)
    return _quoted([*(_torchrun() or interpreter), path, *arguments])


def beside(script: str, other: str, arguments: Sequence[str]) -> str:
    """Another script, which lies beside the one that this process runs, in one process."""
    interpreter, path = _start(script)
    return _quoted([*(["python"] if _torchrun() else interpreter), str(Path(path).with_name(other)), *arguments])


def _start(script):
    """(interpreter with its own flags, path of the script), as they were typed; from a notebook what one would type."""
    typed = sys.argv[0]
    if Path(typed).name != script or typed not in sys.orig_argv:
        return ["python"], script
    return sys.orig_argv[: sys.orig_argv.index(typed)], typed


def _torchrun():
    """torchrun's part of the command; nothing if it did not start this process."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or processes is None:
        return []
    machines = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    # Each machine gives its own number; the first one has 0.
    names = {"--node-rank": "GROUP_RANK", "--master-addr": "MASTER_ADDR", "--master-port": "MASTER_PORT"}
    several = [f"{flag}={os.environ.get(name, '')}" for flag, name in names.items()]
    return ["torchrun", *([f"--nnodes={machines}", *several] if machines > 1 else []), f"--nproc-per-node={processes}"]


def _quoted(command):
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
