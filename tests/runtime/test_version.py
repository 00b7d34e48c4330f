"""One version: pyproject.toml's, which the change log heads."""

import importlib.metadata
import re
import shutil
import subprocess
import sys

import pytest

from clip_finetuning.runtime import version
from tests.helpers import ROOT

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version_of(folder):
    """What the module says when it lies in `folder`, in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import version; print(version.version())"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path):
    """A folder, two below `tmp_path`, with the module alone."""
    folder = tmp_path / "package" / "runtime"
    folder.mkdir(parents=True)
    shutil.copy(version.__file__, folder / "version.py")
    return folder


def test_it_is_that_of_pyproject():
    assert version.version() == PROJECT["version"]
    assert PROJECT["name"] == version.PACKAGE


def test_the_file_is_found_from_a_folder_below(copy, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "clip-finetuning"\nversion = "7.8.9"\n')
    assert version_of(copy) == "7.8.9"


def test_another_projects_version_is_not_ours(copy, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "a-shop"\nversion = "7.8.9"\n')
    assert version_of(copy) != "7.8.9"


def test_an_installed_package_tells_its_version(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(version, "__file__", str(copy / "version.py"))
    monkeypatch.setattr(importlib.metadata, "version", {"clip-finetuning": "7.8.9"}.get)
    assert version.version() == "7.8.9"


def test_without_file_and_installation_it_is_unknown(copy, monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version, "__file__", str(copy / "version.py"))
    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert version.version() == version.UNKNOWN


def test_the_change_log_begins_with_this_version():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", log, re.MULTILINE)
    assert re.fullmatch(rf"\[{re.escape(PROJECT['version'])}\] - (unreleased|\d{{4}}-\d\d-\d\d)", headings[0])
