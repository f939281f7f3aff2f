"""jobs/notebook.ipynb runs from its first cell to its last, in a kernel as Jupyter starts it."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent.parent / "jobs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", f"{NOTEBOOK.parent.parent}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    assert "python3" in KernelSpecManager().find_kernel_specs()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        "".join(output.get("text", "") or str(output.get("data", {})) for output in cell["outputs"])
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert len(printed[1].splitlines()) >= 3  # a response each
    assert "200" in printed[3]
    exact = float(re.search(r"([\d.]+)% are exactly", printed[4])[1])
    assert exact > 95  # the demo model's own score is 98.9
