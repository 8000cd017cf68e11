"""RunBrowser in JupyterLab: filter, sort, open, compare, load, cancel, while a thread of the kernel writes the runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import layout
from tests.browser.lab import Lab, plays
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

MAKE = """
import sys, threading
sys.path.insert(0, {repository!r})
import wanlab
from tests.run_folders import HOSTILE, begin, break_off, finish, plan, work
from wanlab.spec import GenerationSpec
from wanlab.sweeps import grid
from wanlab.widgets import GeneratePanel, RunBrowser

base = GenerationSpec(model="wan_tiny", prompt="a red fox", num_steps=4, width=32, height=32, num_frames=5)
points = grid(base, cache=["none", "easycache"], guidance_scale=[1.0, 5.0], seed=range({seeds}))
folders = plan("runs/{name}", points, {{"alone": 100, "shared": 40}})
for i in range(8):
    finish(folders[i], points[i], seconds=2.5 + i % 3, side=48, psnr=30.0 + 7 * i % 5)
break_off(folders[8], points[8], f"out of luck {{HOSTILE}}")
begin(folders[9], points[9])
work("runs/{name}", current="easycache, guidance_scale 1.0", step=1, num_steps=4, executed=30, planned=30, alone=80)
may_go_on = threading.Event()

def make_the_rest():
    may_go_on.wait(60)
    for folder, spec in list(zip(folders, points))[9:]:
        finish(folder, spec, psnr=20.0)

def block():
    try:
        threading.Event().wait(60)
    except KeyboardInterrupt:
        pass

writer = threading.Thread(target=make_the_rest)
writer.start()
"""
BROWSE = "panel = GeneratePanel('wan_tiny')\nbrowser = RunBrowser('runs/{name}', panel=panel)\nbrowser"


@pytest.fixture(scope="module")
def session(context: Any, server: Server, repository: Path) -> Iterator[Lab]:
    """A notebook with a browser of twelve runs in its second cell."""
    lab = Lab(context.new_page(), server)
    lab.new(
        MAKE.format(repository=str(repository), name="sweep", seeds=3), BROWSE.format(name="sweep"), name="browse.ipynb"
    )
    lab.run_all()
    lab.output(1).locator(".wr-table[data-ready=true]").wait_for()
    yield lab
    lab.run("may_go_on.set(); writer.join()")
    lab.close()
    lab.page.close()


def table(lab: Lab) -> Any:
    return lab.panel.locator(".wr-table").last


def lines(lab: Lab) -> Any:
    return table(lab).locator("tbody tr")


def shows(lab: Lab, count: int) -> None:
    lab.until("n => [...document.querySelectorAll('.wr-table')].at(-1).dataset.rows === String(n)", argument=count)


def column(lab: Lab, number: int) -> list[str]:
    return [text.strip() for text in table(lab).locator(f"tbody td:nth-child({number})").all_inner_texts()]


def test_rows_pictures_and_progress(session: Lab) -> None:
    shows(session, 12)
    session.until("() => document.querySelectorAll('.wr-picture img[src^=blob]').length === 8")
    shown = session.output(1)
    for words in ("9/12 runs", "1 failed", "step 1/4", "sharing saved 62% of the forwards"):
        shown.get_by_role("status").filter(has_text=words).wait_for()
    assert column(session, 3)[8].startswith("failed")
    assert session.page.evaluate("() => window.pwned") is None


def test_filter_and_sort_need_no_kernel(session: Lab) -> None:
    index = session.run("block()", wait=False)
    search = table(session).get_by_label("Filter runs")
    search.fill("seed=2 ok")
    shows(session, 2)
    search.fill("")
    table(session).get_by_label("cache", exact=True).select_option(label="easycache (6)")
    shows(session, 6)
    table(session).get_by_label("status", exact=True).select_option(label="failed (1)")
    shows(session, 1)
    search.fill("nothing like it")
    table(session).get_by_text("No run is like that").wait_for()
    search.fill("")
    for name in ("cache", "status"):
        table(session).get_by_label(name, exact=True).select_option("")
    shows(session, 12)
    for arrow, first in (("↑", "ok"), ("↓", "ok")):
        table(session).get_by_role("button", name="seed").click()
        table(session).get_by_role("button", name=f"seed {arrow}").wait_for()
        assert column(session, 3)[0].startswith(first)
    assert column(session, 6) == sorted(column(session, 6), reverse=True)
    table(session).get_by_role("button", name="seed ↓").click()
    assert column(session, 6)[:4] == ["0", "1", "2", "0"]
    assert session.cell(index).locator(".jp-InputPrompt").inner_text() == "[*]:"
    session.command("notebook:interrupt-kernel")
    session.wait_idle()


def test_a_click_opens_a_run_and_its_spec_is_loaded(session: Lab, screenshot: Screenshots) -> None:
    lines(session).nth(1).click()
    [video] = session.wait_videos(1)
    assert video["src"].startswith(session.server.url)  # a link beside the notebook, nothing embedded
    assert all(plays(found) for found in session.videos().all())
    session.output(1).get_by_role("button", name="Load this spec").click()
    session.output(1).get_by_text("The settings are in .spec and in the panel.").wait_for()
    session.run("assert browser.spec == points[1] == panel.spec == browser.row.spec")
    session.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    session.output(1).get_by_role("button", name="Copy as code").click()
    session.output(1).get_by_text("copied", exact=True).wait_for()
    assert "model.spec(" in session.page.evaluate("() => navigator.clipboard.readText()")
    screenshot("run-browser-open", session.cell(1))
    lines(session).nth(8).click()
    session.output(1).get_by_role("alert").filter(has_text="onerror").wait_for()
    session.output(1).get_by_role("link", name="record").wait_for()
    assert session.page.evaluate("() => window.pwned") is None
    session.output(1).get_by_role("button", name="Close").click()
    session.output(1).get_by_role("alert").wait_for(state="detached")
    session.assert_no_errors()


def test_ticked_runs_play_side_by_side(session: Lab, screenshot: Screenshots) -> None:
    assert table(session).get_by_role("button", name="Compare").is_disabled()
    for number in (0, 1):
        lines(session).nth(number).get_by_role("checkbox").check()
    table(session).get_by_role("button", name="Compare 2").click()
    session.until("() => document.querySelector('.wl-player[data-ready=true]')", 30)
    screenshot("run-browser-compare", session.cell(1))
    session.run("assert [row.spec for row in browser.selected] == [points[0], points[1]]")
    session.output(1).get_by_role("button", name="Close the comparison").click()
    session.panel.locator(".wl-player").wait_for(state="detached")
    table(session).get_by_role("button", name="Untick").click()
    session.assert_no_errors()


def test_looks(session: Lab, screenshot: Screenshots) -> None:
    lines(session).nth(1).click()
    session.wait_videos(1)
    layout.check(session, session.output(1))
    for theme in ("light", "dark"):
        session.theme(theme)
        for width in (1300, 800):
            session.resize(width)
            screenshot(f"run-browser-{theme}-{width}", session.cell(1))
    session.theme("light")
    session.resize(1300)


def test_the_saved_notebook_is_small_and_says_what_to_do(session: Lab, lab: Lab) -> None:
    file = session.save()
    assert file.stat().st_size < 1_000_000
    outputs = json.loads(file.read_text())["cells"][1]["outputs"]
    assert "base64,/9j/" not in json.dumps([o["data"] for o in outputs if "wr-" in json.dumps(o)])
    copy = file.with_name("reopened-runs.ipynb")
    copy.write_bytes(file.read_bytes())
    lab.open(copy, kernel=False)
    lab.panel.get_by_text("need their kernel to be browsed: run this cell").wait_for()
    lab.wait_videos(1)  # the run that was open
    lab.assert_no_errors()


def test_it_fills_while_the_runs_are_made_and_a_cell_blocks(session: Lab) -> None:
    session.output(1).get_by_role("button", name="Cancel").click()
    session.output(1).get_by_role("button", name="Stopping ...").wait_for()
    session.run("assert wanlab.runs.is_cancelled('runs/sweep'); wanlab.runs.clear_cancel('runs/sweep')")
    lines(session).nth(10).get_by_text("pending").wait_for()
    index = session.run("may_go_on.set(); block()", wait=False)
    session.until("() => document.querySelectorAll('.wr-table tr[data-status=ok]').length === 11", 20)
    session.output(1).get_by_role("status").filter(has_text="12/12 runs").wait_for()
    assert session.cell(index).locator(".jp-InputPrompt").inner_text() == "[*]:"
    session.command("notebook:interrupt-kernel")
    session.wait_idle()


def test_five_hundred_runs(session: Lab) -> None:
    session.run("plan('runs/many', grid(base, seed=range(500)))\nRunBrowser('runs/many')")
    shows(session, 500)
    assert lines(session).count() == 50
    table(session).get_by_role("button", name="Later ›").click()
    assert column(session, 4)[0] == "50"
    took = session.page.evaluate(
        """() => { const table = [...document.querySelectorAll('.wr-table')].at(-1);
                   const search = table.querySelector('input[type=search]'), begin = performance.now();
                   search.value = 'seed=499'; search.dispatchEvent(new Event('input'));
                   table.offsetHeight; return [performance.now() - begin, table.dataset.rows]; }"""
    )
    assert took[1] == "1"
    assert took[0] < 100, f"{took[0]:.0f} ms to filter 500 runs"
    session.assert_no_errors()
