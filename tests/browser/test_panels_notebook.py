"""The notebook `panels` in JupyterLab: it runs, its widgets answer, it looks right, and it survives being reopened."""

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
def panels(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """The notebook after a run of all cells, saved; its kernel lives."""
    lab = Lab(context.new_page(), server)
    lab.open(repository / "notebooks" / "panels.ipynb")
    lab.run_all()
    lab.until("() => document.querySelectorAll('[data-ready=true]').length === 2", 60)
    lab.save()
    yield lab
    lab.close()
    lab.page.close()


def test_runs(panels: Lab) -> None:
    panels.assert_no_errors()
    panels.wait_videos(1)
    assert panels.file.stat().st_size < 1_000_000
    assert (panels.file.parent / "runs" / "panels" / "side_by_side.mp4").stat().st_size > 10_000


def test_picture_of_the_readme(panels: Lab, screenshot: Screenshots) -> None:
    screenshot("compare", panels.cell(panels.index("comparison = wanlab.compare")), readme=True)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_is_cut_or_pale(panels: Lab, screenshot: Screenshots, theme: str, width: int) -> None:
    panels.theme(theme)
    panels.resize(width)
    panels.freeze(1.0)
    screenshot(f"panels-{theme}-{width}", panels)
    assert layout.problems(panels.shown) == []
    assert layout.pale(panels.shown) == []


def test_reopened_without_a_kernel(panels: Lab, lab: Lab, screenshot: Screenshots) -> None:
    """Clips and comparisons are still there and play, as plain HTML."""
    copy = panels.file.with_name("reopened-panels.ipynb")
    copy.write_bytes(panels.file.read_bytes())
    lab.open(copy, kernel=False)
    found = lab.wait_videos(3)
    assert len(found) >= 3
    assert all(plays(video) for video in lab.videos().all())
    screenshot("panels-reopened", lab)
