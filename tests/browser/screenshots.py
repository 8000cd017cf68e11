"""Pictures of what the tests see."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.browser.lab import Lab

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

README_BYTES = 300_000
_AROUND = 150  # pixels of Lab's menus, above and below a notebook


@dataclass(frozen=True)
class Screenshots:
    """`screenshot(name, what)`: writes name.png into pytest's temporary folder; with `readme=True` into the folder that
    WANLAB_SCREENSHOTS names, if it is set."""

    folder: Path
    readme_folder: Path | None = None

    def __call__(self, name: str, what: Lab | Locator | Page, readme: bool = False) -> Path:
        """Write a PNG of at most 256 colours and return its path; one for the README is asserted to be < 300 kB.

        A `Lab` stands for its whole notebook, a page for what the window shows. The window is made high enough for the
        notebook or the element meanwhile.
        """
        page = what if not isinstance(what, Lab) and hasattr(what, "goto") else what.page
        size, height = page.viewport_size, _height(what)
        if height > size["height"]:
            page.set_viewport_size({"width": size["width"], "height": height})
        data = (what.panel if isinstance(what, Lab) else what).screenshot(animations="disabled")
        page.set_viewport_size(size)
        folder = self.readme_folder if readme and self.readme_folder else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        path.write_bytes(_reduced(data))
        assert not readme or path.stat().st_size < README_BYTES, f"{path} has {path.stat().st_size} bytes"
        return path


def _height(what: Lab | Locator | Page) -> int:
    """The height in pixels of a window that shows all of it; 0 for a page."""
    if isinstance(what, Lab):
        return int(what.panel.locator(".jp-WindowedPanel-outer").evaluate("e => e.scrollHeight")) + _AROUND
    box = what.bounding_box() if hasattr(what, "bounding_box") else None
    return int(box["height"]) + _AROUND if box else 0


def _reduced(data: bytes) -> bytes:
    """A PNG with a palette: a quarter of the bytes, and no difference that one sees in menus, texts and flat clips."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()
