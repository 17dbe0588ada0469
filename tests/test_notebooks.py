"""The notebooks of the documentation run from top to bottom, in a kernel, and show what they say."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def executed(name: str, directory: Path) -> list:
    """The code cells of a notebook after it ran in an empty directory; any error fails."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    ).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> str:
    """What the last line of a cell shows."""
    return next(o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result")


@pytest.fixture(autouse=True)
def one_thread_in_kernels(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_first_run(tmp_path):
    cells = executed("first-run", tmp_path)
    assert "wins" in "".join(o.text for o in cells[-1].outputs if o.output_type == "stream")
    assert list(tmp_path.iterdir()) == []


def test_your_own(tmp_path):
    cells = executed("your-own", tmp_path)
    accuracy = [json.loads(shown(cell)) for cell in (cells[1], cells[3])]
    assert all(len(numbers) == 4 for numbers in accuracy)
    assert list(tmp_path.iterdir()) == []
