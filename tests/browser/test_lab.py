"""The tests' own hands and eyes, on plain ipywidgets: what they press reaches the kernel, what is wrong is told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser import layout
from tests.browser.lab import THEMES, Lab
from tests.browser.screenshots import Screenshots
from tests.browser.server import Server

pytestmark = pytest.mark.browser

FORM = """
import ipywidgets as w

def told_at(tip):
    return {"style": {"description_width": "130px"}, "tooltip": tip}

steps = w.BoundedIntText(20, 1, 100, description="num_steps", **told_at("steps of the sampler"))
press, told = w.Button(description="Generate", button_style="primary"), w.Label("not yet")
press.on_click(lambda button: setattr(told, "value", f"{steps.value} steps"))
w.VBox([
    steps,
    w.Textarea("a red kite over dunes", description="prompt", **told_at("help")),
    w.FloatSlider(3.0, min=1, max=9, description="guidance_scale", **told_at("help")),
    w.Dropdown(options=["unipc", "euler"], description="sampler", **told_at("help")),
    w.HBox([press, w.Button(description="Cancel", disabled=True), told]),
    w.FloatProgress(0.4, max=1.0, description="denoise", **told_at("help")),
    w.Accordion([w.IntText(1, description="seed", tooltip="of the noise")], titles=["Sampling"], selected_index=0),
])
"""


NARROW = """
import ipywidgets as w

steps = w.IntText(1, description="num_inference_frames")
prompt = w.Text("a red kite over dunes and a long shore with many people")
w.HBox([steps, prompt, w.Button(description="Generate")], layout=w.Layout(width="1200px"))
"""


def test_what_is_pressed_reaches_the_kernel(lab: Lab) -> None:
    lab.new(FORM)
    lab.run_all()
    form = lab.output(0)
    form.get_by_label("num_steps").fill("7")
    form.get_by_role("button", name="Generate").click()
    form.get_by_text("7 steps").wait_for()
    lab.assert_no_errors()
    layout.check(lab, form)


def test_a_page_begins_light(lab: Lab, context: Any, server: Server) -> None:
    lab.new("1")
    lab.theme("dark")
    other = Lab(context.new_page(), server)
    other.open(lab.file, kernel=False)
    assert other.page.evaluate("() => document.body.dataset.jpThemeName") == THEMES["light"]
    other.page.close()


def test_a_cell_that_runs_is_awaited_or_not(lab: Lab) -> None:
    lab.new("import threading\ngate = threading.Event()")
    lab.run_all()
    index = lab.run("print('inside', flush=True); gate.wait(30); print('after')", wait=False)
    lab.output(index).get_by_text("inside").wait_for()
    assert "after" not in lab.text(index)
    lab.command("notebook:interrupt-kernel")
    lab.wait_idle()
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        lab.assert_no_errors()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("from IPython.display import Javascript\nJavascript('console.error(\"from the page\")')", "from the page"),
        ("from IPython.display import HTML\nHTML('<img src=\"missing.png\">')", "404"),
    ],
)
def test_what_is_wrong_is_told(lab: Lab, source: str, told: str) -> None:
    lab.new(source)
    lab.run_all()
    lab.until("() => [...document.images].every(image => image.complete)")
    with pytest.raises(AssertionError, match=told):
        lab.assert_no_errors()


def test_a_widget_that_is_gone_is_told(lab: Lab) -> None:
    file = lab.new("import ipywidgets\nipywidgets.IntSlider()")
    lab.run_all()
    lab.save()
    lab.close()
    lab.open(file)
    lab.output(0).get_by_text("Error displaying widget").wait_for()
    with pytest.raises(AssertionError, match="Error displaying widget"):
        lab.assert_no_errors()


def test_a_form_that_is_too_narrow_is_told(lab: Lab, screenshot: Screenshots) -> None:
    lab.new(NARROW)
    lab.run_all()
    lab.output(0).get_by_label("num_inference_frames").wait_for()
    lab.resize(800)
    screenshot("narrow", lab.output(0))
    found = "\n".join(layout.problems(lab.output(0)))
    assert "sideways" in found
    assert "a red kite" in found
    assert "tooltip" in found
    assert "num_inference_frames" in found
