"""GeneratePanel without a browser: its spec, its jobs, what it says, what it keeps and what comes back."""

from __future__ import annotations

import gc
import io
import json
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wanlab
from tests.tiny import tiny_wan
from wanlab import notebook, runs
from wanlab.errors import WanlabError
from wanlab.widgets import GeneratePanel
from wanlab.widgets._activity import animated
from wanlab.widgets._history import entries
from wanlab.widgets._settings import keep_settings
from wanlab.workspace import find_workspace

SPEC = {"prompt": "a red fox", "num_steps": 4, "width": 32, "height": 32, "num_frames": 5, "seed": 1}
WAIT = 60  # seconds, only ever used up by a failure
HOSTILE = '<img src=x onerror="window.pwned=1">'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a notebook of a Jupyter server; the workspace is an empty one."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "wanlab.toml").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(notebook, "notebook_file", lambda: folder / "a.ipynb")
    monkeypatch.setattr(notebook, "is_live", lambda: True)
    return folder


def until(claim: Any) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + WAIT
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


class Gate:
    """Holds a panel's jobs after their first step until it is opened."""

    def __init__(self, panel: GeneratePanel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        look = panel._look_at_step

        def gated(*arguments: Any) -> None:
            look(*arguments)
            self.reached.set()
            assert self.opened.wait(WAIT)

        monkeypatch.setattr(panel, "_look_at_step", gated)


def test_untouched_it_returns_what_it_was_given(model: Any) -> None:
    spec = model.spec(**SPEC, cache={"method": "fixed", "mask": [True] * 4})
    assert GeneratePanel(model, spec).spec == spec
    assert GeneratePanel(model, spec, seed=9).spec == spec.with_(seed=9)
    assert GeneratePanel(model, **SPEC).spec == model.spec(**SPEC)
    assert GeneratePanel("wan_tiny").spec == wanlab.load("wan_tiny", device="cpu").spec()


def test_headless_generate_is_the_button_and_writes_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    panel = GeneratePanel(model, **SPEC)
    result = panel.generate()
    assert panel.result is result
    assert np.array_equal(result.frames, wanlab.generate(model, **SPEC).frames)
    until(lambda: not panel._jobs)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_kept_where_asked_and_shown_in_the_history(model: Any, tmp_path: Path) -> None:
    panel = GeneratePanel(model, runs=tmp_path / "runs", **SPEC)
    first, second = panel.generate(), panel.generate()
    assert first.path.parent == tmp_path / "runs"
    assert first.path != second.path
    assert "a-red-fox_seed1" in first.path.name
    assert np.array_equal(wanlab.open_result(first.path).latents, first.latents)
    found = entries(tmp_path / "runs", model.id)
    assert {entry.folder for entry in found} == {first.path, second.path}
    assert found[0].spec == first.spec
    assert entries(tmp_path / "runs", "another") == []
    panel._history.refresh(tmp_path / "runs", model.id)
    assert len(panel._history._box.children) == 2
    panel.spec = model.spec(seed=77)
    panel._load_entry(found[1])
    assert panel.spec == first.spec


def test_a_press_while_a_clip_runs_queues(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """First in, first out over two panels; the button says what it does; a queued one can be taken out."""
    one, two = GeneratePanel(model, **SPEC), GeneratePanel(model, **SPEC)
    gate = Gate(one, monkeypatch)
    order: list[int] = []
    one._press()
    assert gate.reached.wait(WAIT)
    until(lambda: one._generate.description == "Add to queue")
    assert not one._cancel.disabled
    for panel, seed in ((two, 2), (one, 3), (two, 4)):
        panel.spec = panel.spec.with_(seed=seed)
        panel._press()
    jobs = [*one._jobs, *two._jobs]
    for job in jobs:
        job.on_end(lambda job: order.append(job.spec.sampling.seed))
    until(lambda: len(one._activity._queue.children) == 1)
    assert "seed 3" in one._activity._queue.children[0].children[1].value
    one._activity._queue.children[0].children[0].click()
    gate.opened.set()
    until(lambda: len(order) == 4)
    assert order == [3, 1, 2, 4]
    until(lambda: not one._jobs and not two._jobs and one._generate.description == "Generate")
    assert one._activity.layout.display == "none"
    assert one._cancel.disabled


def test_cancel_ends_within_a_step_and_the_next_run_is_as_fresh(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = wanlab.generate(model, **SPEC)
    panel = GeneratePanel(model, **SPEC)
    gate = Gate(panel, monkeypatch)
    panel._generate.click()
    assert gate.reached.wait(WAIT)
    [job] = panel._jobs
    panel._cancel.click()
    gate.opened.set()
    until(job.done)
    assert job.status == "cancelled"
    assert job.progress.step == 1
    until(lambda: "Cancelled" in panel._message.value)
    assert panel.result is None
    assert np.array_equal(panel.generate().frames, fresh.frames)


def test_what_is_wrong_is_said_and_cannot_be_pressed(model: Any) -> None:
    panel = GeneratePanel(model, **SPEC)
    panel._form.field("size.width").widget.value = "33"
    assert panel._generate.disabled
    assert 'role="alert"' in panel._message.value
    assert "width = 33 is not legal" in panel._message.value
    with pytest.raises(WanlabError, match="width"):
        panel.submit()
    panel._form.field("size.width").widget.value = "48"
    assert not panel._generate.disabled
    assert panel._message.value == ""
    panel._form.field("sampling.sigmas").widget.value = HOSTILE
    assert panel._generate.disabled
    assert "<img" not in panel._message.value
    with pytest.raises(WanlabError, match="sigmas"):
        _ = panel.spec


def test_defaults_and_new_seed(model: Any) -> None:
    panel = GeneratePanel(model, **SPEC, guidance_scale=9.0)
    panel._defaults.click()
    assert panel.spec == model.spec(prompt="a red fox")
    seeds = set()
    for _ in range(3):
        panel._dice.click()
        seeds.add(panel.spec.sampling.seed)
    assert len(seeds) == 3
    assert panel.spec == model.spec(prompt="a red fox", seed=panel.spec.sampling.seed)


def test_the_last_settings_come_back(model: Any, live: Path) -> None:
    first = GeneratePanel(model, **SPEC)
    first._press()
    until(lambda: first.result is not None)
    again = GeneratePanel(model)
    assert again.spec == model.spec(**SPEC)
    assert "last settings" in again._message.value
    assert GeneratePanel(model, restore=False).spec == model.spec()
    assert GeneratePanel(model, model.spec(seed=5)).spec == model.spec(seed=5)
    again._defaults.click()
    assert again.spec == model.spec(prompt="a red fox")
    assert first.result.path.parent == live / "runs"


def test_headless_nothing_comes_back(model: Any, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = GeneratePanel(model, **SPEC)
    panel._press()
    until(lambda: panel.result is not None)
    monkeypatch.setattr(notebook, "is_live", lambda: False)
    assert GeneratePanel(model).spec == model.spec()


@pytest.mark.parametrize("content", ["{", '{"model": "another"}', '{"schema": 99, "model": "x"}', ""])
def test_damaged_last_settings_are_named_and_kept(model: Any, live: Path, content: str) -> None:
    file = live / "configs" / f"{model.id}.json"
    file.parent.mkdir()
    file.write_text(content)
    panel = GeneratePanel(model)
    assert panel.spec == model.spec()
    assert "are not used" in panel._message.value
    assert file.read_text() == content


def test_stripped_prompts_are_not_kept(model: Any, live: Path) -> None:
    panel = GeneratePanel(model, **SPEC, strip_prompt=True)
    panel._press()
    until(lambda: panel.result is not None)
    assert "red fox" not in (live / "configs" / f"{model.id}.json").read_text()
    assert "red" not in panel.result.path.name


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


def test_where_settings_came_from_is_still_told_after_loading(live: Path) -> None:
    keep_settings(find_workspace(), "wan_tiny", GeneratePanel("wan_tiny", seed=8).spec)
    panel = GeneratePanel("wan_tiny")
    panel._load_in_background()
    until(lambda: panel._loader is None)
    assert panel.spec.sampling.seed == 8
    assert "Your last settings" in panel._message.value


def test_last_settings_with_options_that_are_no_more(model: Any, live: Path) -> None:
    nested = model.spec(**SPEC, cache={"method": "fixed", "mask": [True] * 4}).to_dict()
    nested["cache"]["options"]["threshold"] = 1
    file = live / "configs" / f"{model.id}.json"
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


def test_previews_are_shown_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the estimate at the panel's own pace; afterwards the widget holds no picture."""
    panel = GeneratePanel(wanlab.load("wan_tiny", device="cpu"), num_frames=9, num_steps=3)
    seen: list[bytes] = []
    panel._activity._preview.observe(lambda change: seen.append(change["new"]), "value")
    gate = Gate(panel, monkeypatch)
    panel._press()
    assert gate.reached.wait(WAIT)
    until(lambda: seen)
    with Image.open(io.BytesIO(seen[0])) as picture:
        assert (picture.format, picture.size, picture.n_frames) == ("WEBP", (12, 12), 3)
    assert panel._activity._preview.layout.display is None
    gate.opened.set()
    until(lambda: panel.result is not None and not panel._jobs)
    until(lambda: panel._activity._preview.value == b"")


def test_animated_pictures_keep_their_frames_and_their_pace() -> None:
    frames = np.zeros((3, 8, 16, 3), np.uint8)
    frames[:, :, :, 0] = np.array([0, 128, 255])[:, None, None]
    with Image.open(io.BytesIO(animated(frames, 4.0))) as picture:
        assert picture.size == (16, 8)
        reds = []
        for i in range(picture.n_frames):
            picture.seek(i)
            reds.append(np.asarray(picture.convert("RGB"))[..., 0].mean())
            assert picture.info["duration"] == 250
    assert np.allclose(reds, [0, 128, 255], atol=6)


def test_nothing_large_is_synced(model: Any, tmp_path: Path) -> None:
    """What a saved notebook would hold of the panel's widgets is a few kilobytes, and no picture but thumbnails."""
    panel = GeneratePanel(model, runs=tmp_path, **{**SPEC, "prompt": HOSTILE})
    panel.generate()
    until(lambda: not panel._jobs)
    panel._history.refresh(tmp_path, model.id)
    state = _states(panel)
    assert sum(len(json.dumps(s, default=repr)) for s in state) < 120_000
    page = "".join(s["value"] for s in state if s["_model_name"] == "HTMLModel")
    assert "onerror" in page
    assert "<img src=x" not in page


def _states(widget: Any) -> list[dict[str, Any]]:
    """The state of a widget and of all inside it."""
    found = [widget.get_state()]
    for child in getattr(widget, "children", ()):
        found += _states(child)
    return found


def test_wrong_arguments(model: Any) -> None:
    with pytest.raises(WanlabError, match="is no model"):
        GeneratePanel(7)
    with pytest.raises(WanlabError, match="Unknown model"):
        GeneratePanel("wan_tinny")
    with pytest.raises(WanlabError, match="GeneratePanel\\('wan_tiny'"):
        GeneratePanel(model, wanlab.load("wan_tiny", device="cpu").spec())
    with pytest.raises(WanlabError, match="num_steps"):
        GeneratePanel(model, num_stepz=3)


def test_foreign_records_do_not_break_the_history(model: Any, tmp_path: Path) -> None:
    panel = GeneratePanel(model, **SPEC)
    for i, more in enumerate(({"text": "abc", "sampling": None}, {"text": {"prompt": None}}, {})):
        record = runs.RunRecord(id="0" * 12, status="ok", spec={"model": model.id, **more})
        runs.write_run(tmp_path / str(i), record, {})
    panel._history.refresh(tmp_path, model.id)
    assert len(panel._history._box.children) == 3
    panel._load_entry(entries(tmp_path, model.id)[0])
    assert 'role="alert"' in panel._message.value


def test_the_history_tells_the_time_anew_and_closes_what_it_drops(model: Any, tmp_path: Path) -> None:
    record = runs.RunRecord(id="0" * 12, status="ok", spec=model.spec(**SPEC).to_dict(), ended=runs.now())
    runs.write_run(tmp_path / "a", record, {})
    panel = GeneratePanel(model, **SPEC)
    panel._history.refresh(tmp_path, model.id)
    [row] = panel._history._box.children
    assert "just now" in row.children[1].value
    runs.write_run(tmp_path / "a", record.with_(ended="2020-01-01T00:00:00+00:00"), {})
    panel._history.refresh(tmp_path, model.id)
    assert "d ago" in row.children[1].value
    shutil.rmtree(tmp_path / "a")
    panel._history.refresh(tmp_path, model.id)
    assert row.comm is None


def test_crashed_runs_are_in_the_history(model: Any, tmp_path: Path) -> None:
    folder, _ = runs.new_folder(tmp_path, "a")
    record = runs.RunRecord(id="0" * 12, spec=model.spec(**SPEC).to_dict())
    runs.begin_run(folder, record)
    data = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**data, "pid": 2**22 + 1}))
    [entry] = entries(tmp_path, model.id)
    assert entry.record.status == "crashed"
    assert entry.spec == model.spec(**SPEC)
