"""Files of a sweep that are kept: those of every version stay readable. One golden file a version, for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wanlab import runs, sweeps
from wanlab.errors import WanlabError

GOLDEN = Path(__file__).parent / "golden"


def test_a_plan_of_version_1_reads_as_it_was(tmp_path: Path) -> None:
    text = (GOLDEN / "sweep_v1.json").read_text()
    (tmp_path / "sweep.json").write_text(text)
    read = runs.read_sweep(tmp_path)
    assert read is not None
    assert json.loads(read.model_dump_json(by_alias=True)) == json.loads(text)
    assert [point.settings["seed"] for point in read.points] == [0, 1]
    assert runs.results(tmp_path).counts() == {"pending": 2}


def test_a_plan_of_a_newer_version_says_so(tmp_path: Path) -> None:
    plan = json.loads((GOLDEN / "sweep_v1.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**plan, "schema": 2}))
    with pytest.raises(WanlabError, match="schema 2, this version reads up to 1"):
        runs.read_sweep(tmp_path)


def test_a_grid_of_version_1_makes_the_same_points() -> None:
    document = json.loads((GOLDEN / "grid_v1.json").read_text())
    grid = sweeps.Grid.from_dict(document["grid"])
    assert list(grid.ids) == document["ids"]
    assert grid.to_dict() == document["grid"]
