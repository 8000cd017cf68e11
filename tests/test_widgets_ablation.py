"""AblationPanel without a browser: what its inputs mean, the cell it gives, its runs, how they stop."""

from __future__ import annotations

import ast
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import wanlab
from tests.run_folders import finish, plan
from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.sweeps import grid, zip_
from wanlab.widgets import AblationPanel, GeneratePanel
from wanlab.widgets._values import read_values, values_as_text

WAIT = 60  # seconds, only ever used up by a failure
SIZE = {"prompt": "a red fox", "num_steps": 4, "width": 32, "height": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def model() -> Any:
    return wanlab.load("wan_tiny", device="cpu")


def until(claim: Any) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + WAIT
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


class Runner:
    """Stands for `run_sweep`: writes the runs, one after another, and waits after each until it may go on."""

    def __init__(self, is_open: bool = True) -> None:
        self.calls: list[dict[str, Any]] = []
        self.reached, self.opened = threading.Event(), threading.Event()
        if is_open:
            self.opened.set()

    def __call__(self, made: Any, out: Path, **options: Any) -> Any:
        self.calls.append({"grid": made, "out": out, **options})
        for folder, spec in zip(plan(out, made), made, strict=True):
            if runs.is_cancelled(out):
                break
            finish(folder, spec)
            self.reached.set()
            assert self.opened.wait(WAIT)
        return runs.results(out)


def axis(panel: AblationPanel, name: str) -> Any:
    return next(axis for axis in panel._axes if axis.choice.name == name)


def add(panel: AblationPanel, name: str) -> Any:
    panel._what.value = name
    panel._press_add()
    return axis(panel, name)


# Values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2, 4, 6", [2, 4, 6]),
        ("range(4)", range(4)),
        ("range(1, 7, 2)", range(1, 7, 2)),
        ("seeds(3)", range(3)),
        ("7, range(2)", [7, 0, 1]),
        ("0.1, -1.5, 1e-3,", [0.1, -1.5, 0.001]),
        ("null, 4", [None, 4]),
        ("[1.0, 0.5, 0.0], [1.0, 0.0]", [[1.0, 0.5, 0.0], [1.0, 0.0]]),
        ("none, magcache(threshold=0.1)", ["none", {"method": "magcache", "threshold": 0.1}]),
        ("magcache(a=[1, 2], b='c d')", [{"method": "magcache", "a": [1, 2], "b": "c d"}]),
        ("'a, b', \"c\"", ["a, b", "c"]),
    ],
)
def test_values_are_read_and_written(text: str, values: Any) -> None:
    assert read_values("x", text) == values
    assert read_values("x", values_as_text(values)) == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 4",
        "x.y",
        "__import__('os').system('true')",
        "range(10**9)",
        "magcache(1)",
        "f(**{})",
        "[",
        "1]#",
        "range('a')",
    ],
)
def test_what_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(WanlabError, match="x "):
        read_values("x", text)


# The panel


def test_untouched_it_returns_what_it_was_given(model: Any) -> None:
    spec = model.spec(**SIZE, seed=7)
    assert AblationPanel(model).spec == model.spec()
    assert AblationPanel("wan_tiny").spec == model.spec()
    panel = AblationPanel(spec)
    assert panel.spec is spec
    assert list(panel.grid) == [spec]
    axes = {"cache": ["none", {"method": "fixed", "mask": [True, False, True, True]}], "seed": range(3)}
    together = zip_(guidance_scale=[1.0, 5.0], num_steps=[4, 4])
    assert AblationPanel(spec, together, **axes).grid == grid(spec, together, **axes)


def test_axes_are_added_changed_and_taken_away(model: Any) -> None:
    spec = model.spec(**SIZE)
    panel = AblationPanel(spec)
    assert "1 run" in panel._cost.value
    seed = add(panel, "seed")
    assert list(panel.grid) == [spec]
    seed._text.value = "range(3)"
    assert panel.grid == grid(spec, seed=range(3))
    cache = add(panel, "cache")
    assert cache.read() == ["none"]
    cache._ticks["easycache"].value = True
    assert panel.grid == grid(spec, seed=range(3), cache=["none", "easycache"])
    cache._text.value = "easycache(threshold=0.2)"
    assert len(panel.grid) == 9
    assert "<b>9 runs</b>" in panel._cost.value
    sampler = add(panel, "sampler")
    sampler._ticks["euler"].value = True
    assert len(panel.grid) == 18
    panel._remove(sampler)
    panel._remove(cache)
    assert panel.grid == grid(spec, seed=range(3))
    add(panel, "seed")
    assert "varied already" in panel._message.value
    assert panel.grid == grid(spec, seed=range(3))


def test_axes_that_go_together(model: Any) -> None:
    spec = model.spec(**SIZE)
    panel = AblationPanel(spec, num_steps=[4, 6], guidance_scale=[1.0, 5.0])
    assert len(panel.grid) == 4
    axis(panel, "guidance_scale")._zip.value = True
    assert panel.grid == grid(spec, zip_(num_steps=[4, 6], guidance_scale=[1.0, 5.0]))
    axis(panel, "guidance_scale")._text.value = "1.0, 5.0, 7.0"
    assert panel._run.disabled
    assert "one length" in panel._message.value
    panel._remove(axis(panel, "num_steps"))
    assert panel.grid == grid(spec, guidance_scale=[1.0, 5.0, 7.0])
    assert not panel._run.disabled


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("num_steps", "0", "num_steps"), ("seed", "x y", "cannot be read"), ("seed", "", "no values")],
)
def test_what_is_wrong_is_said_and_cannot_be_run(model: Any, name: str, text: str, told: str) -> None:
    panel = AblationPanel(model.spec(**SIZE))
    add(panel, name)._text.value = text
    assert told in panel._message.value
    assert 'role="alert"' in panel._message.value
    assert panel._run.disabled
    assert panel._copy.text == ""
    with pytest.raises(WanlabError, match=told):
        panel.run()
    axis(panel, name)._text.value = "4"
    assert panel._message.value == ""
    assert not panel._run.disabled


def test_a_setting_that_is_not_there(model: Any) -> None:
    with pytest.raises(WanlabError, match="'num_stepz'"):
        AblationPanel(model, num_stepz=[1])
    with pytest.raises(WanlabError, match="cannot be varied"):
        AblationPanel(7)


def test_the_code_makes_the_same_grid(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    spec = model.spec(**SIZE, seed=2**62 + 1, cache="easycache")
    panel = AblationPanel(spec, zip_(num_steps=[4, 6], guidance_scale=[1.0, 5.0]), out=tmp_path / "a b", runner=runner)
    add(panel, "sampler")._ticks["euler"].value = True
    add(panel, "prompt")._text.value = 'it\'s "a" fox\n<b>'
    add(panel, "cache.threshold")._text.value = "0.1, 0.2"
    add(panel, "seed")._text.value = "range(2)"
    monkeypatch.setattr(wanlab, "run_sweep", lambda made, out, model: runner(made, Path(out)), raising=False)
    names: dict[str, Any] = {}
    exec(panel._copy.text, names)
    assert names["grid"] == panel.grid
    assert names["grid"].ids == panel.grid.ids
    assert len(names["grid"]) == 2 * 2 * 2 * 2 * 2
    assert runner.calls[0]["out"] == tmp_path / "a b"
    assert panel._code.value == panel._copy.text
    assert max(map(len, ast.unparse(ast.parse(panel.code)).splitlines())) < 300


def test_run_is_a_thread_and_fills_the_browser(model: Any, tmp_path: Path) -> None:
    runner = Runner(is_open=False)
    panel = AblationPanel(model, out=tmp_path / "runs", runner=runner, seed=range(3))
    panel._run.click()
    assert runner.reached.wait(WAIT)
    assert panel._run.disabled
    assert not panel._stop.disabled
    [browser] = panel._place.children
    browser.refresh()
    assert [row.status for row in browser.results] == ["ok", "pending", "pending"]
    with pytest.raises(WanlabError, match="runs already"):
        panel.run()
    runner.opened.set()
    until(lambda: panel.results is not None and not panel._run.disabled)
    assert [row.status for row in panel.results] == ["ok"] * 3
    assert runner.calls[0]["model"] is model
    assert "Done: 3/3 runs" in panel._message.value
    assert panel._stop.disabled


def test_cancel_is_a_file_and_the_rest_is_not_made(model: Any, tmp_path: Path) -> None:
    runner = Runner(is_open=False)
    panel = AblationPanel(model, out=tmp_path / "runs", runner=runner, seed=range(3))
    panel._run.click()
    assert runner.reached.wait(WAIT)
    panel._stop.click()
    assert runs.is_cancelled(tmp_path / "runs")
    assert panel._stop.disabled
    runner.opened.set()
    until(lambda: panel.results is not None)
    assert [row.status for row in panel.results] == ["ok", "pending", "pending"]
    until(lambda: "Stopped: 1/3 runs" in panel._message.value)


def test_run_is_run_sweep_and_so_is_the_code(model: Any, tmp_path: Path) -> None:
    panel = AblationPanel(model.spec(**SIZE), out=tmp_path / "runs", guidance_scale=[1.0, 5.0], seed=range(2))
    found = panel.run()
    assert [row.id for row in found] == list(panel.grid.ids)
    assert [row.status for row in found] == ["ok"] * 4
    written = {row.id: (row.folder / runs.RUN_JSON).stat().st_mtime_ns for row in found}
    names: dict[str, Any] = {}
    exec(panel.code, names)
    again = names["results"]
    assert {row.id: (row.folder / runs.RUN_JSON).stat().st_mtime_ns for row in again} == written, "all were there"


def test_cancel_ends_a_sweep_within_a_step_and_run_goes_on(model: Any, tmp_path: Path) -> None:
    spec = model.spec(**SIZE | {"num_steps": 400})
    panel = AblationPanel(spec, out=tmp_path / "runs", seed=range(3))
    panel._run.click()
    until(lambda: any(working.step > 1 for working in runs.read_working(tmp_path / "runs")))
    panel._stop.click()
    until(lambda: not panel._works)
    assert "Stopped: 0/3 runs" in panel._message.value
    assert not any(row.status == "ok" for row in runs.results(tmp_path / "runs"))
    panel._out.value = str(tmp_path / "short")
    axis(panel, "seed")._text.value = "7"
    add(panel, "num_steps")._text.value = "2"
    assert [row.status for row in panel.run()] == ["ok"]
    assert "Done: 1/1 runs" in panel._message.value


def test_headless_run_waits_and_raises(model: Any, tmp_path: Path) -> None:
    panel = AblationPanel(model, out=tmp_path / "runs", runner=Runner(), seed=range(2))
    assert len(panel.run()) == 2

    def fails(*_: Any, **__: Any) -> None:
        raise WanlabError("The disk is full")

    panel = AblationPanel(model, out=tmp_path / "more", runner=fails, seed=range(2))
    with pytest.raises(WanlabError, match="disk is full"):
        panel.run()
    assert "disk is full" in panel._message.value
    assert not panel._run.disabled


def test_the_base_is_what_the_panel_says(model: Any) -> None:
    form = GeneratePanel(model, **SIZE)
    panel = AblationPanel(form, seed=range(2))
    assert panel.spec == form.spec
    form._form.field("sampling.num_steps").widget.value = "6"
    assert panel.spec.sampling.num_steps == 6
    assert panel.grid == grid(form.spec, seed=range(2))
    assert "num_steps=6" in panel._copy.text
    form._form.field("sampling.num_steps").widget.value = "0"
    assert panel._run.disabled


def test_only_what_the_model_can_do_is_offered(model: Any) -> None:
    offered = AblationPanel(model)._choices
    assert {"cache", "attention", "sampler", "num_steps", "guidance_scale", "seed", "prompt"} <= offered.keys()
    assert not {"guidance_scale_2", "dtype", "image"} & offered.keys()
    assert "cache.threshold" not in offered
    assert "cache.threshold" in AblationPanel(model.spec(cache="easycache"))._choices


def test_the_cost_is_told_at_every_change(model: Any) -> None:
    panel = AblationPanel(model, num_steps=[4])
    assert "<b>1 run</b>" in panel._cost.value
    until(lambda: "8 forwards" in panel._cost.value)
    axis(panel, "num_steps")._text.value = "4, 6"
    assert "<b>2 runs</b>" in panel._cost.value
    until(lambda: "20 forwards" in panel._cost.value)
    assert "MB on disk" in panel._cost.value


def test_points_that_would_be_refused_are_told_before_they_run(model: Any) -> None:
    panel = AblationPanel(model.spec(**SIZE), cache=["none", "easycache"])
    until(lambda: "wanlab-error" in panel._cost.value)
    assert "reuse nothing" in panel._cost.value
    axis(panel, "cache")._ticks["easycache"].value = False
    until(lambda: "4 forwards" in panel._cost.value or "8 forwards" in panel._cost.value)
    assert "wanlab-error" not in panel._cost.value
