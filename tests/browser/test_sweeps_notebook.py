"""The notebook `sweeps` in JupyterLab: it runs, tells how far it is, fills its panels, and looks right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import layout
from tests.browser.lab import THEMES, WIDTHS, Lab, plays
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

RUNS = 14  # ten of the first grid, one more, three that were interrupted


@pytest.fixture(scope="module")
def notebook(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """The notebook after a run of all cells, saved; its kernel lives."""
    lab = Lab(context.new_page(), server)
    lab.open(repository / "notebooks" / "sweeps.ipynb")
    lab.run_all(300)
    lab.until("n => document.querySelector('.wr-table')?.dataset.rows === String(n)", 60, RUNS)
    lab.save()
    yield lab
    lab.close()
    lab.page.close()


def test_runs_and_plays(notebook: Lab) -> None:
    notebook.assert_no_errors()
    index = notebook.index("wanlab.compare(")
    assert notebook.output(index).locator(".wl-figure canvas").count() == 4
    for label in ("cache none", "threshold 0.06", "threshold 0.24"):
        assert label in notebook.text(index)
    notebook.wait_videos(1)
    assert all(plays(video) for video in notebook.videos().all())
    assert notebook.file.stat().st_size < 3_000_000


def test_nothing_shouts(notebook: Lab) -> None:
    """No warning, and nothing else on stderr: how far a sweep is stands in one line of the output."""
    streams = [o for cell in notebook.cells() for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    assert [o["text"] for o in streams if o["name"] == "stderr"] == []


def test_a_sweep_leaves_one_line_that_says_how_it_ended(notebook: Lab) -> None:
    told = notebook.text(notebook.index("results = wanlab.run_sweep(grid, out, model=model)\nresults"))
    assert "10/10 runs · sharing saved 28% of the forwards · ended after" in told
    assert told.count("/10 runs") == 1


def test_panels_are_filled(notebook: Lab) -> None:
    browser = notebook.output(notebook.index("browser = RunBrowser"))
    assert browser.locator(".wr-table tbody tr").count() == RUNS
    panel = notebook.output(notebook.index("panel = AblationPanel"))
    panel.get_by_text("4 runs").first.wait_for()
    panel.get_by_text("forwards").first.wait_for()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_is_cut_or_pale(notebook: Lab, screenshot: Screenshots, theme: str, width: int) -> None:
    notebook.theme(theme)
    notebook.resize(width)
    notebook.freeze(0.3)
    screenshot(f"sweeps-{theme}-{width}", notebook)
    assert layout.problems(notebook.shown) == []
    assert layout.pale(notebook.shown) == []
