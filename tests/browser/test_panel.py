"""GeneratePanel and ModelPicker in JupyterLab, used as a person would: typing, pressing, waiting, coming back."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import layout
from tests.browser.lab import Lab, plays
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.pwned=1">'
PROMPT = "a red circle moves right on a black background"
IMPORTS = "import wanlab\nfrom wanlab.widgets import GeneratePanel, ModelPicker"
PANEL = f"panel = GeneratePanel(model, prompt={PROMPT!r}, num_steps=6, num_frames=9)\npanel"
SLOW = "60"  # steps
_PREVIEW = ".wanlab-preview img, img.wanlab-preview"


@pytest.fixture(scope="module")
def session(context: Any, server: Server) -> Iterator[Lab]:
    """A notebook with a loaded model and a panel in its third cell."""
    lab = Lab(context.new_page(), server)
    lab.new(IMPORTS, "model = wanlab.load('wan_tiny')\nmodel", PANEL)
    lab.run_all()
    yield lab
    lab.close()
    lab.page.close()


def panel(lab: Lab) -> Any:
    return lab.panel.locator(".wanlab-panel").last


def press(lab: Lab, name: str) -> None:
    panel(lab).get_by_role("button", name=name).click()


def fill(lab: Lab, name: str, text: str) -> None:
    """Type into an input and leave it."""
    box = panel(lab).get_by_label(name, exact=True)
    box.fill(text)
    box.press("Tab")


def shows(lab: Lab, name: str, text: str) -> None:
    """Wait until an input shows this text."""
    box = panel(lab).get_by_label(name, exact=True)
    lab.until("([box, text]) => box.value === text", argument=[box.element_handle(), text])


def made(lab: Lab, seed: str) -> None:
    """Wait for the clip of this seed below the panel, and for the panel to be idle."""
    lab.panel.locator("figcaption", has_text=f"seed {seed} ").first.wait_for(timeout=60_000)
    panel(lab).get_by_role("button", name="Generate").wait_for()


def unfold(lab: Lab, group: str) -> None:
    panel(lab).locator(".jupyter-widget-Collapse-header:visible", has_text=re.compile(f"^{group}")).click()


def test_generate_shows_previews_and_a_clip(session: Lab, screenshot: Screenshots) -> None:
    """The preview changes while the clip is made; the clip plays, beside the panel; the next cell has it."""
    fill(session, "num_steps", SLOW)
    press(session, "Generate")
    session.until(f"() => document.querySelector('{_PREVIEW}')?.offsetWidth > 20", 30)
    first = panel(session).locator(_PREVIEW).get_attribute("src")
    session.until("([query, old]) => document.querySelector(query).src !== old", 30, [_PREVIEW, first])
    screenshot("panel", session.cell(2), readme=True)
    found = session.wait_videos(1, 60)
    assert found[0]["src"].startswith(session.server.url)  # a link beside the notebook, nothing embedded
    assert all(plays(video) for video in session.videos().all())
    panel(session).get_by_role("button", name="Generate").wait_for()
    assert not panel(session).locator(_PREVIEW).is_visible()
    session.run("assert panel.result.spec == panel.spec and panel.result.spec.sampling.num_steps == 60")
    session.assert_no_errors()


def test_cancel_ends_within_a_step_and_a_second(session: Lab) -> None:
    """From the click to the word in the page, while a queued clip waits; then the queue goes on."""
    fill(session, "num_steps", SLOW)
    press(session, "Generate")
    panel(session).get_by_text(re.compile("denoise [1-9]")).wait_for()
    step = _step_seconds(panel(session))
    begin = time.monotonic()
    press(session, "Cancel")
    panel(session).get_by_text("Cancelled: a red circle").wait_for()
    seconds = time.monotonic() - begin
    assert seconds < step + 1, f"{seconds:.2f} s with steps of {step:.2f} s"
    panel(session).get_by_role("button", name="Generate").wait_for()
    fill(session, "num_steps", "6")
    session.assert_no_errors()


def _step_seconds(shown: Any) -> float:
    """Seconds a step, as the panel's progress tells them: at least the time so far over the steps that are done."""
    found = re.search(r"denoise (\d+)/\d+, ([\d.]+) s", shown.inner_text())
    assert found, shown.inner_text()
    return float(found[2]) / int(found[1])


def test_a_second_press_queues_and_the_kernel_stays_free(session: Lab) -> None:
    fill(session, "num_steps", "30")
    press(session, "Generate")
    press(session, "Add to queue")
    panel(session).get_by_text("1. a red circle").wait_for()
    index = session.run("sum(range(10))", timeout=10)  # a cell runs while the worker works
    assert "45" in session.text(index)
    assert panel(session).get_by_role("button", name="Add to queue").is_visible()
    panel(session).locator(".wanlab-small").first.click()
    panel(session).get_by_text("1. a red circle").wait_for(state="detached")
    panel(session).get_by_role("button", name="Generate").wait_for(timeout=60_000)
    fill(session, "num_steps", "6")
    session.assert_no_errors()


def test_a_hostile_prompt_runs_nothing(session: Lab) -> None:
    fill(session, "prompt", HOSTILE)
    fill(session, "num_steps", "1")
    fill(session, "seed", "13")
    press(session, "Generate")
    made(session, "13")
    session.panel.locator("figcaption", has_text="onerror").first.wait_for()
    unfold(session, "history")
    panel(session).locator(".wanlab-entry", has_text="onerror").first.wait_for()
    unfold(session, "history")
    session.until("() => [...document.images].every(image => image.complete)")
    assert session.page.evaluate("() => window.pwned") is None
    fill(session, "prompt", PROMPT)
    fill(session, "num_steps", "6")
    session.assert_no_errors()


def test_what_is_not_legal_is_said(session: Lab) -> None:
    unfold(session, "size")
    fill(session, "width", "100")
    panel(session).get_by_role("alert").get_by_text("width = 100 is not legal").wait_for()
    assert panel(session).get_by_role("button", name="Generate").is_disabled()
    layout.check(session, panel(session))
    fill(session, "width", "96")
    panel(session).get_by_role("alert").wait_for(state="detached")
    unfold(session, "size")


def test_history_brings_settings_back(session: Lab) -> None:
    fill(session, "seed", "4611686018427387905")  # more than a browser's numbers hold
    press(session, "Generate")
    made(session, "4611686018427387905")
    press(session, "Defaults")
    shows(session, "seed", "0")
    unfold(session, "history")
    panel(session).locator(".wanlab-entry").first.get_by_role("button", name="Load settings").click()
    shows(session, "seed", "4611686018427387905")
    panel(session).locator(".wanlab-entry").first.get_by_role("button", name="Show").click()
    session.run("assert panel.spec.sampling.seed == 2**62 + 1 and panel.spec == panel.result.spec")
    session.assert_no_errors()
    unfold(session, "history")


def test_looks(session: Lab, screenshot: Screenshots) -> None:
    """Folded, then with every group open: nothing overlaps, is cut or pale in either width and theme."""
    shown = session.cell(2).locator(".jp-OutputArea-output")
    layout.check(session, shown)
    for group in ("text", "size", "sampling", "guidance", "cache", "attention", "compile", "output", "history"):
        unfold(session, group)
    panel(session).get_by_label("method").nth(1).select_option("fixed")
    panel(session).get_by_label("mask", exact=True).wait_for()
    layout.check(session, shown)
    for theme in ("light", "dark"):
        session.theme(theme)
        for width in (1300, 800):
            session.resize(width)
            session.freeze(0.2)
            screenshot(f"panel-open-{theme}-{width}", session)
    session.theme("light")
    session.resize(1300)
    panel(session).get_by_label("method").nth(1).select_option("none")
    session.assert_no_errors()


def test_reopened_without_a_kernel_the_clip_is_there(session: Lab, lab: Lab) -> None:
    file = session.save()
    assert file.stat().st_size < 1_000_000
    copy = file.with_name("reopened-panel.ipynb")
    copy.write_bytes(file.read_bytes())
    lab.open(copy, kernel=False)
    lab.wait_videos(1)
    assert all(plays(video) for video in lab.videos().all())
    assert not lab.has_kernel()


def test_settings_come_back_after_a_restart_and_a_killed_run_says_crashed(session: Lab) -> None:
    fill(session, "prompt", PROMPT)
    fill(session, "num_steps", "500")
    press(session, "Generate")
    panel(session).get_by_text(re.compile("denoise [1-9]")).wait_for()
    _restart(session)
    session.run_cell(0)
    index = session.run("GeneratePanel('wan_tiny')")
    shown = session.output(index).locator(".wanlab-panel")
    shown.get_by_text("Your last settings").or_(shown.get_by_role("status")).first.wait_for()
    assert shown.get_by_label("num_steps").input_value() == "500"
    assert shown.get_by_label("prompt", exact=True).input_value() == PROMPT
    shown.locator(".jupyter-widget-Collapse-header:visible", has_text=re.compile("^history")).click()
    shown.locator(".wanlab-entry").first.get_by_text("crashed").wait_for()
    assert shown.locator(".wanlab-entry").first.get_by_role("button", name="Load settings").is_visible()


def _restart(lab: Lab) -> None:
    """Restart the notebook's kernel without the question."""
    lab.page.evaluate(
        """() => { window.wanlabDone = null;
                   const kernel = window.wanlabPanel().sessionContext.session.kernel;
                   kernel.restart().then(() => { window.wanlabDone = {}; }); }"""
    )
    lab.until("() => window.wanlabDone", 60)
    lab.wait_idle()


def test_the_form_is_painted_within_two_seconds(lab: Lab) -> None:
    """From the run of the cell to the last button, by id in a kernel without torch and with the loaded model.

    The best of three, since the machine may be busy with something else.
    """
    by_id = PANEL.replace("model,", "'wan_tiny',")
    took: dict[str, list[float]] = {"by id": [], "loaded": []}
    for _ in range(3):
        lab.new(IMPORTS, by_id, "model = panel.model", PANEL)
        lab.run_cell(0)
        took["by id"].append(painted(lab, 1))
        lab.run_cell(2)
        took["loaded"].append(painted(lab, 3))
        lab.assert_no_errors()
        lab.close()
        if max(map(min, took.values())) < 2:
            break
    print(f"seconds to the form: {took}")
    assert max(map(min, took.values())) < 2, took


def painted(lab: Lab, cell: int) -> float:
    """Seconds from running a panel's cell to its last button."""
    begin = time.monotonic()
    lab.run_cell(cell, wait=False)
    lab.output(cell).get_by_role("button", name="Defaults").wait_for(timeout=20_000)
    return time.monotonic() - begin


def test_the_picker_lists_models_and_what_is_missing(lab: Lab) -> None:
    lab.new(IMPORTS, "picker = ModelPicker()\npicker")
    lab.run_all()
    shown = lab.output(1)
    shown.get_by_text("yes, 26.2 MB").wait_for()
    shown.get_by_label("family").select_option("flux")
    shown.get_by_text("fetches it from black-forest-labs/FLUX.1-dev").wait_for()
    lab.run("assert picker.value == 'flux_dev', picker.value")
    layout.check(lab, shown)
    lab.assert_no_errors()
