"""Who may import whom, by folder: the data path runs one way, inside a folder too."""

import ast
import sys

import pytest

from tests.helpers import ROOT

PACKAGE = "clip_finetuning"
SCRIPTS = {"clip_prep", "create_webdataset", "clipFineTuner", "evaluate_clip"}
DOORS = {"dBManagement", "openClipManagement"}
# Folders and doors, with the folders that they may import.
MAY_IMPORT = {
    "runtime": set(),
    "pictures": set(),
    "catalogue": {"pictures", "runtime"},
    "shards": {"catalogue", "pictures", "runtime"},
    "loading": {"runtime"},
    "model": {"pictures", "runtime"},
    "training": {"model", "runtime"},
    "retrieval": {"model", "pictures", "runtime"},
}
TORCH_FREE = {"pictures", "catalogue", "shards", "clip_prep", "create_webdataset"}
TORCH = {"torch", "torchvision", "open_clip", "webdataset"}
# Modules that have no room yet. With the last of them this line goes, and what the three lines say that name it.
FLAT = {path.stem for path in ROOT.glob("*.py")} - SCRIPTS - DOORS - {"settings"}


def module_name(path):
    """`clip_finetuning.shards.plan` of a file; a package goes by its folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in [*ROOT.glob("*.py"), *(ROOT / PACKAGE).rglob("*.py")]}


def imported(module):
    """Full names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; name the folder"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(MODULES) or {node.module}
    return found


def own(module):
    """What a module imports of the project."""
    return imported(module) & set(MODULES)


def place(module):
    """The folder of a module; those at the top stand for themselves."""
    return module.split(".")[1] if module.startswith(f"{PACKAGE}.") else module


def test_every_folder_has_its_rule():
    folders = {place(module) for module in MODULES if module.startswith(f"{PACKAGE}.")}
    assert folders <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(set(MODULES) - FLAT))
def test_a_module_imports_what_its_place_allows(module):
    where = place(module)
    allowed = {where} | MAY_IMPORT.get(where, set(MAY_IMPORT) | {"settings"} | DOORS | FLAT)
    if where == "clipFineTuner" and FLAT:
        allowed.add("evaluate_clip")  # until what it needs of it lies in retrieval
    if where == "settings":
        allowed = set()
    if where in DOORS:
        allowed -= {"settings", *DOORS}
    assert {place(name) for name in own(module)} <= allowed


@pytest.mark.parametrize("module", sorted(FLAT))
def test_a_module_without_a_room_imports_no_script(module):
    assert not own(module) & (SCRIPTS | {"settings", "dBManagement"})


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
