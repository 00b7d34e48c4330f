"""Who may import whom: the data path runs one way, and there is no circle."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The pure parts, each with one subject, below the documented scripts.
TABLE = {
    "settings": set(),
    "atomic_write": set(),
    "clip_prep": {
        "settings", "atomic_write", "catalogue_sources", "catalogue_hdf5", "catalogue_table", "catalogue_audit",
    },
    "create_webdataset": {"settings", "clip_prep", "atomic_write", "pictures", "shard_plan", "shard_manifest"},
    "dBManagement": {"settings", "batch_plan", "tar_index", "shard_pattern", "shard_samples", "shard_stream"},
    "openClipManagement": {"atomic_write", "class_token", "image_transforms", "packed_text"},
    "evaluate_clip": {
        "settings", "dBManagement", "openClipManagement", "atomic_write", "distributed", "retrieval_metrics",
        "retrieval_protocols", "retrieval_comparison", "zero_shot", "report", "embeddings", "shard_pictures",
        "plain_text", "shard_samples", "sound_embeddings",
    },
    "clipFineTuner": {
        "settings", "dBManagement", "openClipManagement", "evaluate_clip", "checkpoint_folder", "distributed",
        "gradient_cache", "losses", "optimization", "stop_signals", "training_log", "training_state",
    },
}  # fmt: skip
MODULES = {path.stem for path in ROOT.glob("*.py")}


def imports(module):
    """Names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("module", sorted(TABLE))
def test_imports_are_those_of_the_table(module):
    assert imports(module) & MODULES <= TABLE[module]


@pytest.mark.parametrize("module", sorted(MODULES - set(TABLE)))
def test_pure_parts_import_no_script(module):
    scripts = {"clip_prep", "create_webdataset", "dBManagement", "evaluate_clip", "clipFineTuner", "settings"}
    assert not imports(module) & scripts


def test_no_circle():
    graph = {module: imports(module) & MODULES for module in MODULES}
    while graph:
        free = {module for module, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


def test_settings_needs_only_the_standard_library():
    assert imports("settings") <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("script", ["clip_prep", "create_webdataset"])
def test_the_preparing_scripts_never_load_torch(script):
    reached, waiting = set(), [script]
    while waiting:
        module = waiting.pop()
        found = imports(module)
        reached |= found
        waiting += [name for name in found & MODULES if name not in reached or name == script]
        reached.add(module)
    assert not reached & {"torch", "torchvision", "open_clip", "webdataset"}
