"""RunBrowser and SweepProgress without a browser: folders that are written by hand, messages as the page sends them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import wanlab
from tests import run_folders
from tests.run_folders import HOSTILE, begin, break_off, finish, plan, work
from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.sweeps import SweepProgress, grid
from wanlab.sweeps._progress import duration
from wanlab.widgets import GeneratePanel, RunBrowser
from wanlab.widgets._code import base_lines, spec_as_code
from wanlab.widgets._pictures import KEPT, Pictures, small_jpeg
from wanlab.widgets._run_table import line_of, varying

WAIT = 60  # seconds, only ever used up by a failure
SIZE = {"width": 32, "height": 32, "num_frames": 5}


def until(claim: Any) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + WAIT
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def points() -> Any:
    base = GenerationSpec(model="wan_tiny", prompt="a red fox", num_steps=4, **SIZE)
    return grid(base, guidance_scale=[1.0, 5.0], seed=[1, 2, 3])


@pytest.fixture
def sweep(tmp_path: Path, points: Any) -> Path:
    """Six points: three ok, one failed, one running, one planned."""
    folders = plan(tmp_path / "sweep", points, {"alone": 100, "shared": 40})
    for i in range(3):
        finish(folders[i], points[i], seconds=2.0 + i, psnr=30.0 + i)
    break_off(folders[3], points[3], HOSTILE)
    begin(folders[4], points[4])
    return tmp_path / "sweep"


class Page:
    """What the page's end of a browser hears and says."""

    def __init__(self, browser: RunBrowser, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = browser._table
        self.heard: list[dict[str, Any]] = []
        self.buffers: list[Any] = []
        monkeypatch.setattr(self.table, "send", self._hear)

    def _hear(self, content: Any, buffers: Any = None) -> None:
        self.heard.append(json.loads(json.dumps(content, allow_nan=False)))
        self.buffers += list(buffers or ())

    def say(self, **message: Any) -> None:
        self.table._on_message(self.table, message, [])

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows by id, put together from all that was heard."""
        found: dict[str, dict[str, Any]] = {}
        for message in self.heard:
            if message["type"] == "rows":
                found = {} if message["whole"] else found
                found |= {row["id"]: row for row in message["rows"]}
                found = {key: found[key] for key in message["order"]}
        return found


# How far


def test_progress_of_a_sweep(sweep: Path, points: Any) -> None:
    work(sweep, current="guidance_scale 5.0", step=1, num_steps=4, executed=10, planned=20, alone=40)
    told = SweepProgress.of(sweep)
    assert (told.done, told.total) == (4, 6)
    assert dict(told.by_status) == {"ok": 3, "running": 1, "pending": 1, "failed": 1}
    assert [f.id for f in told.failures] == [points[3].id]
    assert HOSTILE in told.failures[0].error
    assert told.share_saved == pytest.approx(0.5)
    assert told.predicted_saved == pytest.approx(0.6)
    assert told.fraction == pytest.approx((4 + 0.25) / 6)
    assert told.eta is not None
    assert not told.is_over
    line = str(told)
    assert "\n" not in line
    for words in ("4/6 runs", "1 failed", "guidance_scale 5.0 step 1/4", "sharing saved 50%"):
        assert words in line


def test_progress_without_processes_knows_no_end(sweep: Path) -> None:
    told = SweepProgress.of(wanlab.runs.results(sweep))
    assert told.eta is None
    assert told.current == ()
    assert told.share_saved is None
    assert "sharing is to save 60% of the forwards" in str(told)


def test_eta_is_of_finished_runs_where_forwards_are_not_counted(sweep: Path) -> None:
    work(sweep, current="seed 2")
    assert SweepProgress.of(sweep).eta == pytest.approx((2 + 3 + 4) / 3 * 2)


def test_eta_is_of_forwards_where_they_are_counted(sweep: Path) -> None:
    work(sweep, executed=10, planned=30, started="2000-01-01T00:00:00+00:00")
    begun = SweepProgress.of(sweep).current[0].started
    seconds = time.time() - 946_684_800
    assert begun.startswith("2000")
    left = 20 + 40 / 6  # its own, and those of a mean run for the one that nobody has in hand
    assert SweepProgress.of(sweep).eta == pytest.approx(seconds / 10 * left, rel=1e-6)


def test_progress_of_what_is_over_and_of_nothing(tmp_path: Path, points: Any) -> None:
    folders = plan(tmp_path, points)
    for folder, spec in zip(folders, points, strict=True):
        finish(folder, spec)
    told = SweepProgress.of(tmp_path)
    assert told.is_over
    assert (told.fraction, told.eta, str(told)) == (1.0, 0.0, "6/6 runs")
    with pytest.raises(WanlabError, match="nowhere"):
        SweepProgress.of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (8.2, "8 s"), (60, "1 min"), (272, "4 min 32 s"), (7_500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# The table


def test_a_view_gets_all_rows_then_what_changes(sweep: Path, points: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = RunBrowser(sweep)
    page = Page(browser, monkeypatch)
    page.say(type="ready")
    rows = list(page.rows().values())
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed", "running", "pending"]
    assert page.heard[0]["settings"] == ["guidance_scale", "seed"]
    assert page.heard[0]["metrics"] == ["psnr"]
    assert rows[1]["settings"] == {"guidance_scale": 1.0, "seed": 2}
    assert (rows[1]["seconds"], rows[1]["metrics"], rows[1]["clip"]) == (3.0, {"psnr": 31.0}, True)
    assert HOSTILE in rows[3]["error"]
    begin(browser.folder / rows[5]["name"] if rows[5]["name"] else browser.folder / "late", points[5])
    until(lambda: list(page.rows().values())[5]["status"] == "running")
    assert all(len(message["rows"]) <= 2 for message in page.heard[1:]), "only what has changed is sent"
    browser.close()
    until(lambda: not browser._follower.is_alive())


def test_it_looks_only_while_there_is_a_view(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = RunBrowser(sweep)
    page = Page(browser, monkeypatch)
    assert browser._follower is None
    page.say(type="ready")
    assert browser._watched.is_set()
    page.say(type="gone")
    assert not browser._watched.is_set()
    page.say(type="ready")
    browser.close()
    until(lambda: not browser._follower.is_alive())
    assert "wanlab-runs" not in {thread.name for thread in threading.enumerate() if thread is browser._follower}


def test_a_click_opens_a_run(sweep: Path, points: Any, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = RunBrowser(sweep)
    page = Page(browser, monkeypatch)
    key = next(iter(browser._rows))
    page.say(type="open", id=key)
    assert browser.row.id == points[0].id
    assert browser.result.spec == points[0]
    assert "<video" in browser._inside.value
    assert "guidance_scale" in browser._inside.value
    page.say(type="open", id="nothing")
    assert "There is no run" in browser._message.value
    failed = list(browser._rows)[3]
    page.say(type="open", id=failed)
    assert "<img src=x" not in browser._inside.value
    assert "&lt;img src=x" in browser._inside.value
    assert "Where it happened" in browser._inside.value
    with pytest.raises(WanlabError, match="failed"):
        _ = browser.result


def test_load_this_spec_fills_the_panel(sweep: Path, points: Any) -> None:
    panel = GeneratePanel("wan_tiny")
    browser = RunBrowser(sweep, panel=panel)
    assert browser.spec is None
    browser.show_run(points[5].id)
    browser._load.click()
    assert browser.spec == points[5] == panel.spec
    assert "in the panel" in browser._message.value


def test_a_spec_as_code_is_this_spec(points: Any) -> None:
    for spec in (points[0], points[0].with_(cache={"method": "fixed", "mask": [True, False] * 2}, prompt='"x"\n')):
        made: dict[str, Any] = {}
        lines = [line for line in base_lines(spec, "spec") if not line.startswith("model = ")]
        exec("\n".join(lines), {"wanlab": wanlab, "model": wanlab.load("wan_tiny", device="cpu")}, made)
        assert made["spec"].id == spec.id
    assert "model = wanlab.load('wan_tiny')" in spec_as_code(points[0])


def test_ticked_runs_are_compared(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = RunBrowser(sweep)
    page = Page(browser, monkeypatch)
    keys = list(browser._rows)[:2]
    browser._table.ticked = keys
    assert [row.folder.name for row in browser.selected] == keys
    page.say(type="compare", ids=keys)
    until(lambda: len(browser._compared.children) == 3)
    assert "seed" in browser._compared.children[1].value
    browser._compared.children[2].click()
    assert browser._compared.children == ()
    page.say(type="compare", ids=keys[:1])
    assert "Tick 2 to 6" in browser._message.value


def test_pictures_are_small_and_few(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = RunBrowser(sweep)
    page = Page(browser, monkeypatch)
    page.say(type="pictures", ids=[*browser._rows, "nothing"])
    until(lambda: len(page.buffers) == 3)
    assert all(data[:2] == b"\xff\xd8" and len(data) < 5_000 for data in page.buffers)
    made: list[Path] = []
    monkeypatch.setattr("wanlab.widgets._pictures.small_jpeg", lambda file: made.append(file) or b"x")
    sent: dict[str, bytes] = {}
    pictures = Pictures(sent.update)
    files = [sweep / f"{i}.png" for i in range(KEPT + 20)]
    for file in files:
        file.write_bytes(b"")
    pictures.ask({file.name: file for file in files} | {"lost": sweep / "lost.png"})
    until(lambda: pictures._thread is None)
    assert len(sent) == KEPT + 20
    assert len(pictures._kept) == KEPT
    with pytest.raises(WanlabError):
        small_jpeg(files[0])


def test_cancel_asks_who_works_here(sweep: Path) -> None:
    browser = RunBrowser(sweep)
    assert not browser._cancel.disabled
    browser._cancel.click()
    assert runs.is_cancelled(sweep)
    browser.refresh()
    assert (browser._cancel.disabled, browser._cancel.description) == (True, "Stopping ...")


def test_headless_it_is_a_table(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    browser = RunBrowser(sweep)
    shown: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wanlab.widgets._run_browser.display", lambda what, **_: shown.append(what))
        browser._ipython_display_()
    assert "4/6 runs" in shown[0].data
    assert "<table" in shown[0].data
    assert "<img src=x" not in shown[0].data
    assert "4/6 runs" in repr(browser)
    assert browser._follower is None


def test_a_folder_that_comes_later(tmp_path: Path, points: Any) -> None:
    browser = RunBrowser(tmp_path / "later")
    assert "no runs" in repr(browser)
    folders = plan(tmp_path / "later", points)
    finish(folders[0], points[0])
    browser.refresh()
    assert [row.status for row in browser.results] == ["ok", *["pending"] * 5]


def test_numbers_that_a_browser_cannot_hold_are_text(sweep: Path, points: Any) -> None:
    big = points[0].with_(seed=2**62 + 1)
    folder = sweep / "big"
    finish(folder, big, psnr=1.0)
    browser = RunBrowser(sweep)
    line = line_of(browser._rows["big"], "big")
    assert line["settings"]["seed"] == str(2**62 + 1)
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_columns_are_the_settings_that_differ() -> None:
    lines = [{"settings": {"a": 1, "b": [1], "c": 0}}, {"settings": {"a": 1, "b": [2], "c": 0}}]
    assert varying(lines) == ["b"]
    assert varying(lines, ("c",)) == ["c", "b"]


def test_500_runs_are_looked_at_in_a_moment(tmp_path: Path, points: Any) -> None:
    base = points.base
    many = grid(base, seed=range(500))
    folders = plan(tmp_path, many)
    for folder, spec in zip(folders, many, strict=True):
        folder.mkdir()
        (folder / runs.RUN_JSON).write_text(run_folders.record(spec, status="ok").model_dump_json(by_alias=True))
    browser = RunBrowser(tmp_path)
    took = []
    for _ in range(3):
        begin_ = time.perf_counter()
        browser.refresh()
        took.append(time.perf_counter() - begin_)
    print(f"refresh of 500 runs: {min(took) * 1000:.0f} ms")
    assert min(took) < 0.5
