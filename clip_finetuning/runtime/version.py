"""The version of this suite, as `pyproject.toml` has it: checkpoints and result files record which one wrote them."""

import importlib.metadata
import re
from pathlib import Path

PACKAGE = "clip-finetuning"
UNKNOWN = "unknown"  # the scripts were copied somewhere without their pyproject.toml
_PROJECT = re.compile(rf'^\[project\]\nname = "{PACKAGE}"\nversion = "([^"]+)"$', re.MULTILINE)


def version() -> str:
    """The version of the code that runs, such as "0.2.0": its own pyproject.toml's, else that of the installed package.

    The suite usually runs from its folder and is not installed, and an installed copy may be another version: so the
    file comes first.
    """
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            found = _PROJECT.search((folder / "pyproject.toml").read_text(encoding="utf-8"))
            if found:
                return found[1]
            break  # another project's, in which this one lies
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
