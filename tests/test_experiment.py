"""Notebooks as experiments: what runs, under which id, what is written, and what is refused before anything runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from question import experiment, notebook
from test_result import make

import wanlab
from wanlab import runs
from wanlab.cli import main
from wanlab.errors import WanlabError
from wanlab.sweeps import default_out, log, read_experiment, run_experiment, shared_folder
from wanlab.sweeps._log import MIME, logged
from wanlab.sweeps._notebook import read_notebook
from wanlab.sweeps._outputs import CELL_TEXT, MOST_BYTES, Log, Outputs, Text, shrink

ROOT = Path(__file__).resolve().parent.parent
COUNT = "open('ran.txt', 'a').write(f'{x}\\n')"  # each execution leaves a line in the notebook's folder


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def ran(folder: Path) -> list[str]:
    return (folder / "ran.txt").read_text().split()


def test_each_point_runs_once_and_logs(tmp_path: Path) -> None:
    """In the notebook's folder; the notebook describes itself; a second call and an edit of text run nothing."""
    cells = [
        COUNT + "\nimport wanlab, numpy as np, os\nprint('hello', os.path.basename(os.environ['WANLAB_RUN']))",
        "wanlab.log(square=np.int64(x * x), half=np.float32(0.5))",
        "wanlab.log(half=0.25, words=['a', 'b'])",
    ]
    path = experiment(tmp_path / "squares", *cells, grid={"x": [2, 3]}, parameters="x = 1\nname = 'a'")
    before = dict(os.environ)
    found = run_experiment(path, tmp_path / "out")
    assert dict(os.environ) == before
    assert [row.status for row in found] == ["ok", "ok"]
    assert [row.metrics for row in found] == [{"square": n, "half": 0.25, "words": ["a", "b"]} for n in (4, 9)]
    assert [row.settings for row in found] == [{"x": 2}, {"x": 3}]
    row = found[0]
    assert row.record.params == {"x": 2, "name": "a"}
    assert row.record.env["commit"] if "commit" in runs.environment() else True
    assert row.folder.name == f"x-2_{row.id}"
    assert {file.path for file in row.record.artifacts} == {"notebook.ipynb", "log.txt"}
    assert (row.folder / "log.txt").read_text() == f"hello {row.folder.name}\n"
    kept = nbformat.read(row.notebook, as_version=4)
    shown = [out.data for cell in kept.cells for out in cell.get("outputs", []) if out.output_type == "display_data"]
    assert shown[0] == {MIME: {"schema": 1, "metrics": {"square": 4, "half": 0.5}}, "text/plain": "square=4  half=0.5"}
    assert len(shown) == 2
    assert runs.read_sweep(tmp_path / "out").base == {"x": 1, "name": "a"}
    assert runs.read_working(tmp_path / "out") == []
    node = nbformat.read(path / "run.ipynb", as_version=4)
    node.cells[0].source = "# Which one?"
    nbformat.write(node, path / "run.ipynb")
    again = run_experiment(path, tmp_path / "out")
    assert ran(path) == ["2", "3"]
    assert [row.attempt for row in again] == [1, 1]


def test_what_was_planned_runs_whatever_is_saved_meanwhile(tmp_path: Path) -> None:
    path = experiment(tmp_path / "q", COUNT + "\nopen('run.ipynb', 'w').write('{}')", grid={"x": [1, 2]})

    async def inside() -> Any:  # a notebook that runs experiments has an event loop
        return run_experiment(path, tmp_path / "out")

    assert asyncio.run(inside()).counts() == {"ok": 2}
    assert ran(path) == ["1", "2"]


def test_other_numerics_are_kept_or_run_again(tmp_path: Path) -> None:
    path = experiment(tmp_path / "q", COUNT)
    row = run_experiment(path, tmp_path / "out")[0]
    record = json.loads((row.folder / "run.json").read_text())
    (row.folder / "run.json").write_text(json.dumps({**record, "numerics": runs.NUMERICS - 1}))
    assert run_experiment(path, tmp_path / "out")[0].stale
    assert ran(path) == ["1"]
    again = run_experiment(path, tmp_path / "out", stale="rerun")[0]
    assert (again.status, again.stale, again.attempt) == ("ok", False, 2)
    assert ran(path) == ["1", "1"]


def test_ids_follow_parameters_and_code_and_nothing_else(tmp_path: Path) -> None:
    def ids(*cells: str, parameters: str = "x = 1\ny = 'a'", grid: Any = None) -> list[str]:
        grid = {"x": [1, 2]} if grid is None else grid
        return [
            p.id for p in read_experiment(experiment(tmp_path / "q", *cells, grid=grid, parameters=parameters)).points
        ]

    plain = ids("print(x)")
    assert len(set(plain)) == 2
    assert ids("print(x)", parameters="y='a'  # a comment\n\nx = 7") == plain
    assert ids("print(x)", grid={"x": [1, 2], "y": ["a"]}) == plain
    assert ids("print(x)", grid={"x": [2, 1]}) == plain[::-1]
    assert not {*ids("print(x + 0)")} & {*plain}
    assert not {*ids("print(x)", parameters="x = 1\ny = 'b'")} & {*plain}
    assert not {*ids("print(x)", parameters="x = 1\ny = 'a'\nz = 0")} & {*plain}
    (tmp_path / "q" / "grid.json").unlink()
    assert [p.settings for p in read_experiment(tmp_path / "q").points] == [{}]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ('{"grid": {"steps": [1]}}', r"Unknown parameter of run.ipynb 'steps'.*Choices: num_steps, x.*'num_steps'"),
        ('{"grid": {"x = 1; import os #": [1]}}', "is no name of a parameter"),
        ('{"grid": {"class": [1]}}', "is no name of a parameter"),
        ('{"grid": {"x": [NaN]}}', "NaN"),
        ('{"grid": {"x": []}}', "empty"),
        ('{"gird": {"x": [1]}}', "'grid'"),
    ],
)
def test_grids_that_cannot_be(tmp_path: Path, grid: str, message: str) -> None:
    path = experiment(tmp_path / "q", COUNT, parameters="x = 1\nnum_steps = 2")
    (path / "grid.json").write_text(grid)
    with pytest.raises(WanlabError, match=message):
        run_experiment(path, tmp_path / "out")
    assert not (path / "ran.txt").exists()
    assert not (tmp_path / "out").exists()


def test_values_are_plain_json(tmp_path: Path) -> None:
    source = read_notebook(experiment(tmp_path / "q", "print(x)", parameters="x = 1\ny = x + 1") / "run.ipynb")
    values = [(1, 2), np.float32(0.5), np.int64(3), tmp_path, None, {"a": (1,)}]
    assert [source.value("x", v) for v in values] == [[1, 2], 0.5, 3, str(tmp_path), None, {"a": [1]}]
    for value in (float("nan"), b"a", {1}, object(), {1: 2}):
        with pytest.raises(WanlabError, match=r"^x"):
            source.value("x", value)
    assert source.parameters == {"x": 1, "y": "x + 1"}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*/run.ipynb")), ids=lambda path: path.parent.name)
def test_our_own_experiments(path: Path) -> None:
    """They can be read, their notebooks hold no outputs, and no two points share a folder."""
    found = read_experiment(path)
    assert len({point.folder for point in found.points}) == len(found.points)
    assert all(len(point.folder) <= 80 for point in found.points)
    assert (path.parent / "README.md").read_text().startswith("# ")
    stripped = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", str(path)], check=False)
    assert stripped.returncode == 0


def test_folders_are_called_after_whole_settings(tmp_path: Path) -> None:
    grid = {"a_long_name": ["a" * 30, "b"], "another_long_name": ["c" * 30, "d"]}
    path = experiment(tmp_path / "q", "1", grid=grid, parameters="a_long_name = ''\nanother_long_name = ''")
    names = [point.folder.rpartition("_")[0] for point in read_experiment(path).points]
    first, second = "a_long_name-" + "a" * 24, "another_long_name-" + "c" * 24
    assert names[:3] == [first, f"{first}_another_long_name-d", f"a_long_name-b_{second}"]


def broken(folder: Path, what: str) -> Path:
    """The same experiment with one fault."""
    node = notebook("print(x)")
    if what == "none":
        node.cells[1].metadata.tags = []
    elif what == "two":
        node.cells[2].metadata.tags = ["parameters"]
    elif what == "syntax":
        node.cells[1].source = "x = "
    elif what == "kernel":
        node.metadata.kernelspec.name = "no-such-kernel"
    elif what == "language":
        node.metadata.kernelspec.language = "julia"
    elif what == "large":
        node.cells[0].source = "a" * 5_000_000
    data = json.loads(nbformat.writes(node))
    data |= {"future": {"nbformat": 5}, "minor": {"nbformat_minor": 99}, "cells": {"cells": 3}}.get(what, {})
    folder.mkdir(exist_ok=True)
    (folder / "run.ipynb").write_text("{" if what == "json" else json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", 'no cell with the tag "parameters"'),
        ("two", '2 cells with the tag "parameters"'),
        ("syntax", "not plain Python"),
        ("kernel", "'no-such-kernel', which is not installed. Choices: .*python3"),
        ("language", "written in 'julia'"),
        ("large", "above 4 MB"),
        ("future", "nbformat 5.*reads up to 4"),
        ("minor", "nbformat 4.99"),
        ("cells", "no valid notebook"),
        ("json", "run.ipynb"),
    ],
)
def test_notebooks_that_cannot_run(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(WanlabError, match=message):
        run_experiment(broken(tmp_path / "q", what), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_places_and_points_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WanlabError, match="is no experiment"):
        run_experiment(tmp_path)
    with pytest.raises(WanlabError, match="no notebook"):
        run_experiment(tmp_path / "other.ipynb")
    path = experiment(tmp_path / "q", "print(x)")
    for word in ("abc", 1, True):
        with pytest.raises(WanlabError, match="has no point"):
            run_experiment(path, tmp_path / "out", points=[word])
    with pytest.raises(WanlabError, match="timeout"):
        run_experiment(path, tmp_path / "out", timeout=0)
    with pytest.raises(WanlabError, match="stale"):
        run_experiment(path, tmp_path / "out", stale="never")
    monkeypatch.chdir(tmp_path)
    assert default_out("q") == tmp_path / "runs" / "q"
    (tmp_path / "wanlab.toml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert default_out("q") == tmp_path / "runs" / "q"


def test_log_outside_of_a_run_only_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    log(psnr=np.float64(31.25), ok=True, clip=make())
    assert capsys.readouterr().out == "psnr=31.25  ok=True  clip=3 frames, run 0123456789ab\n"
    assert list(tmp_path.iterdir()) == []
    assert wanlab.log is log


def test_a_folder_that_points_share_lies_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_folder("clips") == tmp_path / "runs" / "clips"
    cell = "import wanlab; wanlab.log(where=wanlab.sweeps.shared_folder('clips'))"
    row = run_experiment(experiment(tmp_path / "q", cell), tmp_path / "out")[0]
    assert row.metrics == {"where": str(tmp_path / "out" / "clips")}
    with pytest.raises(WanlabError, match="cannot name a folder"):
        shared_folder("../clips")


def test_log_stores_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WANLAB_RUN", str(tmp_path))
    log(a=1, video=make())
    for value, message in {float("nan"): "a = nan", np.inf: "a = inf", b"1": "a = b'1' cannot be stored"}.items():
        with pytest.raises(WanlabError, match=f"^Metric {message}"):
            log(b=2, a=value)
    with pytest.raises(WanlabError, match=r"Metric frames is an array of shape \(2, 3, 4\)"):
        log(frames=np.zeros((2, 3, 4)))
    with pytest.raises(WanlabError, match="no metrics"):
        log()
    log(c={"d": (np.float32(0.5), None)})
    found = logged(tmp_path)
    assert found.metrics == {"a": 1, "video": "video.mp4", "c": {"d": [0.5, None]}}
    assert found.files == ["video.mp4"]
    assert wanlab.open_settings(tmp_path / "video.mp4").spec == make().spec


def test_a_logged_result_is_the_clip_of_its_run(tmp_path: Path) -> None:
    cells = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom test_result import make\nimport wanlab"
    row = run_experiment(experiment(tmp_path / "q", cells, "wanlab.log(video=make())"), tmp_path / "out")[0]
    assert row.status == "ok", row.error
    assert row.metrics == {"video": "video.mp4"}
    assert row.clip == row.folder / "video.mp4"
    assert runs.artifact(row.folder, row.record, "video.mp4").stat().st_size > 0


def test_long_text_keeps_its_start_and_end() -> None:
    text = Text(10)
    assert [text.add(part) for part in ("abc", "defgh", "ijklm", "nopqr")] == [3, 5, 5, 5]
    assert str(text) == "abcde\n[... 8 characters left out ...]\nnopqr"
    bar = Text()
    grown = [bar.add(f"\r{percent:3} %") for percent in range(100)]
    assert sum(grown) < 10
    assert str(bar).strip() == "99 %"
    bar.add("\n")
    bar.add("done\r\n")
    assert str(bar).endswith("99 %\ndone\r\n")
    old = Text()  # the return at the end of what is overwritten next
    assert [old.add(f"{percent:3} %\r") for percent in (1, 50, 99)] == [6, 0, 0]
    assert str(old) == " 99 %\r"


def test_an_executed_notebook_stays_below_5_mb(tmp_path: Path) -> None:
    node = notebook(*["1"] * 12)
    output = nbformat.v4.new_output
    log_ = Log(tmp_path / "log.txt")
    outputs = Outputs(log_)
    for index, cell in enumerate(node.cells[2:]):
        outputs.begin_cell()
        html = {"text/html": "<video>" * (300_000 if index else 1), "text/plain": f"clip {index}"}
        for out in (output("display_data", html), output("stream", text="a" * 1_000_000)):
            cell.outputs += [kept for kept in [outputs.take(out, cell.outputs)] if kept is not None]
    log_.close()
    assert all(len(cell.outputs[1].text) < CELL_TEXT + 100 for cell in node.cells[2:])
    data = shrink(node, ["video.mp4"])
    assert len(data) < MOST_BYTES
    kept = nbformat.reads(data.decode(), as_version=4)
    assert kept.cells[2].outputs[0].data["text/html"] == "<video>"
    assert kept.cells[3].outputs[0].data == {
        "text/plain": "clip 1\n[left out, as a notebook keeps 5 MB; see video.mp4: "
        "text/html of 2,100,002 bytes, text/plain of 8 bytes]"
    }
    many = notebook("1")
    many.cells[2].outputs = [output("stream", text="a line of text" * 210) for _ in range(2_000)]
    assert len(shrink(many, [])) < MOST_BYTES
    assert (tmp_path / "log.txt").stat().st_size < 2_200_000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = "print(x)\nassert x != 2, 'two'"
    experiment(tmp_path / "q", cells, grid={"x": [1, 2], "name": ["a", "b"]}, parameters="x = 1\nname = ''\nz = 0")
    assert main(["sweep", "q", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"q: 4 points, into {tmp_path / 'runs' / 'q'}\nfolder ")
    assert not (tmp_path / "runs").exists()
    assert main(["sweep", "q", "name=a", "z=3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["status", "s", "x", "name", "z", "error"]
    assert [line.split()[0] for line in lines[2:]] == ["ok", "failed"]
    assert "AssertionError: two" in lines[3]
    for words, message in {
        "x=3": "No point of the grid has x = 3. Choices: 1, 2",
        "y=3": "Unknown parameter",
        "--timeout=-1": "timeout = -1",
    }.items():
        assert main(["sweep", "q", words]) == 2
        assert message in capsys.readouterr().err
    assert main(["sweep"]) == 2


def test_a_notebook_that_names_no_kernel_is_a_python_one(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "plain", "import wanlab", "wanlab.log(y=x + 1)", grid={"x": [1]})
    node = nbformat.read(folder / "run.ipynb", as_version=4)
    node.metadata.clear()
    nbformat.write(node, folder / "run.ipynb")
    found = wanlab.run_experiment(folder, tmp_path / "out")
    assert [row.metrics for row in found] == [{"y": 2}], found[0].error
