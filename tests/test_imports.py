"""Who may import whom, by folder: the data path runs one way, inside a folder too."""

import ast
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT

PACKAGE = "clip_finetuning"
SCRIPTS = {"clip_prep", "create_webdataset", "clipFineTuner", "evaluate_clip", "search_clip"}
DOORS = {"dBManagement", "openClipManagement"}
# Folders, with the others that they may import.
MAY_IMPORT = {
    "runtime": set(),
    "pictures": set(),
    "catalogue": {"pictures", "runtime"},
    "shards": {"catalogue", "pictures", "runtime"},
    "loading": {"runtime"},
    "model": {"pictures", "runtime"},
    "training": {"model", "runtime"},
    "retrieval": {"model", "pictures", "runtime"},
    "search": {"model", "loading", "pictures", "retrieval", "runtime"},
}
TORCH_FREE = {"pictures", "catalogue", "shards", "clip_prep", "create_webdataset"}
TORCH = {"torch", "torchvision", "open_clip", "webdataset"}
SLOW_TO_LOAD = TORCH | {"PIL", "numpy", "tqdm", "h5py", "pyarrow", "fsspec", "imagehash", "jinja2", "concurrent"}


def module_name(path):
    """`clip_finetuning.shards.plan` of a file; a package goes by its folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in [*ROOT.glob("*.py"), *(ROOT / PACKAGE).rglob("*.py")]}


def imported(module):
    """Full names of all modules that a file imports, wherever in the file."""
    found, attributes = set(), set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; name the folder"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(MODULES) or {node.module}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.add((f"{PACKAGE}.{node.value.id}", node.attr))
    # A folder loads its modules when they are named: `from clip_finetuning import shards`, then `shards.plan`.
    named = {f"{folder}.{name}" for folder, name in attributes if folder in found}
    return found | (named & set(MODULES))


def own(module):
    """What a module imports of the project."""
    return imported(module) & set(MODULES)


def place(module):
    """The folder of a module; those at the top stand for themselves."""
    return module.split(".")[1] if module.startswith(f"{PACKAGE}.") else module


def test_every_folder_has_its_rule():
    assert {place(module) for module in MODULES if module.startswith(f"{PACKAGE}.")} == set(MAY_IMPORT)


def test_every_file_at_the_top_is_a_documented_one():
    assert {module for module in MODULES if not module.startswith(PACKAGE)} == {"settings", *SCRIPTS, *DOORS}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_what_its_place_allows(module):
    where = place(module)
    if where in MAY_IMPORT:
        allowed = MAY_IMPORT[where] | {where, PACKAGE}  # of the package itself: how a folder loads its modules
    elif where in SCRIPTS:
        allowed = {*MAY_IMPORT, "settings", *DOORS}
    else:
        allowed = set(MAY_IMPORT) if where in DOORS else set()
    assert {place(name) for name in own(module)} <= allowed


def test_no_circle():
    graph = {module: own(module) - {module} for module in MODULES}
    while graph:
        free = {module for module, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


def test_settings_needs_only_the_standard_library():
    assert imported("settings") <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if place(module) in TORCH_FREE))
def test_what_prepares_data_never_loads_torch(module):
    reached, waiting = set(), [module]
    while waiting:
        found = imported(waiting.pop()) - reached
        reached |= found
        waiting += found & set(MODULES)
    assert not {name.split(".")[0] for name in reached} & TORCH


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help_loads_nothing_that_takes_long(script):
    command = [sys.executable, "-X", "importtime", ROOT / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = re.findall(r"^import time:.*\| +(\w+)", done.stderr, re.MULTILINE)
    assert "argparse" in loaded and not set(loaded) & SLOW_TO_LOAD
