"""Files about the project agree: optional packages, lint, hooks."""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_extras_are_what_the_tests_install():
    """`requirements-dev.txt` holds every optional package with the bound that `pip install -e ".[extra]"` has."""
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    installed = {line.split("#")[0].strip() for line in read("requirements-dev.txt").splitlines()}
    every = extras.pop("all")
    assert len(extras) == 11 and all(set(packages) <= installed for packages in extras.values())
    assert every == [f"clip-finetuning[{','.join(extras)}]"]
    assert set(re.findall(r'^pip install -e "\.\[(\S+)\]"', read("README.md"), re.MULTILINE)) == {*extras, "all"}


def test_an_installed_package_has_all_its_files():
    """Setuptools takes modules by itself, and what else lies beside them by `package-data`."""
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    patterns = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["package-data"]["*"]
    files = {path for path in (ROOT / "clip_finetuning").rglob("*.*") if "__pycache__" not in path.parts}
    beside = {path.name for path in files if path.suffix != ".py"}
    assert {"report.html.j2", "report.css"} <= beside
    assert beside == {name for name in beside if any(fnmatch(name, pattern) for pattern in patterns)}


def test_the_hooks_are_what_make_lint_runs():
    rule = re.search(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    assert rule
    lint = [line.strip().removeprefix("$(BIN)/").split(" --pythonpath")[0] for line in rule[1].splitlines()]
    hooks = re.findall(r"^ *entry: (.+)$", read(".pre-commit-config.yaml"), re.MULTILINE)
    assert hooks == lint and len(lint) == 3
