"""Every notebook is stripped, small, has one cell of plain parameters, and runs through papermill on `wan_tiny`."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHORT: dict[str, dict[str, Any]] = {
    "quickstart": {"num_steps": 4, "num_frames": 9},
    "panels": {"num_steps": 4, "num_frames": 9, "change": {"num_steps": 2}},
    "models": {"steps": 5},
    "caches": {"num_steps": 8, "num_frames": 9, "repeats": 1},
    "sweeps": {"num_steps": 8, "num_frames": 5, "num_seeds": 2, "thresholds": [0.12]},
}
KEPT = {"sweeps": 6 + 1 + 3}  # a grid, one point more, those that were interrupted; of other notebooks 2

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def parameters(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def test_the_quickstart_is_there() -> None:
    assert "quickstart" in {path.stem for path in NOTEBOOKS}


@each
def test_stripped_and_small(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    run = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", str(path)], capture_output=True, text=True)
    assert run.returncode == 0, f"run `nbstripout notebooks/{path.name}`: {run.stdout}{run.stderr}"


@each
def test_one_cell_of_plain_parameters(path: Path) -> None:
    cells = parameters(nbformat.read(path, as_version=4))
    assert len(cells) == 1
    body = ast.parse(cells[0].source).body
    assert body
    for node in body:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        assert isinstance(node.targets[0], ast.Name), ast.unparse(node)
        ast.literal_eval(node.value)  # raises for anything but a literal


@each
def test_starts_with_a_question_and_has_short_cells(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert "?" in cells[0].source
    assert all(len(cell.source.splitlines()) < 15 for cell in cells if cell.cell_type == "code")


@each
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs: a known parameter for each, no failing cell, and what the notebook keeps is complete."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    changes = {"out": str(tmp_path / "out"), **SHORT[path.stem]}
    assert set(changes) <= set(papermill.inspect_notebook(str(path)))  # papermill only warns about an unknown name
    executed = tmp_path / path.name
    papermill.execute_notebook(str(path), str(executed), parameters=changes, progress_bar=False, cwd=str(tmp_path))
    notebook = nbformat.read(executed, as_version=4)
    assert executed.stat().st_size < 5_000_000
    assert "<video" in json.dumps(notebook)
    records = sorted((tmp_path / "out").glob("*/run.json"))
    assert len(records) == KEPT.get(path.stem, 2)
    for record in records:
        assert json.loads(record.read_text())["status"] == "ok"
        assert (record.parent / "video.mp4").stat().st_size > 0
