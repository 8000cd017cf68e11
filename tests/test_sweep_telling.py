"""A sweep says how far it is, on stderr or in one line of a live notebook; short ones say nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython.display
import pytest
from question import experiment

import wanlab
from tests.run_folders import finish, plan, work
from tests.sharing import base_of
from tests.tiny import tiny_wan
from wanlab import notebook
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.spec import GenerationSpec
from wanlab.sweeps import _telling, _watching
from wanlab.sweeps._telling import Telling
from wanlab.watch import _lines

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture
def grid(model: Model) -> wanlab.Grid:
    """Two groups of two points; of each the first three of four steps are the same."""
    base = base_of(model).with_(num_steps=4, num_frames=1)
    masks = [[True, True, True, last] for last in (True, False)]
    return wanlab.grid(base, seed=[1, 2], cache=[{"method": "fixed", "mask": mask} for mask in masks])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lines, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(_lines, "_REST", 0.0)
    monkeypatch.setattr(_watching, "_TELL_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_lines_on_stderr(model: Model, grid: wanlab.Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanlab.run_sweep(grid, tmp_path / "out", model=model)
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    assert captured.out == ""
    assert any(line.startswith("0/4 runs · ") and "seed 1: 2 points together step 3/4" in line for line in told)
    assert any(line.startswith("2/4 runs · ") and " left · " in line for line in told)
    assert all("sharing is to save 43% of the forwards" in line or "sharing saved 43%" in line for line in told)
    assert told[-1].startswith("4/4 runs · sharing saved 43% of the forwards · ended after ")
    wanlab.run_sweep(grid, tmp_path / "quiet", model=model, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_short_sweep_says_nothing(
    model: Model, grid: wanlab.Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanlab.run_sweep(grid[:1], tmp_path / "out", model=model)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_once")
def test_a_failure_is_told(
    model: Model, grid: wanlab.Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def decode(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no decoder today")

    monkeypatch.setattr(wanlab.stages, "decode", decode)
    wanlab.run_sweep(grid, tmp_path / "out", model=model)
    assert capsys.readouterr().err.splitlines()[-1].startswith("4/4 runs · 4 failed · ")


def test_one_line_of_a_live_notebook(
    model: Model, grid: wanlab.Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    shown: list[tuple[str, str]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        shown.append(("display", data["text/plain"]))
        return SimpleNamespace(update=lambda data, raw: shown.append(("update", data["text/plain"])))

    monkeypatch.setattr(notebook, "is_live", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(_lines, "_LIVE_FIRST", 0.0)
    monkeypatch.setattr(_telling, "_LIVE_SECONDS", 0.0)
    monkeypatch.setattr(_lines, "_REST", 0.0)
    wanlab.run_sweep(grid, tmp_path / "out", model=model)
    assert [kind for kind, _ in shown] == ["display"] + ["update"] * (len(shown) - 1)
    assert shown[-1][1].startswith("4/4 runs · ")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_once")
def test_an_experiment_tells_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    path = experiment(tmp_path / "squares", "x * x", grid={"x": [2, 3]}, parameters="x = 1")
    wanlab.run_experiment(path, tmp_path / "out")
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("0/2 runs")
    assert told[-1].startswith("2/2 runs · ended after ")
    wanlab.run_experiment(path, tmp_path / "quiet", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_read_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    points = wanlab.grid(GenerationSpec(model="wan_tiny", prompt="a red fox"), seed=[1, 2])
    finish(plan(out, points)[0], points[0])
    work(out, current="seed 2")
    with Telling(out) as telling:
        telling()
        (out / "sweep.json").write_text("{")
        telling()
        shutil.rmtree(out)
        telling()
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("1/2 runs · ")
    assert len(told) == 3
    assert all(line.startswith("How far it is cannot be read: ") for line in told[1:])
    with pytest.raises(WanlabError):
        wanlab.results(out)
