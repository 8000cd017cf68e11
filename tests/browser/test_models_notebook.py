"""The notebook `models` in JupyterLab: it runs, shows the catalogue and plays clips of every mode, and looks right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import layout
from tests.browser.lab import THEMES, WIDTHS, Lab, plays
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server
from wanlab.catalog import catalogue

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def models(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """The notebook after a run of all cells, saved; its kernel lives."""
    lab = Lab(context.new_page(), server)
    lab.open(repository / "notebooks" / "models.ipynb")
    lab.run_all(300)
    lab.until("() => document.querySelectorAll('[data-ready=true]').length === 2", 60)
    lab.save()
    yield lab
    lab.close()
    lab.page.close()


def test_runs_and_plays(models: Lab) -> None:
    models.assert_no_errors()
    found = models.wait_videos(5)
    lengths = sorted(round(video["duration"] * 16) for video in found)
    assert lengths == [17, 33, 33, 33, 33]  # guidance; text, picture, video with a mask, video at three strengths
    assert all(plays(video) for video in models.videos().all())
    assert models.file.stat().st_size < 3_000_000


def test_the_catalogue_is_there(models: Lab) -> None:
    rows = catalogue()
    runs, others = ([row.id for row in rows if bool(row.missing) is lacks] for lacks in (False, True))
    shown = models.text(models.index("models = wanlab.catalogue()"))
    assert f"{len(runs)} of {len(rows)} models run." in shown
    assert set(runs) <= set(shown.split())
    listed = models.text(models.index("lacking = {}"))
    assert f"{len(others)} do not run yet." in listed
    assert all(name in listed for name in others)


def test_every_mode_shows_frames(models: Lab) -> None:
    strips = [i for i, cell in enumerate(models.cells()) if ".strip(6)" in cell["source"]]
    assert len(strips) == 9
    assert [models.output(i).locator("img").count() for i in strips] == [6] * 9


def test_comparisons_play_in_step(models: Lab) -> None:
    """Three strengths, then five rules of guidance."""
    cells = [i for i, cell in enumerate(models.cells()) if "wanlab.compare(" in cell["source"]]
    assert [models.output(i).locator(".wl-figure canvas").count() for i in cells] == [3, 5]
    assert [models.output(i).locator("table").count() for i in cells] == [1, 1]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_is_cut_or_pale(models: Lab, screenshot: Screenshots, theme: str, width: int) -> None:
    models.theme(theme)
    models.resize(width)
    models.freeze(1.0)
    screenshot(f"models-{theme}-{width}", models)
    assert layout.problems(models.shown) == []
    assert layout.pale(models.shown) == []
