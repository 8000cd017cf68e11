"""The notebook `caches` in JupyterLab: it runs, shows plans, players and what is inside the model, and looks right."""

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


@pytest.fixture(scope="module")
def notebook(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """The notebook after a run of all cells, saved; its kernel lives."""
    lab = Lab(context.new_page(), server)
    lab.open(repository / "notebooks" / "caches.ipynb")
    lab.run_all(300)
    lab.until("() => document.querySelectorAll('[data-ready=true]').length === 2", 60)
    lab.save()
    yield lab
    lab.close()
    lab.page.close()


def test_runs_and_plays(notebook: Lab) -> None:
    notebook.assert_no_errors()
    found = notebook.wait_videos(5)
    assert [round(v["duration"] * 16) for v in found] == [17] * 5  # a clip, "red", "circle", two comparisons
    assert all(plays(video) for video in notebook.videos().all())
    assert notebook.file.stat().st_size < 3_000_000


def test_nothing_shouts(notebook: Lab) -> None:
    """No warning, and nothing else on stderr."""
    streams = [o for cell in notebook.cells() for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    assert [o["text"] for o in streams if o["name"] == "stderr"] == []


def test_figures_are_pictures(notebook: Lab) -> None:
    """A cell that ends in a figure shows it, whether or not pyplot was there."""
    ends = ("show_plan(", ".figure(", ".heat_map(", ".plot(")
    cells = [i for i, c in enumerate(notebook.cells()) if any(word in c["source"].splitlines()[-1] for word in ends)]
    assert len(cells) == 9
    assert all(notebook.output(i).locator("img:visible").count() == 1 for i in cells)


def test_comparisons_play_in_step(notebook: Lab) -> None:
    """Four runs under short labels, then two that a given label tells apart."""
    cells = [i for i, cell in enumerate(notebook.cells()) if "wanlab.compare(" in cell["source"]]
    assert [notebook.output(i).locator(".wl-figure canvas").count() for i in cells] == [4, 2]
    assert "cache magcache" in notebook.text(cells[0])
    assert "paper_sqrt" not in notebook.text(cells[0])
    assert "no prompt from the middle on" in notebook.text(cells[1])


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_is_cut_or_pale(notebook: Lab, screenshot: Screenshots, theme: str, width: int) -> None:
    notebook.theme(theme)
    notebook.resize(width)
    notebook.freeze(0.5)
    screenshot(f"caches-{theme}-{width}", notebook)
    assert layout.problems(notebook.shown) == []
    assert layout.pale(notebook.shown) == []
