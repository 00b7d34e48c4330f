"""The Colab notebook, run as Jupyter runs it: on the demo's data, without installing, mounting or the network."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "fine_tune_on_colab.ipynb"
SOURCES = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
# Fewer products and epochs, so that the test is quick: as a user edits the cell.
SMALLER = {
    "VALID_FRACTION = 240": "VALID_FRACTION = 30",
    '"EPOCHS": 20': '"EPOCHS": 2',
    '"BATCH_SIZE": 64': '"BATCH_SIZE": 16',
}


@pytest.fixture
def project(tmp_path):
    """A copy of what the notebook needs of the project."""
    folder = tmp_path / "project"
    for name in ("demo", "docs", "clip_finetuning"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, folder)
    return folder


def run_notebook(project, monkeypatch, changes):
    """Run all cells with these changes of their sources -> (the notebook with its outputs, the error or None)."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in {
        "CLIP_DEVICE": "cpu",
        "CLIP_NUM_WORKERS": "0",
        "CLIP_PRECISION": "fp32",  # auto would measure
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PIP_INDEX_URL": "http://127.0.0.1:9",  # an installation would fail
        "IPYTHONDIR": str(project.parent / "ipython"),
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in changes.items():
        assert any(old in cell.source for cell in notebook.cells), old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "this"}
    folder = project.parent / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps(kernel | {"language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder.parent.parent))
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(project / "docs")}})
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        return notebook, error
    return notebook, None


def outputs(notebook, cell_id):
    """What a cell printed, and the HTML that it shows."""
    found = next(cell for cell in notebook.cells if cell.id == cell_id)["outputs"]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/html", "") for output in found)


@pytest.mark.slow
def test_all_cells_run_on_the_demos_data(project, monkeypatch):
    notebook, error = run_notebook(project, monkeypatch, SMALLER)
    assert error is None, error
    work = project / "notebook_run"
    before, after = (
        json.loads((work / name).read_text())
        for name in ("evaluation_results.json", "evaluation_results_checkpoint.json")
    )
    assert before["num_samples"] == after["num_samples"] > 0
    assert before["model"]["weights"] == "random" != after["model"]["weights"]
    assert (work / "checkpoints" / "final_checkpoint.pt").is_file()
    assert "Shard pattern: clip_dataset_train." in outputs(notebook, "shards-train")
    assert "Recall@10" in outputs(notebook, "before") and re.search(r"\d steps done", outputs(notebook, "train"))
    shown = outputs(notebook, "report")
    assert shown.startswith('<div><iframe srcdoc="&lt;!doctype html')
    assert "pip" not in outputs(notebook, "install")


@pytest.mark.slow
def test_a_command_that_fails_stops_the_notebook(project, monkeypatch):
    notebook, error = run_notebook(project, monkeypatch, {"--image-column photo": "--image-column fotograf"} | SMALLER)
    assert "CalledProcessError" in str(error) and "exit status 2" in str(error)
    assert "has no column fotograf" in outputs(notebook, "mapping")
    assert not outputs(notebook, "before") and not (project / "notebook_run" / "checkpoints").exists()


def test_it_is_kept_without_outputs_and_traces_of_a_machine():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
    assert not re.search(r"/(home|Users|root|tmp|work)/|[A-Z]:\\", "\n".join(SOURCES))
