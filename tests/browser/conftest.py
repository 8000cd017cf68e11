"""One server and one Chromium for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import server as servers
from tests.browser.lab import Lab
from tests.browser.screenshots import Screenshots

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The machine's Chromium, running; skips only where it or playwright is missing."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(_PROGRAMS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(chromium: Any, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[servers.Server]:
    started = servers.start(tmp_path_factory.mktemp("jupyter"), repository)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def context(chromium: Any) -> Iterator[Any]:
    """Pages share a cache, so that only the first loads all of Lab. Pictures for the README have twice the pixels."""
    scale = 2 if _readme_folder() else 1
    made = chromium.new_context(viewport={"width": 1300, "height": 900}, device_scale_factor=scale)
    yield made
    made.close()


@pytest.fixture(scope="session")
def screenshot(tmp_path_factory: pytest.TempPathFactory) -> Screenshots:
    """`screenshot(name, what, readme=False)` writes a PNG of an element, a page or the whole notebook of a Lab."""
    return Screenshots(tmp_path_factory.getbasetemp() / "screenshots", _readme_folder())


def _readme_folder() -> Path | None:
    """Where the README's pictures go; None unless WANLAB_SCREENSHOTS names it."""
    return Path(os.environ["WANLAB_SCREENSHOTS"]) if os.environ.get("WANLAB_SCREENSHOTS") else None


@pytest.fixture
def lab(context: Any, server: servers.Server) -> Iterator[Lab]:
    """An empty page of Lab in the light theme, 1300 pixels wide."""
    lab = Lab(context.new_page(), server)
    yield lab
    lab.close()
    lab.page.close()
