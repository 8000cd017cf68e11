"""AblationPanel in JupyterLab: axes by ticks and texts, the cost, the code, a sweep that fills the table, Cancel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import layout
from tests.browser.lab import Lab
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

START = """
import sys, threading
sys.path.insert(0, {repository!r})
import wanlab
from tests.run_folders import finish, plan
from wanlab.widgets import AblationPanel

model = wanlab.load("wan_tiny")
spec = model.spec(prompt="a red fox", num_steps=12, width=32, height=32, num_frames=5)
gate = threading.Semaphore(0)

def slowly(grid, out, model=None):
    for folder, point in zip(plan(out, grid), grid):
        gate.acquire(timeout=60)
        if wanlab.runs.is_cancelled(out):
            break
        finish(folder, point)
    return wanlab.results(out)
"""
PANEL = "panel = AblationPanel(spec, out='runs/{name}'{runner})\npanel"


@pytest.fixture(scope="module")
def session(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """A notebook with a panel in its second cell, whose runs are made one for each `gate.release()`."""
    lab = Lab(context.new_page(), server)
    start = START.format(repository=str(repository))
    lab.new(start, PANEL.format(name="slowly", runner=", runner=slowly"), name="ablate.ipynb")
    lab.run_all()
    lab.output(1).get_by_role("button", name="Run", exact=False).first.wait_for()
    yield lab
    lab.close()
    lab.page.close()


def add(shown: Any, name: str) -> None:
    shown.get_by_label("vary").select_option(name)
    shown.get_by_role("button", name="Add").click()


def line(shown: Any, name: str) -> Any:
    return shown.locator(".wanlab-axis", has=shown.page.locator(f"b:text-is('{name}')"))


def type_values(shown: Any, name: str, text: str) -> None:
    box = line(shown, name).get_by_role("textbox")
    box.fill(text)
    box.press("Tab")


def test_axes_cost_and_code(session: Lab) -> None:
    shown = session.output(1)
    add(shown, "cache")
    line(shown, "cache").get_by_label("easycache").check()
    add(shown, "seed")
    type_values(shown, "seed", "range(3)")
    shown.locator("b", has_text="6 runs").wait_for()
    type_values(shown, "seed", "1 2")
    shown.get_by_role("alert").filter(has_text="cannot be read").wait_for()
    assert shown.get_by_role("button", name="Run").first.is_disabled()
    type_values(shown, "seed", "range(2)")
    shown.locator("b", has_text="4 runs").wait_for()
    session.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.get_by_role("button", name="Copy as code").click()
    shown.get_by_text("copied", exact=True).wait_for()
    code = session.page.evaluate("() => navigator.clipboard.readText()")
    made = code.partition("results =")[0]
    session.run(f"{made}\nassert grid == panel.grid and len(grid) == 4 and panel.spec is spec")
    session.assert_no_errors()


def test_the_table_fills_and_the_kernel_stays_free(session: Lab) -> None:
    shown = session.output(1)
    shown.get_by_role("button", name="Run").first.click()
    session.until("() => document.querySelector('.wr-table')?.dataset.rows === '4'")
    session.run("gate.release()")
    session.until("() => document.querySelectorAll('.wr-table tr[data-status=ok]').length === 1")
    session.run("gate.release(5)")
    shown.get_by_text("Done: 4/4 runs").wait_for()
    session.until("() => document.querySelectorAll('.wr-table tr[data-status=ok]').length === 4")
    session.run("assert [row.status for row in panel.results] == ['ok'] * 4")
    shown.locator(".wr-table tbody tr").first.click()
    session.wait_videos(1)
    session.assert_no_errors()


def test_looks(session: Lab, screenshot: Screenshots) -> None:
    shown = session.output(1)
    add(shown, "guidance_scale")
    type_values(shown, "guidance_scale", "1.0, 5.0")
    line(shown, "guidance_scale").get_by_label("with the one above").check()
    shown.locator("b", has_text="4 runs").wait_for()
    layout.check(session, shown)
    for theme in ("light", "dark"):
        session.theme(theme)
        for width in (1300, 800):
            session.resize(width)
            screenshot(f"ablation-{theme}-{width}", session.cell(1))
    session.theme("light")
    session.resize(1300)


def test_cancel_stops_and_the_rest_is_not_made(session: Lab) -> None:
    index = session.run(
        "gate = threading.Semaphore(1)\n" + PANEL.format(name="stop", runner=", runner=slowly, seed=range(9)")
    )
    shown = session.output(index)
    shown.get_by_role("button", name="Run").first.click()
    session.until(
        "() => [...document.querySelectorAll('.wr-table')].at(-1).querySelectorAll('[data-status=ok]').length === 1"
    )
    shown.get_by_role("button", name="Cancel").first.click()
    shown.get_by_role("button", name="Stopping ...").first.wait_for()
    session.run("gate.release()")
    shown.get_by_text("Stopped: 1/9 runs").wait_for()
    session.run("assert panel.results.counts() == {'ok': 1, 'pending': 8}")
    session.assert_no_errors()


def test_a_real_sweep_from_ticks_to_a_comparison(session: Lab, screenshot: Screenshots) -> None:
    """What a person does: choose, run, watch, sort, compare; and the cell that says the same finds all runs there."""
    index = session.run("panel = AblationPanel(spec.with_(num_steps=4), out='runs/real')\npanel")
    shown = session.output(index)
    add(shown, "guidance_scale")
    type_values(shown, "guidance_scale", "1.0, 5.0")
    add(shown, "sampler")
    line(shown, "sampler").get_by_label("euler", exact=True).check()
    shown.get_by_text(re.compile(r"\d+ forwards")).wait_for()
    shown.get_by_role("button", name="Run").first.click()
    shown.get_by_text("Done: 4/4 runs").wait_for(timeout=60_000)
    session.until(
        "() => [...document.querySelectorAll('.wr-table')].at(-1).querySelectorAll('img[src^=blob]').length === 4"
    )
    for number in (0, 2):
        shown.locator(".wr-table tbody tr").nth(number).get_by_role("checkbox").check()
    shown.get_by_role("button", name="Compare 2").click()
    shown.locator(".wl-player[data-ready=true]").wait_for()
    screenshot("ablation-real", session.cell(index))
    session.run("exec(panel.code)\nassert [row.id for row in results] == [row.id for row in panel.results]")
    session.assert_no_errors()
