"""A report opened from disk in Chromium: it sorts, filters, plots and plays in step, without a network."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wanlab
from wanlab import runs, video
from wanlab.spec import GenerationSpec

pytestmark = pytest.mark.browser

FPS, NUM_FRAMES = 16, 48
HOSTILE = "\"></a><script>window.broken=1</script><img src=x onerror='window.broken=1'><svg onload=window.broken=1>"
SECONDS = (9.0, 10.0, 2.5, 3.0, 1.0)
SCORES = (0.9, 0.91, 0.7, 0.6, 0.2)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> wanlab.reports.Report:
    """Five clips, whose colour says which frame it is, the last one shorter; a run that failed; one that waits."""
    out = tmp_path_factory.mktemp("a report #1 & %20")
    base = GenerationSpec(model="wan_tiny").with_(prompt="a kite", fps=FPS)
    points = []
    for i in range(7):
        given = {"prompt": HOSTILE if i == 4 else "a kite", "guidance_scale": 1.0 + i % 2, "seed": i // 2}
        spec, name = base.with_(**given), f"run {i} #%41?"
        points.append({"id": spec.id, "settings": given, "spec": spec.to_dict(), "folder": name})
        if i == 6:
            continue
        record = runs.RunRecord(id=f"r{i}", status="ok", spec=spec.to_dict(), env={"gpu": HOSTILE})
        if i == 5:
            error = {"type": "OutOfMemoryError", "message": HOSTILE}
            runs.write_run(out / name, record.with_(status="oom", error=error), {"log.txt": b"no memory"})
            continue
        shown = np.arange(NUM_FRAMES if i != 4 else 16)
        frames = np.broadcast_to((shown * 5)[:, None, None, None], (len(shown), 96, 96, 3)).astype(np.uint8)
        record = record.with_(timings={"total": SECONDS[i]}, metrics={"score": SCORES[i], HOSTILE: 1.0})
        runs.write_run(out / name, record, {"video.mp4": lambda path, f=frames: video.write_video(path, f, FPS)})
    names = ["prompt", "guidance_scale", "seed"]
    runs.write_sweep(out, runs.SweepFile(title=HOSTILE, base=base.to_dict(), names=names, points=points))
    return wanlab.report(out)


@pytest.fixture
def page(chromium: Any, report: wanlab.reports.Report) -> Iterator[Any]:
    yield from opened(chromium, report.path)


@pytest.fixture
def plain_page(chromium: Any, report: wanlab.reports.Report) -> Iterator[Any]:
    """Without scripts."""
    yield from opened(chromium, report.path, java_script_enabled=False)


def opened(chromium: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page from disk; asserts at the end that nothing broke, and that nothing but files was asked for."""
    context = chromium.new_context(viewport={"width": 1300, "height": 1000}, **options)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(path.as_uri())
    yield page
    assert not errors
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert all(url.startswith(("data:", path.parent.as_uri())) for url in asked)
    if options.get("java_script_enabled", True):
        assert page.evaluate("window.broken") is None
    context.close()


def wait(page: Any, condition: str) -> None:
    """Until a condition holds; looked at before each picture. The page's policy refuses playwright's own way (eval)."""
    page.evaluate(f"""() => new Promise((resolve, reject) => {{
        const look = () => ({condition}) ? resolve() : requestAnimationFrame(look);
        setTimeout(() => reject(new Error({json.dumps(condition)})), 20_000);
        look();
    }})""")


def numbers(page: Any) -> list[int]:
    """Numbers of the runs in the table, from the top, as far as they are shown."""
    return [int(t) for t in page.locator("#runs tbody tr:visible td:nth-child(2)").all_inner_texts()]


def test_it_sorts_numbers_as_numbers_and_the_missing_last(page: Any) -> None:
    head = page.locator("#runs th", has_text="total")
    assert numbers(page) == [1, 2, 3, 4, 5, 6, 7]
    head.click()
    assert numbers(page) == [5, 3, 4, 1, 2, 6, 7]
    assert head.get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    assert numbers(page) == [2, 1, 4, 3, 5, 6, 7]
    page.locator("#runs th", has_text="#").first.click()
    assert numbers(page) == [1, 2, 3, 4, 5, 6, 7]


def test_it_filters_table_cards_and_plot(page: Any) -> None:
    page.get_by_label("Filter").fill("KITE nothing")
    assert numbers(page) == []
    page.get_by_label("Filter").fill("kite")
    assert numbers(page) == [1, 2, 3, 4, 6, 7]
    page.get_by_label("Only guidance_scale", exact=True).select_option(label="1.0")
    assert numbers(page) == [1, 3, 7]
    assert page.locator("article:visible").count() == 3
    assert page.locator("#plot-svg a").count() == 2
    page.get_by_text("3 of 7 runs").wait_for()
    page.get_by_label("Only guidance_scale", exact=True).select_option(label="all")
    page.get_by_label("Filter").fill("")
    assert numbers(page) == [1, 2, 3, 4, 5, 6, 7]
    assert page.locator("#plot-svg a").count() == 5


def test_columns_can_be_hidden(page: Any) -> None:
    assert page.locator("#runs th", has_text="score").is_visible()
    page.get_by_text("Columns").click()
    page.locator(".chooser").get_by_label("score").uncheck()
    assert not page.locator("#runs th", has_text="score").is_visible()
    assert page.locator("#runs th", has_text="total").is_visible()


def test_the_plot_draws_the_front_of_any_two_numbers(page: Any) -> None:
    def best() -> set[int]:
        points = page.locator("#plot-svg a:has(.best)")
        return {int(point.get_attribute("data-row")) + 1 for point in points.all()}

    assert best() == {1, 2, 3, 5}
    page.get_by_role("button", name="less is better").click()
    assert best() == {2}
    page.get_by_label("Across").select_option(label="seed")
    page.get_by_label("Up").select_option(label="total (s)")
    assert "total (s) against seed" in page.locator("#plot-svg").get_attribute("aria-label")
    title = page.locator("#plot-svg a[data-row='2'] title").text_content()
    assert title == "prompt a kite, guidance_scale 1.0, seed 1: seed 1 , total 2.50 s".replace("a kite", "'a kite'")
    page.locator("#plot-svg a[data-row='2']").click()
    assert page.evaluate("location.hash") == "#run-3"


TIMES = "[...document.querySelectorAll('dialog video')].map(video => video.currentTime)"


def open_players(page: Any, *numbers_: int) -> None:
    for number in numbers_:
        page.locator(f"#runs tr[data-row='{number - 1}'] input").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    wait(page, "[...document.querySelectorAll('dialog video')].every(video => video.readyState >= 2)")


def test_ticked_clips_play_together(page: Any) -> None:
    """While playing, over the loop, after pausing, stepping and seeking: never more than a frame apart."""
    open_players(page, 1, 3, 4)
    for moment in (0.5, 1.5, 2.5):
        wait(page, f"document.querySelector('dialog video').currentTime > {moment}")
        times = page.evaluate(TIMES)
        assert max(times) - min(times) < 1 / FPS, times
    wait(page, "document.querySelector('dialog video').currentTime < 0.5")  # it began again
    wait(page, "document.querySelector('dialog video').currentTime > 1")
    times = page.evaluate(TIMES)
    assert max(times) - min(times) < 1 / FPS, times
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Play").wait_for()
    page.get_by_label("Frame", exact=True).fill("20")
    wait(page, f"{TIMES}.every(time => Math.floor(time * {FPS}) === 20)")
    page.get_by_role("button", name="One frame on").click()
    wait(page, f"{TIMES}.every(time => Math.floor(time * {FPS}) === 21)")
    page.get_by_text(f"frame 22 / {NUM_FRAMES}").wait_for()
    assert frames_on_screen(page) == [21, 21, 21]
    page.get_by_role("button", name="One frame back").click()
    wait(page, f"{TIMES}.every(time => Math.floor(time * {FPS}) === 20)")
    assert frames_on_screen(page) == [20, 20, 20]
    page.keyboard.press("Escape")
    assert page.locator("dialog").count() == 0
    assert page.locator("#dock").is_visible()


def frames_on_screen(page: Any) -> list[int]:
    """The frame that each player shows, by its brightness. A page from disk may not read its videos: from pictures."""
    found = []
    for player in page.locator("dialog video").all():
        picture = np.asarray(Image.open(io.BytesIO(player.screenshot())).convert("L"))
        found.append(round(int(picture[picture.shape[0] // 2, picture.shape[1] // 2]) / 5))
    return found


def test_a_shorter_clip_holds_its_last_frame(page: Any) -> None:
    open_players(page, 2, 5)
    wait(page, "document.querySelector('dialog video').currentTime > 1.6")
    first, second = page.evaluate(TIMES)
    assert first > 1.6
    assert second == pytest.approx(1.0, abs=1 / FPS)
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Speed").select_option(label="0.5×")
    page.get_by_text("Repeat").click()
    page.get_by_label("Frame", exact=True).fill(str(NUM_FRAMES - 3))
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Play").wait_for()  # it stopped at the end
    page.get_by_text(f"frame {NUM_FRAMES} / {NUM_FRAMES}").wait_for()


def test_a_run_without_a_clip_has_no_box_and_others_follow_each_other(page: Any) -> None:
    assert page.locator("#runs tr[data-row='5'] input").count() == 0
    page.locator("article[data-row='1'] input").check()
    assert page.locator("#runs tr[data-row='1'] input").is_checked()
    page.get_by_role("button", name="Clear").click()
    assert not page.locator("article[data-row='1'] input").is_checked()
    assert not page.locator("#dock").is_visible()


def test_a_page_that_was_moved_alone_says_so(chromium: Any, report: Any, tmp_path: Path) -> None:
    """Its table and posters are still there."""
    page = chromium.new_page()
    page.goto(report.path.as_uri())
    wait(page, "[...document.querySelectorAll('article > video')].every(video => video.readyState >= 1)")
    assert not page.locator("header .error").is_visible()
    page.goto(shutil.copy(report.path, tmp_path / "alone.html").as_uri())
    page.get_by_text("5 of 5 clips cannot be loaded. The page finds them").wait_for()
    assert numbers(page) == [1, 2, 3, 4, 5, 6, 7]
    page.close()


def test_without_scripts_it_has_the_table_the_picture_and_the_clips(plain_page: Any, screenshot: Any) -> None:
    page = plain_page
    assert page.locator("#runs tbody tr").count() == 7
    assert page.locator("#runs").is_visible()
    assert page.locator("#plot-svg circle.point").count() == 5
    assert page.locator("#plot-svg").is_visible()
    assert page.locator("video").count() == 5
    for shown in page.locator("video").all():
        shown.scroll_into_view_if_needed()
        assert shown.is_visible()
        assert shown.bounding_box()["width"] > 100
    assert page.get_by_text("5 of 7 runs ok · 1 oom · 1 pending").is_visible()
    assert page.locator(".error", has_text="OutOfMemoryError").is_visible()
    assert page.locator("input, select, button, #dock").count() == 0
    screenshot("report-plain", page)


@pytest.mark.parametrize("width", [1300, 800, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window(chromium: Any, report: Any, screenshot: Any, width: int, scheme: str) -> None:
    for page in opened(chromium, report.path, color_scheme=scheme):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wait(page, "[...document.querySelectorAll('video')].every(video => video.readyState >= 1)")
        screenshot(f"report-{scheme}-{width}", page)
