"""The quickstart notebook in JupyterLab."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.lab import Lab, plays, seek

pytestmark = pytest.mark.browser


def test_runs(lab: Lab, repository: Path) -> None:
    import time

    t = time.time()
    lab.open(repository / "notebooks" / "quickstart.ipynb")
    print("open", time.time() - t)
    t = time.time()
    lab.run_all()
    print("run", time.time() - t)
    t = time.time()
    print(lab.wait_videos(2))
    print(lab.errors)
    lab.page.screenshot(path="/tmp/br/q.png")
    lab.panel.screenshot(path="/tmp/br/panel.png")
    assert plays(lab.videos().nth(0))
    print(seek(lab.videos().nth(0), 1.0))
    print(lab.save().stat().st_size)
    lab.assert_no_errors()
    print("rest", time.time() - t)
    t = time.time()
