"""The live player of a comparison in a real JupyterLab: clips in step, three ways of looking, a notebook that stays.

Each frame of each clip says in its colour which clip and which frame it is, so that what is on the screen can be read.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.lab import Lab

pytestmark = pytest.mark.browser

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


@pytest.fixture
def page(lab: Lab) -> Any:
    lab.page.set_viewport_size({"width": 1300, "height": 1000})
    return lab.page


def run_notebook(lab: Lab, *sources: str) -> None:
    """Open a new notebook of these cells, run it and wait for the player, not for the cells' end."""
    lab.new(*sources)
    lab.page.evaluate(RUN_ALL)
    player(lab.page).wait_for()


KERNEL = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
RUN_ALL = """async () => {
    const {sessionContext} = window.jupyterapp.shell.currentWidget;
    await sessionContext.ready;
    await sessionContext.session.kernel.info;
    window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""


def player(page: Any) -> Any:
    return page.locator('.wl-player[data-ready="true"]')


READ = """() => [...document.querySelectorAll('.wl-player .wl-figure canvas')].map(canvas => {
    const [r, g, b] = canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
    const told = Number(canvas.closest('.wl-player').dataset.frame);
    return {r, g, b, told, frame: Number(canvas.dataset.frame), index: Number(canvas.dataset.index)};
})"""


def frames_on_screen(page: Any, clips: int, lengths: dict[int, int] | None = None) -> int:
    """The frame that every canvas shows, by its colour; asserts that all show the same and say so."""
    seen = page.evaluate(READ)
    assert len(seen) == clips
    (number,) = {canvas["frame"] for canvas in seen} | {canvas["told"] for canvas in seen}  # read at one moment
    for canvas in seen:
        shown = min(number, (lengths or {}).get(canvas["index"], 33) - 1)
        assert round(canvas["r"] / 7) == round((255 - canvas["g"]) / 7) == shown, seen
        assert round((canvas["b"] - 40) / 50) == canvas["index"], seen
    return number


def wait_for_frame(page: Any, number: int) -> None:
    page.wait_for_selector(f'.wl-player[data-frame="{number}"]')


def test_clips_are_in_step_while_playing_and_after_seeking(page: Any, lab: Lab) -> None:
    run_notebook(lab, FOUR)
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


def test_it_plays_while_the_kernel_works_on_the_next_cell(page: Any, lab: Lab) -> None:
    run_notebook(lab, TWO, "import threading\nthreading.Event().wait(20)")
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


def test_the_timeline_tells_the_measures_of_the_frame_under_the_cursor(page: Any, lab: Lab) -> None:
    run_notebook(lab, TWO)
    page.get_by_text("PSNR 18.9 dB", exact=True).wait_for()
    page.get_by_text("mean difference 16.67, largest 50", exact=True).wait_for()
    box = page.get_by_role("slider", name="Frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 20 / 32, box["y"] + 20)
    page.get_by_text("frame 21: PSNR 18.9 dB", exact=True).wait_for()
    assert player(page).get_attribute("data-frame") == "0"


def test_wipe_difference_and_zoom(page: Any, lab: Lab) -> None:
    run_notebook(lab, FOUR)
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


def test_zoom_shows_the_same_part_of_every_clip(page: Any, lab: Lab) -> None:
    run_notebook(lab, CORNERS)
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


def test_the_pixel_under_the_cursor_is_about_right_at_once_and_exact_from_the_kernel(page: Any, lab: Lab) -> None:
    run_notebook(lab, TWO)
    page.locator("canvas[data-index='0']").hover(position={"x": 12, "y": 14})
    page.get_by_text("RGB 0 255 40", exact=True).wait_for()
    page.get_by_text("RGB 0 255 90  Δ 0 0 +50", exact=True).wait_for()
    box = page.locator("canvas[data-index='0']").bounding_box()
    x, y = (int(v * 96 / box["width"]) for v in (12, 14))
    assert page.locator(".wl-place").inner_text() == f"x {x}, y {y}"
    page.keyboard.press("Escape")
    page.mouse.move(0, 0)
    page.get_by_text("RGB 0 255 40", exact=True).wait_for(state="detached")


def test_the_notebook_keeps_a_video_and_the_table(page: Any, lab: Lab) -> None:
    """While the player lives the plain video is hidden; the saved notebook holds it and the table, and little more."""
    run_notebook(lab, TWO)
    static = ".wanlab-static video"
    assert not page.locator(static).is_visible()
    page.locator(".jp-OutputArea table").wait_for()
    file = lab.save()
    kinds = [sorted(output["data"]) for output in json.loads(file.read_text())["cells"][0]["outputs"]]
    view = "application/vnd.jupyter.widget-view+json"
    assert kinds == [["text/html", "text/plain"], [view, "text/plain"], ["text/html", "text/plain"]]
    assert file.stat().st_size < 400_000
    lab.open(file)  # in a fresh page: the kernel still runs, so the player comes back from it
    player(page).wait_for()
    assert not page.locator(static).is_visible()
    page.evaluate(f"{KERNEL}.requestExecute({{code: 'comparison.player.close()'}}).done")
    page.locator(static).wait_for()  # the player is gone


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("is_trusted", [True, False])
def test_reopened_it_is_a_video_and_a_table(page: Any, lab: Lab, kernel: bool, is_trusted: bool) -> None:
    """Without the kernel that made it, in a notebook of one's own and in one that was mailed: no line of an error."""
    run_notebook(lab, TWO)
    page.locator(".jp-OutputArea table").wait_for()
    file = lab.save()
    lab.close()
    if not is_trusted:
        saved = json.loads(file.read_text())
        saved["cells"][0]["source"] += "  # another file than the one that this server signed"
        file = file.with_name(f"mailed-{file.name}")
        file.write_text(json.dumps(saved))
    lab.open(file, kernel=kernel)
    assert lab.is_trusted() == is_trusted
    [video] = lab.wait_videos(1)
    assert video["readyState"] == 4
    table = page.locator(".jp-OutputArea table")
    assert table.count() == 1
    assert table.is_visible()
    assert not page.get_by_text("Error displaying widget").is_visible()
    assert not page.get_by_text("Loading widget").is_visible()
    assert page.evaluate("window.broken") is None


def test_without_repeat_it_stops_at_the_last_frame_and_starts_again(page: Any, lab: Lab) -> None:
    run_notebook(lab, TWO)
    page.get_by_role("button", name="Repeat").click()
    page.get_by_label("Speed").select_option(label="2×")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Play").click()
    wait_for_frame(page, 32)
    page.get_by_role("button", name="Play").wait_for()
    assert frames_on_screen(page, 2) == 32
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(document.querySelector('.wl-player').dataset.frame) < 30")
