"""A command that a signal ends: one line, its exit code, and no worker that is waited for."""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

COMMAND = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
import settings
from clip_finetuning.runtime import console

def wait(number):
    if number:
        os.kill(os.getppid() if "{to}" == "main" else 0, signal.{name})
    time.sleep(60)

def main():
    if "{to}" == "alone":
        os.kill(os.getpid(), signal.{name})
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(wait, range(9)))

if __name__ == "__main__":
    console.run(main, settings)
"""


def run(tmp_path, name, to, **options):
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(name=name, to=to))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options |= {"capture_output": True, "text": True, "timeout": 50, "start_new_session": True}
    return subprocess.run([sys.executable, script], env=environment, **options)


@pytest.mark.parametrize("to", ["main", "group", "alone"])
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "terminated"),
        ("SIGHUP", 129, "ended, since the terminal hung up"),
    ],
)
def test_a_signal_is_one_line_and_its_exit_code(tmp_path, name, code, words, to):
    """And the work that is waiting is left: it would take minutes."""
    done = run(tmp_path, name, to)
    assert (done.returncode, done.stderr) == (code, f"{words}\n")


def test_nohup_stays_what_it_is(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(name="SIGHUP", to="alone").replace("with Process", "return\n    with Process"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    assert subprocess.run([sys.executable, script], env=environment, timeout=50, **ignored).returncode == 0
