"""What goes wrong around a panel is said, costs no clip, and leaves nothing behind."""

from __future__ import annotations

import gc
import html
import json
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wanlab
from tests.test_widgets_panel import HOSTILE, SPEC, WAIT, Gate, until
from tests.tiny import tiny_wan
from wanlab import catalog, runs
from wanlab.errors import WanlabError
from wanlab.jobs._folder import JobFolder
from wanlab.widgets import GeneratePanel
from wanlab.widgets._history import entries
from wanlab.workspace import find_workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.mark.parametrize("content", ["{", '{"model": "another"}', '{"schema": 99, "model": "x"}', ""])
def test_damaged_last_settings_are_named_and_kept(model: Any, live: Path, content: str) -> None:
    file = live / "configs" / f"{model.id}.last.json"
    file.parent.mkdir()
    file.write_text(content)
    panel = GeneratePanel(model)
    assert panel.spec == model.spec()
    assert "are not used" in panel._message.value
    assert file.read_text() == content


def test_a_failure_is_told_and_the_next_job_runs(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    panel = GeneratePanel(model, runs=tmp_path, **SPEC)

    def fail(*_: Any) -> None:
        raise RuntimeError(f"from a callback {HOSTILE}")

    with monkeypatch.context() as patch:
        patch.setattr(panel, "_look_at_step", fail)
        panel._press()
        until(lambda: "from a callback" in panel._message.value)
    assert "<img" not in panel._message.value
    assert [entry.record.status for entry in entries(tmp_path, model.id)] == ["failed"]
    panel._press()
    until(lambda: panel.result is not None)
    assert panel._message.value == ""


def test_settings_that_cannot_be_kept_do_not_stop_the_clip(model: Any, live: Path) -> None:
    (live / "configs").write_text("a file where the folder would be")
    panel = GeneratePanel(model, **SPEC)
    panel._generate.click()
    until(lambda: panel.result is not None)
    assert "will not come back after a restart" in panel._message.value


def test_a_click_tells_what_went_wrong(model: Any, tmp_path: Path) -> None:
    """A disk that refuses the run's folder, and an error that nobody thought of; no folder without a run is left."""
    (tmp_path / "file").write_text("")
    panel = GeneratePanel(model, runs=tmp_path / "file", **SPEC)
    panel._generate.click()
    assert "Cannot write" in panel._message.value
    assert not panel._jobs

    def fail() -> None:
        raise RuntimeError(HOSTILE)

    panel._told(fail)
    assert "RuntimeError" in panel._message.value
    assert "<img" not in panel._message.value


def test_a_record_that_cannot_be_written_leaves_no_folder(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise WanlabError("Disk full")

    monkeypatch.setattr(runs, "queue_run", refuse)
    panel = GeneratePanel(model, runs=tmp_path / "runs", **SPEC)
    panel._generate.click()
    assert "Disk full" in panel._message.value
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_clip_that_the_disk_refuses_is_not_lost(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise WanlabError("Disk full")

    monkeypatch.setattr(JobFolder, "save", refuse)
    panel = GeneratePanel(model, runs=tmp_path / "runs", **SPEC)
    panel._generate.click()
    until(lambda: "panel.result" in panel._message.value)
    assert "Disk full" in panel._message.value
    assert panel.result.frames.shape == (5, 32, 32, 3)


def test_a_job_that_fails_at_once_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be over before the click is."""
    panel = GeneratePanel(model, **SPEC)
    start = panel._start_ticker

    def late() -> None:
        start()
        until(lambda: "at once" in panel._message.value)

    def fail(*_: Any) -> None:
        raise RuntimeError("at once")

    monkeypatch.setattr(panel, "_look_at_step", fail)
    monkeypatch.setattr(panel, "_start_ticker", late)
    panel._generate.click()
    assert "at once" in panel._message.value


def test_what_is_shown_last_is_the_latest(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job ends while the ticker shows a preview: Cancel and the progress do not stay."""
    panel = GeneratePanel(model, **SPEC)
    shown, done = threading.Event(), threading.Event()
    show = panel._activity.show

    def slow(jobs: Any) -> None:
        if jobs and shown.is_set():
            until(jobs[0].done)
            time.sleep(0.05)  # in which the worker would show the end
        show(jobs)

    def look(*_: Any) -> None:
        shown.set()
        assert done.wait(WAIT)

    monkeypatch.setattr(panel._activity, "show", slow)
    monkeypatch.setattr(panel, "_look_at_step", look)
    panel._generate.click()
    assert shown.wait(WAIT)
    time.sleep(0.3)  # the ticker has begun
    panel._cancel.click()
    done.set()
    until(lambda: panel._ticker is None)
    assert panel._cancel.disabled
    assert panel._generate.description == "Generate"
    assert panel._activity.layout.display == "none"


def test_a_ticker_outlives_what_it_cannot_show(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = GeneratePanel(model, **SPEC)
    gate = Gate(panel, monkeypatch)

    def fail(*_: Any) -> None:
        raise OSError("no such codec")

    monkeypatch.setattr(panel._activity, "look", fail)
    panel._latest = np.zeros((1, 4, 4, 3), np.uint8), 8.0
    panel._press()
    assert gate.reached.wait(WAIT)
    panel._latest = np.zeros((1, 4, 4, 3), np.uint8), 8.0
    until(lambda: "no such codec" in panel._message.value)
    gate.opened.set()
    until(lambda: panel._ticker is None and panel.result is not None)
    assert panel._generate.description == "Generate"


def test_a_result_that_cannot_be_shown_is_there_all_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = GeneratePanel(model, **SPEC)

    def fail(*_: Any) -> None:
        raise OSError("no display")

    monkeypatch.setattr(panel, "_show", fail)
    panel._press()
    until(lambda: not panel._jobs and panel._generate.description == "Generate")
    assert panel.result is not None
    assert "no display" in panel._message.value


def test_loading_in_the_background(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the settings stays in sight; whatever ends the loading is told; `.model` waits."""
    panel = GeneratePanel("wan_tiny", width=33)
    panel._load_in_background()
    assert panel.model.id == "wan_tiny"
    until(lambda: panel._loader is None)
    assert panel._generate.disabled
    assert "width = 33 is not legal" in panel._message.value

    def fail(*_: Any) -> None:
        raise RuntimeError("damaged")

    monkeypatch.setattr("wanlab.models.load", fail)
    panel = GeneratePanel("wan_tiny")
    panel._load_in_background()
    until(lambda: panel._loader is None)
    assert "RuntimeError: damaged" in panel._message.value


def test_weights_that_are_not_here_are_named_with_what_fetches_them(live: Path) -> None:
    panel = GeneratePanel("vace_1_3b")
    panel._load_in_background()
    assert panel._loader is None
    text = html.unescape(panel._message.value)
    assert "wanlab models --download vace_1_3b" in text
    assert "Wan-AI/Wan2.1-VACE-1.3B-diffusers" in text
    panel = GeneratePanel("vace_1_3b", prompt="a kite")
    panel._generate.click()
    until(lambda: panel._message.is_error)
    assert "wanlab models --download vace_1_3b" in html.unescape(panel._message.value)


def test_where_settings_came_from_is_still_told_after_loading(live: Path) -> None:
    catalog.save_last(GeneratePanel("wan_tiny", seed=8).spec, find_workspace())
    panel = GeneratePanel("wan_tiny")
    panel._load_in_background()
    until(lambda: panel._loader is None)
    assert panel.spec.sampling.seed == 8
    assert "Your last settings" in panel._message.value


def test_last_settings_with_options_that_are_no_more(model: Any, live: Path) -> None:
    nested = model.spec(**SPEC, cache={"method": "fixed", "mask": [True] * 4}).to_dict()
    nested["cache"]["options"]["threshold"] = 1
    file = live / "configs" / f"{model.id}.last.json"
    file.parent.mkdir()
    file.write_text(json.dumps(nested))
    panel = GeneratePanel(model)
    assert panel.spec == model.spec()
    assert "are not used" in panel._message.value
    assert "threshold" in panel._message.value


def test_jobs_that_waited_leave_no_clip_behind(model: Any) -> None:
    """ipywidgets keeps each widget until it is closed: the rows of the queue held their jobs, and these their clips."""
    panel = GeneratePanel(model, **SPEC)
    results = []
    for _ in range(4):
        panel._press()
        results.append(weakref.ref(panel._jobs[-1]))
    rows = list(panel._activity._queue.children)
    assert rows
    until(lambda: not panel._jobs and panel._ticker is None)
    assert all(row.comm is None for row in rows)
    del rows
    gc.collect()
    assert [job() for job in results] == [None] * 4


def test_foreign_records_do_not_break_the_history(model: Any, tmp_path: Path) -> None:
    panel = GeneratePanel(model, **SPEC)
    for i, more in enumerate(({"text": "abc", "sampling": None}, {"text": {"prompt": None}}, {})):
        record = runs.RunRecord(id="0" * 12, status="ok", spec={"model": model.id, **more})
        runs.write_run(tmp_path / str(i), record, {})
    panel._history.refresh(tmp_path)
    assert len(panel._history._box.children) == 3
    panel._load_entry(entries(tmp_path, model.id)[0])
    assert 'role="alert"' in panel._message.value


def test_the_history_tells_the_time_anew_and_closes_what_it_drops(model: Any, tmp_path: Path) -> None:
    record = runs.RunRecord(id="0" * 12, status="ok", spec=model.spec(**SPEC).to_dict(), ended=runs.now())
    runs.write_run(tmp_path / "a", record, {})
    panel = GeneratePanel(model, **SPEC)
    panel._history.refresh(tmp_path)
    [row] = panel._history._box.children
    assert "just now" in row.children[1].value
    runs.write_run(tmp_path / "a", record.with_(ended="2020-01-01T00:00:00+00:00"), {})
    panel._history.refresh(tmp_path)
    assert "d ago" in row.children[1].value
    shutil.rmtree(tmp_path / "a")
    panel._history.refresh(tmp_path)
    assert row.comm is None


def test_a_press_before_the_model_is_there_leaves_the_kernel_free(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the press count, whatever is typed while it loads; one press is one clip."""
    load, opened, loads = wanlab.load, threading.Event(), []

    def slow(*arguments: Any) -> Any:
        loads.append(1)
        assert opened.wait(WAIT)
        return load(*arguments, device="cpu")

    monkeypatch.setattr("wanlab.models.load", slow)
    panel = GeneratePanel("wan_tiny", num_frames=1, num_steps=2, seed=1)
    panel._generate.click()
    assert "Loading wan_tiny" in panel._message.value
    panel._form.field("sampling.seed").widget.value = "2"
    assert panel._generate.disabled
    opened.set()
    until(lambda: panel.result is not None)
    assert panel.result.spec.sampling.seed == 1
    assert panel.spec.sampling.seed == 2
    assert loads == [1]
    until(lambda: not panel._generate.disabled)
    assert panel._message.value == ""


def test_a_press_whose_model_cannot_be_loaded_says_why(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr("wanlab.models.load", fail)
    panel = GeneratePanel("wan_tiny")
    panel._generate.click()
    until(lambda: not panel._starting)
    assert "no route to host" in panel._message.value
    until(lambda: not panel._generate.disabled)
