"""The checks of looks find what is planted, and nothing on a clean page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser import layout

pytestmark = pytest.mark.browser

Look = Callable[[str], tuple[list[str], list[str]]]

PAGE = '<!doctype html><body style="font: 14px sans-serif"><div id="root" style="width: 600px">{}</div></body>'
ONE_LINE = "overflow: hidden; white-space: nowrap"

CLEAN = """
<h3>A form</h3>
<p>A prompt with <b>bold words</b> and a <a href="#x">link</a> that is long enough to be wrapped into two or three
lines, as <code>texts</code> in a notebook are, at this width.</p>
<label>Seed <input type="number" value="12345" style="width: 90px"></label>
<select style="width: 120px"><option>unipc<option>a choice that is not chosen and longer</select>
<button style="margin: 4px">Generate</button><button disabled style="color: #ddd">Cancel</button>
<table><tr><th>PSNR<td>18.1 dB<td>higher is closer</table>
<div style="width: 90px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap" title="all of a long label">
all of a long label</div>
<div style="position: relative"><video width="200" height="100"></video>
<canvas width="200" height="100" style="position: absolute; left: 0; top: 0"></canvas>
<span style="position: absolute; left: 5px; top: 5px; background: #000; color: #fff">guidance 3</span></div>
<div style="height: 40px; overflow-y: auto"><p>one</p><p>two</p><p>three</p></div>
<details><summary>More</summary><p style="width: 3000px">hidden until it is opened</p></details>
<textarea style="width: 100px; height: 30px">a prompt that is much longer than its box, which scrolls</textarea>
<div style="visibility: hidden; margin-top: -40px">not seen</div>
"""


@pytest.fixture(scope="module")
def look(chromium: Any) -> Iterator[Look]:
    """Puts HTML into a root 600 pixels wide and returns what both checks say about it."""
    page = chromium.new_page(viewport={"width": 700, "height": 900})

    def look(body: str) -> tuple[list[str], list[str]]:
        page.set_content(PAGE.format(body))
        root = page.locator("#root")
        return layout.problems(root), layout.pale(root)

    yield look
    page.close()


def test_a_clean_page_has_no_problems(look: Look) -> None:
    assert look(CLEAN) == ([], [])


PROBLEMS = {
    "a text on a text": ('<p>first line</p><p style="margin-top: -28px">second line</p>', "overlap"),
    "a button on a button": ('<button>One</button><button style="margin-left: -12px">Two</button>', "overlap"),
    "a text on a button": ('<button>Press</button><span style="margin-left: -20px">seed</span>', "overlap"),
    "a picture on a text": (
        '<p>words</p><video style="margin-top: -30px" width="99" height="50"></video>',
        "overlap",
    ),
    "an absolute text on a text": ('<p>words</p><i style="position: absolute; top: 20px">note</i>', "overlap"),
    "a control on a slider": (
        '<div role="slider" style="width: 99px; height: 9px"></div>'
        '<input type="checkbox" style="position: relative; top: -12px">',
        "overlap",
    ),
    "a wide canvas": ('<canvas width="640" height="20"></canvas>', "leaves div"),
    "wide and wider than the page": ('<canvas width="900" height="20"></canvas>', "leaves div"),
    "left of the page": ('<button style="margin-left: -30px">Play</button>', "leaves div"),
    "a picture in a small box": (
        '<div style="width: 100px; overflow: hidden"><canvas width="150" height="20"></canvas></div>',
        "is cut by 50 px at the side",
    ),
    "a picture in a low box": (
        '<div style="height: 15px; overflow: hidden"><canvas width="150" height="40"></canvas></div>',
        "is cut by 25 px at the top or bottom",
    ),
    "a table that scrolls sideways": (
        '<div style="overflow-x: auto"><div style="white-space: nowrap; width: 900px">'
        + "many words " * 15
        + "</div></div>",
        "needs sideways scrolling",
    ),
    "a clipped label": (
        '<div style="width: 40px; overflow: hidden; white-space: nowrap">num_frames</div>',
        "num_frames",
    ),
    "an ellipsis without a title": (
        '<div style="width: 60px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis">guidance_scale</div>',
        "lacks",
    ),
    "an ellipsis whose title says another thing": (
        f'<div title="help" style="width: 60px; {ONE_LINE}; text-overflow: ellipsis">guidance_scale</div>',
        "lacks",
    ),
    "a tooltip without words": ('<label title="null">seed</label>', "tooltip"),
    "a clipped number": ('<input type="number" value="123456789012" style="width: 50px">', "lacks"),
    "a clipped placeholder": ('<input placeholder="a red kite over dunes" style="width: 50px">', "lacks"),
    "a clipped choice": ('<select style="width: 60px"><option>guidance interval</select>', "lacks"),
    "a clipped button": (
        '<button style="width: 50px; overflow: hidden; white-space: nowrap">Generate</button>',
        "Generate",
    ),
    "nothing at all": ('<p style="display: none">nothing</p>', "nothing visible"),
}


@pytest.mark.parametrize(("planted", "told"), PROBLEMS.values(), ids=list(PROBLEMS))
def test_a_planted_problem_is_found(look: Look, planted: str, told: str) -> None:
    found, _ = look(planted)
    assert [line for line in found if told in line], found
    assert len(found) <= 3, found


def test_what_is_beside_a_problem_is_left_alone(look: Look) -> None:
    found, _ = look(CLEAN + '<button>One</button><button style="margin-left: -12px">Two</button>')
    assert found
    assert all("One" in line or "Two" in line for line in found), found


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ('<p style="color: #999">pale</p>', "2.8"),
        ('<div style="background: #111"><p style="color: #444">dark on dark</p></div>', "dark on dark"),
        ('<p style="opacity: 0.3">faint</p>', "faint"),
        ('<div style="background: #fff"><p style="color: rgb(0 0 0 / 0.3)">thin</p></div>', "thin"),
        ('<div style="background: rgb(0 0 0 / 0.9)"><p>black on nearly black</p></div>', "nearly black"),
        ('<input value="7" style="color: #ccc">', "contrast"),
        ('<p style="background: linear-gradient(red, blue)">on a gradient</p>', "gradient"),
        ('<canvas width="9" height="9"></canvas>', "nothing visible"),
    ],
)
def test_a_pale_text_is_found(look: Look, planted: str, told: str) -> None:
    _, found = look(planted)
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    "readable",
    [
        '<p style="color: #767676">4.54 on white</p>',
        '<div style="background: #111"><p style="color: #eee">light on dark</p></div>',
        '<div style="background: #111"><div style="background: #fff; opacity: 0.9"><p>group opacity</p></div></div>',
        '<button disabled style="color: #ccc">off</button><p>text</p>',
    ],
)
def test_a_readable_text_is_left_alone(look: Look, readable: str) -> None:
    assert look(readable)[1] == []


def test_a_locator_that_matches_nothing_is_no_pass(chromium: Any) -> None:
    page = chromium.new_page()
    with pytest.raises(AssertionError, match="matches no element"):
        layout.problems(page.locator(".missing"))
    page.close()
