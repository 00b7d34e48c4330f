"""The README says what is there: every file, every knob, and no flag that no script has."""

import re
from pathlib import Path

import pytest

import command_line
import settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KNOBS = command_line.rows(settings)
WORKED_OUT = ("ON_COLAB", "EVAL_CHECKPOINT", "NUM_WORKERS")  # the table says from what
TREE = re.search(r"## Repository overview\n\n```\n(.*?)```", README, re.DOTALL)[1]


def test_every_file_has_a_gloss_and_every_gloss_a_file():
    named = re.findall(r"^ *(\S+\.py)\s+\S", TREE, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_every_knob_is_in_the_table(knob):
    default = ".+" if knob.name in WORKED_OUT else f"`?{re.escape(knob.default)}`?"
    assert re.search(rf"^\| `{knob.name}` \| {default} \| {re.escape(knob.help)}", README, re.MULTILINE)


def test_every_flag_of_a_shown_command_exists():
    scripts = ("clip_prep", "create_webdataset", "clipFineTuner", "evaluate_clip")
    known = {script: set(re.findall(r'"(--[a-z0-9-]+)"', (ROOT / f"{script}.py").read_text())) for script in scripts}
    knobs = {f"--{name.lower().replace('_', '-')}" for name, *_ in KNOBS}
    commands = re.findall(r"^(?:srun )?(?:python|torchrun).*?(?<!\\)$", README, re.MULTILINE | re.DOTALL)
    checked = 0
    for command in commands:
        match = re.search(r"(\w+)\.py(.*)", command.split("#")[0], re.DOTALL)
        if match and match[1] in scripts:
            for flag in re.findall(r"(?<=\s)--[a-z0-9-]+", match[2]):
                assert flag in known[match[1]] | knobs, command
                checked += 1
    assert checked > 30
