"""What a user would see at a glance: boxes that overlap, what is cut, texts that are too pale.

    assert not layout.problems(lab.output(3))
    assert not layout.pale(lab.output(3))
    layout.check(lab, lab.output(3))  # both, in both widths and both themes

A locator may match several elements; each is looked at by itself. Measured are the boxes that Chromium reports, of
controls, texts (line by line) and pictures that are visible; so no picture is compared with a stored one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser.lab import THEMES, WIDTHS

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.browser.lab import Lab

CONTRAST = 4.5
"""Of a text to what is behind it: level AA of WCAG 2.2, criterion 1.4.3, without its relief for large letters."""

_SCRIPT = Path(__file__).with_name("layout.js").read_text()


def problems(root: Locator) -> list[str]:
    """What is wrong with where things are, one readable line each; [] where nothing is.

    - Two controls or texts, or one of them and a picture, overlap although neither contains the other. Letters count
      without the 15 % of a line above and below them; what is positioned absolutely over a picture is there by design.
    - Something leaves the element it is looked at in, or the notebook's panel, sideways; is cut by an ancestor that
      hides what overflows; or can only be seen by scrolling sideways. Scrolling down is fine.
    - A text, or the value of an input or a dropdown, is longer than its box shows and no `title` contains all of it.
    - A tooltip says "null": ipywidgets 8.1.9 gives that to the label of a widget with a description and no `tooltip`.
    - Nothing at all is visible in any of the elements.

    Text areas may scroll. Not seen: what is painted without a box (CSS shadows, pseudo-elements) and inside iframes.
    """
    return _look(root, {"check": "layout"})


def pale(root: Locator, contrast: float = CONTRAST) -> list[str]:
    """Texts and values whose contrast to their background is too low, one readable line each; [] where none is.

    The background is what all ancestors paint, opacities included; a gradient is reported, as it has no one contrast.
    Disabled controls are exempt. No text at all in any of the elements is a problem. Not seen: pictures behind a text.
    """
    return _look(root, {"check": "contrast", "contrast": contrast})


def _look(root: Locator, what: dict[str, Any]) -> list[str]:
    elements = root.all()
    assert elements, "nothing to look at: the locator matches no element"
    found = [element.evaluate(_SCRIPT, what) for element in elements]  # None: it shows nothing that is looked at
    if all(lines is None for lines in found):
        return ["there is nothing visible to look at"]
    return [line for lines in found for line in lines or []]


def check(lab: Lab, root: Locator) -> None:
    """Assert that nothing is wrong with `root` at 1300 and 800 pixels, in the light and the dark theme.

    Leaves the page as it began: light and 1300 pixels wide.
    """
    wrong = []
    for theme in THEMES:
        lab.theme(theme)
        for width in WIDTHS:
            lab.resize(width)
            wrong += [f"{width} px, {theme}: {line}" for line in [*problems(root), *pale(root)]]
    lab.theme("light")
    lab.resize(WIDTHS[0])
    assert not wrong, "\n".join(wrong)
