"""The quickstart notebook in JupyterLab: it runs, plays, survives being reopened, runs nothing, and looks right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser import layout
from tests.browser.lab import THEMES, WIDTHS, Lab, frame_numbers, plays, seek
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

HOSTILE = '"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


@pytest.fixture(scope="module")
def quickstart(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """The notebook after a run of all cells, saved; its kernel lives."""
    lab = Lab(context.new_page(), server)
    lab.open(repository / "notebooks" / "quickstart.ipynb")
    lab.run_all()
    lab.save()
    yield lab
    lab.close()
    lab.page.close()


def nothing_ran(lab: Lab) -> bool:
    """Whether no script of an output ran, once all its pictures are loaded or have failed to."""
    lab.until("() => [...document.querySelectorAll('.jp-OutputArea-output img')].every(image => image.complete)")
    return bool(lab.page.evaluate("() => window.pwned === undefined"))


def test_runs_and_plays(quickstart: Lab) -> None:
    quickstart.assert_no_errors()
    found = quickstart.wait_videos(1)
    assert all(video["duration"] == pytest.approx(33 / 16, abs=0.1) for video in found)
    for video in quickstart.videos().all():
        assert plays(video)
        assert seek(video, 1.0) == pytest.approx(1.0, abs=0.07)
        assert seek(video, 0.25) == pytest.approx(0.25, abs=0.07)
    assert frame_numbers(quickstart.videos(), 16) == [4] * quickstart.videos().count()
    assert quickstart.file.stat().st_size < 5_000_000


def test_reopened_with_and_without_a_kernel(quickstart: Lab, lab: Lab) -> None:
    """The clip and the comparison play, and nothing says that something is missing."""
    copy = quickstart.file.with_name("reopened.ipynb")
    copy.write_bytes(quickstart.file.read_bytes())
    for kernel in (False, True):
        lab.open(copy, kernel=kernel)
        assert lab.has_kernel() == kernel
        lab.wait_videos(2)
        assert all(plays(video) for video in lab.videos().all())
        lab.assert_widgets_shown()


def test_an_untrusted_copy_plays_and_runs_nothing(quickstart: Lab, lab: Lab) -> None:
    notebook = nbformat.read(quickstart.file, as_version=4)
    data = {"text/html": HOSTILE, "text/plain": "hostile"}
    hostile = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)])
    notebook.cells.append(hostile)  # no signature of this server covers it
    copy = quickstart.file.with_name("mailed.ipynb")
    nbformat.write(notebook, copy)
    lab.open(copy, kernel=False)
    assert not lab.is_trusted()
    lab.wait_videos(2)
    assert all(plays(video) for video in lab.videos().all())
    assert nothing_ran(lab)


def test_a_prompt_with_html_runs_nothing(lab: Lab) -> None:
    lab.new(
        "import wanlab\nmodel = wanlab.load('wan_tiny')",
        f"spec = model.spec(prompt={HOSTILE!r}, num_steps=1, num_frames=5, height=48, width=48)\nspec",
        "clip = wanlab.generate(model, spec)\nclip",
        "wanlab.compare(clip, wanlab.generate(model, spec.with_(prompt=spec.text.prompt + ' again')))",
        "wanlab.submit(model, spec)",
        "clip.record",
    )
    lab.run_all()
    lab.assert_no_errors()
    lab.wait_videos(2)
    assert "onerror" in lab.text(2)
    assert nothing_ran(lab)
    lab.run(f"from IPython.display import HTML\nHTML({HOSTILE!r})")  # what a live notebook does run, the check sees
    lab.until("() => window.pwned === 1")
    assert not nothing_ran(lab)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_is_cut_or_pale(quickstart: Lab, screenshot: Screenshots, theme: str, width: int) -> None:
    quickstart.theme(theme)
    quickstart.resize(width)
    quickstart.freeze(1.0)
    screenshot(f"quickstart-{theme}-{width}", quickstart)
    assert layout.problems(quickstart.shown) == []
    assert layout.pale(quickstart.shown) == []
