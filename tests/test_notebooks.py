"""The notebooks of the documentation run from top to bottom, in a kernel, and show what they say."""

import json
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


# What a notebook is cut down by, so that it takes a minute.
SMALL = {
    "num_train_epochs=2": "num_train_epochs=1",
    '"train": 1500, "dev": 300, "rl": 0, "eval": 500': '"train": 600, "dev": 100, "rl": 0, "eval": 200',
    "num_iterations=20, batch_size=64": "num_iterations=6, batch_size=32",
    "max_eval_prompts=200": "max_eval_prompts=50",
}


def executed(name: str, directory: Path, smaller: Mapping[str, str] | None = None) -> list:
    """The code cells of a notebook after it ran in an empty directory, with some of its text replaced; any
    error fails."""
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        for whole, small in (smaller or {}).items():
            cell.source = cell.source.replace(whole, small)
    sources = "\n".join(cell.source for cell in notebook.cells)
    assert all(small in sources for small in (smaller or {}).values())
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
    cells = executed("first-run", tmp_path, SMALL)
    assert "wins" in "".join(o.text for o in cells[-1].outputs if o.output_type == "stream")
    assert list(tmp_path.iterdir()) == []


def test_your_own(tmp_path):
    cells = executed("your-own", tmp_path)
    accuracy = [json.loads(shown(cell)) for cell in (cells[1], cells[3])]
    assert all(len(numbers) == 4 for numbers in accuracy)
    assert list(tmp_path.iterdir()) == []
