"""Pictures given to a panel in JupyterLab: chosen in the browser's dialog, shown small, refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import layout
from tests.browser.lab import Lab
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

MODEL = """import wanlab
model = wanlab.load('wan_tiny')
type(model).accepts = ("image", "references", "keyframes", "keyframe_positions", "fit")"""  # as a model would say
PANEL = "panel = wanlab.widgets.GeneratePanel(model, prompt='a kite')\npanel"


def choose(lab: Lab, row: Any, *files: Path) -> None:
    with lab.page.expect_file_chooser() as chooser:
        row.get_by_role("button", name="Upload").click()
    chooser.value.set_files([str(file) for file in files])


def test_uploads_in_a_panel(context: Any, server: Server, tmp_path: Path, screenshot: Screenshots) -> None:
    for number, colour in enumerate(("#3080c0", "#c04030", "#40a060")):
        Image.new("RGB", (640, 360), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "text.png").write_text("<html>")
    lab = Lab(context.new_page(), server)
    lab.new(MODEL, PANEL, "[panel.spec.media.image.name, [r.name for r in panel.spec.media.references]]")
    lab.run_cell(0)
    lab.run_cell(1)
    panel = lab.panel.locator(".wanlab-panel").last
    panel.locator(".jupyter-widget-Collapse-header:visible", has_text="media").click()
    rows = panel.locator(".wanlab-row:visible", has=lab.page.get_by_role("button", name="Upload"))
    rows.nth(2).wait_for()
    choose(lab, rows.nth(0), tmp_path / "text.png")
    panel.get_by_role("alert").filter(has_text="text.png is no picture").wait_for()
    choose(lab, rows.nth(0), tmp_path / "0.png")
    rows.nth(0).locator("img").wait_for()
    panel.get_by_role("alert").filter(has_text="text.png").wait_for(state="detached")
    choose(lab, rows.nth(1), tmp_path / "1.png", tmp_path / "2.png")
    rows.nth(1).locator("img").nth(1).wait_for()
    screenshot("media", lab.cell(1))
    layout.check(lab, panel)
    lab.run_cell(2)
    assert "['0.png', ['1.png', '2.png']]" in lab.output(2).inner_text()
    choose(lab, rows.nth(0), tmp_path / "2.png")
    rows.nth(0).get_by_text("2.png").wait_for()
    assert lab.errors == []
    lab.close()
    lab.page.close()
