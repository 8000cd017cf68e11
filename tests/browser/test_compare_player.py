"""The live player of a comparison in a real JupyterLab: clips in step, three ways of looking, a notebook that stays.

Each frame of each clip says in its colour which clip and which frame it is, so that what is on the screen can be read.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
SCREENS = os.environ.get("WANLAB_SCREENS")  # a folder for pictures of what the tests saw

CLIPS = """
import numpy as np
import wanlab
from wanlab.result import Result
from wanlab.runs import RunRecord
from wanlab.spec import GenerationSpec

def clip(number, num_frames=33, height=96, width=96, **changes):
    t = np.arange(num_frames)
    colour = np.stack([t * 7, 255 - t * 7, np.full_like(t, 40 + 50 * number)], -1).astype(np.uint8)
    frames = np.broadcast_to(colour[:, None, None], (num_frames, height, width, 3)).copy()
    spec = GenerationSpec(model="wan_tiny").with_(prompt="a kite <img src=x onerror=window.broken=1>", **changes)
    return Result(frames, None, spec, RunRecord(id="r", status="ok", spec=spec.to_dict()), 16.0)

"""
TWO = CLIPS + "comparison = wanlab.compare(clip(0), clip(1, guidance_scale=1.0))\ncomparison"
FOUR = CLIPS + (
    "wanlab.compare(clip(0), clip(1, guidance_scale=1.0), clip(2, num_steps=4),"
    " clip(3, num_frames=9, prompt='<b>short</b>'))"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """(address, token, folder of notebooks) of a JupyterLab of its own."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    home = folder / "home"
    home.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home), "JUPYTER_PREFER_ENV_PATH": "1"}
    options = f"--ip=127.0.0.1 --port={port} --port-retries=0 --IdentityProvider.token={token} --no-browser --allow-root"
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={folder}"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(f"{address}/api/status?token={token}"):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "lab.log").read_text()[-3000:]
            time.sleep(0.2)
        yield address, token, folder
    finally:
        server.terminate()
        server.wait(20)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def open_notebook(page: Any, lab: tuple[str, str, Path], name: str) -> None:
    address, token, _ = lab
    page.goto(f"{address}/lab/workspaces/{secrets.token_hex(4)}/tree/{name}?token={token}")
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.wait_for()


def run_notebook(page: Any, lab: tuple[str, str, Path], source: str) -> str:
    """Write a notebook of one cell, open it, run it and wait for the player; returns its name."""
    name = f"{secrets.token_hex(4)}.ipynb"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (lab[2] / name).write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    open_notebook(page, lab, name)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Control+Enter")
    player(page).wait_for()
    return name


def player(page: Any) -> Any:
    return page.locator('.wl-player[data-ready="true"]')


def screen(page: Any, name: str) -> None:
    if SCREENS:
        page.screenshot(path=f"{SCREENS}/{name}.png")


READ = """() => [...document.querySelectorAll('.wl-player .wl-figure canvas')].map(canvas => {
    const [r, g, b] = canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
    return {r, g, b, frame: Number(canvas.dataset.frame), index: Number(canvas.dataset.index)};
})"""


def frames_on_screen(page: Any, clips: int, lengths: dict[int, int] | None = None) -> int:
    """The frame that every canvas shows, by its colour; asserts that all show the same and say so."""
    seen = page.evaluate(READ)
    assert len(seen) == clips
    (number,) = {canvas["frame"] for canvas in seen}
    for canvas in seen:
        shown = min(number, (lengths or {}).get(canvas["index"], 33) - 1)
        assert round(canvas["r"] / 7) == round((255 - canvas["g"]) / 7) == shown, seen
        assert round((canvas["b"] - 40) / 50) == canvas["index"], seen
    assert player(page).get_attribute("data-frame") == str(number)
    return number


def wait_for_frame(page: Any, number: int) -> None:
    page.wait_for_selector(f'.wl-player[data-frame="{number}"]')


def test_clips_are_in_step_while_playing_and_after_seeking(page: Any, lab: tuple[str, str, Path]) -> None:
    run_notebook(page, lab, FOUR)
    lengths = {3: 9}
    wait_for_frame(page, 0)
    assert frames_on_screen(page, 4, lengths) == 0
    page.get_by_role("button", name="Play").click()
    seen = set()
    for number in range(4, 33, 4):  # while it plays
        page.wait_for_function(f"Number(document.querySelector('.wl-player').dataset.frame) >= {number}")
        seen.add(frames_on_screen(page, 4, lengths))
    assert len(seen) > 3
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Play").wait_for()
    frames_on_screen(page, 4, lengths)
    bar = page.get_by_role("slider", name="Frame")
    box = bar.bounding_box()
    for number in (20, 3, 32, 0, 17):
        page.mouse.click(box["x"] + box["width"] * number / 32, box["y"] + box["height"] - 6)
        wait_for_frame(page, number)
        assert frames_on_screen(page, 4, lengths) == number
    for key, number in (("ArrowRight", 18), ("ArrowLeft", 17), ("End", 32), ("Home", 0)):
        page.keyboard.press(key)
        wait_for_frame(page, number)
        assert frames_on_screen(page, 4, lengths) == number
    assert page.locator(".wl-frame").inner_text() == "1 / 33"
    assert page.evaluate("window.broken") is None


def test_without_repeat_it_stops_at_the_last_frame_and_starts_again(page: Any, lab: tuple[str, str, Path]) -> None:
    run_notebook(page, lab, TWO)
    page.get_by_role("button", name="Repeat").click()
    page.get_by_label("Speed").select_option(label="2×")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Play").click()
    wait_for_frame(page, 32)
    page.get_by_role("button", name="Play").wait_for()
    assert frames_on_screen(page, 2) == 32
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(document.querySelector('.wl-player').dataset.frame) < 30")
