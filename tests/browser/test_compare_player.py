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
    prompt = {"prompt": "a kite <img src=x onerror=window.broken=1>"}
    spec = GenerationSpec(model="wan_tiny").with_(**(prompt | changes))
    return Result(frames, None, spec, RunRecord(id="r", status="ok", spec=spec.to_dict()), 16.0)

"""
TWO = CLIPS + "comparison = wanlab.compare(clip(0), clip(1, guidance_scale=1.0))\ncomparison"
CORNERS = (
    CLIPS
    + """
def corner(**changes):
    made = clip(0, **changes)
    made.frames[:] = 0
    made.frames[:, :24, :24] = 255, 0, 0
    return made

wanlab.compare(corner(), corner(guidance_scale=1.0))
"""
)
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
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(home)
    configure(home, "notification", fetchNews="false", checkForUpdates=False)
    options = (
        f"--ip=127.0.0.1 --port={port} --port-retries=0 --IdentityProvider.token={token} --no-browser --allow-root"
    )
    options += " --LabApp.expose_app_in_browser=True"
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={folder}"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(f"{address}/api/status?token={token}"):
            has_failed = server.poll() is not None or time.monotonic() > deadline
            assert not has_failed, (folder / "lab.log").read_text()[-3000:]
            time.sleep(0.2)
        yield address, token, folder
    finally:
        server.terminate()
        server.wait(20)


def configure(home: Path, part: str, **settings: Any) -> None:
    """Write a settings file of JupyterLab's, as its settings editor does."""
    file = home / "@jupyterlab" / "apputils-extension" / f"{part}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))


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


def run_notebook(page: Any, lab: tuple[str, str, Path], *sources: str) -> str:
    """Write a notebook of these cells, open it, run it and wait for the player; returns its name."""
    name = f"{secrets.token_hex(4)}.ipynb"
    empty = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [empty | {"id": str(i), "source": source} for i, source in enumerate(sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (lab[2] / name).write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    open_notebook(page, lab, name)
    page.evaluate(RUN_ALL)
    player(page).wait_for()
    return name


KERNEL = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
RUN_ALL = """async () => {
    const {sessionContext} = window.jupyterapp.shell.currentWidget;
    await sessionContext.ready;
    await sessionContext.session.kernel.info;
    window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""


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
    page.locator("canvas[data-index='1']").click()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Play").wait_for()
    frames_on_screen(page, 4, lengths)
    assert page.evaluate("window.broken") is None


def test_it_plays_while_the_kernel_works_on_the_next_cell(page: Any, lab: tuple[str, str, Path]) -> None:
    run_notebook(page, lab, TWO, "import threading\nthreading.Event().wait(20)")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(document.querySelector('.wl-player').dataset.frame) > 3")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Play").wait_for()
    frames_on_screen(page, 2)
    page.locator("canvas[data-index='1']").hover()
    page.get_by_text("RGB ≈").first.wait_for()  # the kernel cannot say better now
    assert page.locator(".jp-InputPrompt").nth(1).inner_text() == "[*]:"
    page.evaluate("window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    page.get_by_text("RGB ≈").first.wait_for(state="detached")


def test_the_timeline_tells_the_measures_of_the_frame_under_the_cursor(page: Any, lab: tuple[str, str, Path]) -> None:
    run_notebook(page, lab, TWO)
    page.get_by_text("PSNR 18.9 dB", exact=True).wait_for()
    page.get_by_text("mean difference 16.67, largest 50", exact=True).wait_for()
    box = page.get_by_role("slider", name="Frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 20 / 32, box["y"] + 20)
    page.get_by_text("frame 21: PSNR 18.9 dB", exact=True).wait_for()
    assert player(page).get_attribute("data-frame") == "0"


def test_wipe_difference_and_zoom(page: Any, lab: tuple[str, str, Path]) -> None:
    run_notebook(page, lab, FOUR)
    page.get_by_role("button", name="Wipe").click()
    single = page.locator('canvas[data-index="single"]')
    pixel = """(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(
        Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data.slice(0, 3)]"""
    left, right = (single.evaluate(pixel, [x, 0.5]) for x in (0.25, 0.75))
    assert left == pytest.approx([0, 255, 40], abs=10)
    assert right == pytest.approx([0, 255, 90], abs=10)
    page.get_by_label("The clip that is compared with the first").select_option(index=1)
    assert single.evaluate(pixel, [0.75, 0.5]) == pytest.approx([0, 255, 140], abs=10)
    divider = page.get_by_role("slider", name="Divider between the two clips")
    box = single.bounding_box()
    grip = divider.bounding_box()
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 30, steps=4)
    page.mouse.up()
    assert single.evaluate(pixel, [0.75, 0.5]) == pytest.approx([0, 255, 40], abs=10)
    divider.press("Home")
    assert single.evaluate(pixel, [0.25, 0.5]) == pytest.approx([0, 255, 140], abs=10)
    assert player(page).get_attribute("data-frame") == "0"  # the divider's keys are its own

    page.get_by_role("button", name="Difference").click()
    page.get_by_label("How much the difference is amplified").select_option(label="gain ×1")
    # libyuv, which Chromium uses without a GPU, has 2.0 where BT.709 has 2.112 for blue
    assert single.evaluate(pixel, [0.5, 0.5]) == pytest.approx([0, 0, 100], abs=12)
    page.get_by_label("How much the difference is amplified").select_option(label="gain ×2")
    assert single.evaluate(pixel, [0.5, 0.5]) == pytest.approx([0, 0, 200], abs=24)
    assert page.get_by_label("The clip that is compared with the first").locator("option").nth(2).is_disabled()


def test_zoom_shows_the_same_part_of_every_clip(page: Any, lab: tuple[str, str, Path]) -> None:
    run_notebook(page, lab, CORNERS)
    page.locator("canvas[data-index='0']").hover(position={"x": 20, "y": 20})
    page.keyboard.down("Control")
    page.mouse.wheel(0, -4000)
    page.keyboard.up("Control")
    page.get_by_text("8×", exact=True).wait_for()
    middle = "canvas => [...canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data]"
    for index in (0, 1):
        assert page.locator(f"canvas[data-index='{index}']").evaluate(middle)[:3] == pytest.approx([255, 0, 0], abs=4)
    page.mouse.down()
    page.mouse.move(page.viewport_size["width"] / 2, 20, steps=3)
    page.mouse.up()
    page.get_by_text("8×", exact=True).click()
    for index in (0, 1):
        assert page.locator(f"canvas[data-index='{index}']").evaluate(middle)[:3] == pytest.approx([0, 0, 0], abs=4)


def test_the_pixel_under_the_cursor_is_about_right_at_once_and_exact_from_the_kernel(
    page: Any, lab: tuple[str, str, Path]
) -> None:
    run_notebook(page, lab, TWO)
    page.locator("canvas[data-index='0']").hover(position={"x": 12, "y": 14})
    page.get_by_text("RGB 0 255 40", exact=True).wait_for()
    page.get_by_text("RGB 0 255 90  Δ 0 0 +50", exact=True).wait_for()
    box = page.locator("canvas[data-index='0']").bounding_box()
    x, y = (int(v * 96 / box["width"]) for v in (12, 14))
    assert page.locator(".wl-place").inner_text() == f"x {x}, y {y}"
    page.keyboard.press("Escape")
    page.mouse.move(0, 0)
    page.get_by_text("RGB 0 255 40", exact=True).wait_for(state="detached")


def test_the_notebook_keeps_a_video_and_the_table(page: Any, browser: Any, lab: tuple[str, str, Path]) -> None:
    """While the player lives the plain video is hidden; reopened without a kernel it is there, with no error line."""
    name = run_notebook(page, lab, TWO)
    static = ".wanlab-static video"
    assert not page.locator(static).is_visible()
    page.locator(".jp-OutputArea table").wait_for()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    saved = json.loads((lab[2] / name).read_text())
    kinds = [sorted(output["data"]) for output in saved["cells"][0]["outputs"]]
    view = "application/vnd.jupyter.widget-view+json"
    assert kinds == [["text/html", "text/plain"], [view, "text/plain"], ["text/html", "text/plain"]]
    assert (lab[2] / name).stat().st_size < 400_000
    page.reload()  # the kernel still runs: the player comes back from it
    player(page).wait_for()
    assert not page.locator(static).is_visible()
    page.evaluate(f"{KERNEL}.requestExecute({{code: 'comparison.player.close()'}}).done")
    page.locator(static).wait_for()  # the player is gone
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    for is_trusted in (True, False):
        if not is_trusted:
            saved["cells"][0]["source"] += "  # another file than the one that this server signed"
            name = f"mailed-{name}"
            (lab[2] / name).write_text(json.dumps(saved))
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        other = context.new_page()
        open_notebook(other, lab, name)
        other.locator(static).wait_for()
        other.wait_for_function(f"document.querySelector('{static}').readyState === 4")
        assert other.locator(".jp-OutputArea table").count() == 1
        assert other.locator(".jp-OutputArea table").is_visible()
        error = other.get_by_text("Error displaying widget")
        if is_trusted:  # in others JupyterLab shows the view's text, which is empty
            error.wait_for(state="attached")
        other.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
        assert not error.is_visible()
        assert other.evaluate("window.broken") is None
        screen(other, "reopened" if is_trusted else "untrusted")
        context.close()


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
