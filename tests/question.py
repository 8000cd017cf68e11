"""A small experiment for tests: a folder with run.ipynb and grid.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat


def notebook(*cells: str, parameters: str = "x = 1") -> Any:
    """A notebook: a question, the cell of parameters, then these."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    all_cells = [nbformat.v4.new_markdown_cell("# Which?"), first, *map(nbformat.v4.new_code_cell, cells)]
    return nbformat.v4.new_notebook(cells=all_cells, metadata={"kernelspec": kernel})


def experiment(folder: Path, *cells: str, grid: Mapping[str, Any] | None = None, parameters: str = "x = 1") -> Path:
    """Write an experiment; grid: parameter -> values."""
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(*cells, parameters=parameters), folder / "run.ipynb")
    if grid is not None:
        (folder / "grid.json").write_text(json.dumps({"grid": grid}))
    return folder
