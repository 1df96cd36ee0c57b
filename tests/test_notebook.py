"""The notebook is committed without outputs, and its cells run from first to last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import ROOT

ADDRESS = "https://github.com/OWNER/REPOSITORY"


@pytest.fixture
def notebook():
    return json.loads((ROOT / "notebook.ipynb").read_text(encoding="utf-8"))


def test_ten_cells_without_outputs(notebook):
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["code"] * 10
    for number, cell in enumerate(notebook["cells"], 1):
        assert f"# {number}. " in "".join(cell["source"])
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
def test_its_cells_run_from_first_to_last(notebook, tmp_path, monkeypatch):
    """In an empty folder, as on a rented machine, so that the first cell has to get the repository:
    what runs is what is committed."""
    nbclient = pytest.importorskip("nbclient", reason="needs requirements-notebook.txt")
    nbformat = pytest.importorskip("nbformat", reason="needs requirements-notebook.txt")
    for package in ("ipykernel", "onnxscript"):
        pytest.importorskip(package, reason="needs requirements-notebook.txt and -export.txt")
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("this folder is no clone that could be cloned")
    cells = []
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"]).replace(ADDRESS, ROOT.as_uri())
        # A command that fails does not fail its cell: the next one does.
        check = {"source": "assert not globals().get('_exit_code')", "id": f"{cell['id']}-check"}
        cells += [cell, cell | check]
    notebook["cells"] = cells
    # `!python` is then the Python of this test.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    client = nbclient.NotebookClient(
        nbformat.from_dict(notebook),
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()

    clone = tmp_path / "under100k"
    (run,) = (path for path in (clone / "runs").glob("notebook-*") if "look" not in path.name)
    for name in ("validation.png", "scores/mistakes.png", "prediction.png", "weights.int8.onnx"):
        assert (run / name).stat().st_size > 1000
    pictures = [
        output["data"]["image/png"]
        for cell in client.nb.cells
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5  # augmented images, curves, mistakes, prediction, where it looked
