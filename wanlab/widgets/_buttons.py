"""Buttons as the panels have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets


def button(text: str, tooltip: str, press: Callable[[], Any], icon: str = "", style: str = "") -> Any:
    """A button as wide as its text that calls `press()`."""
    made = widgets.Button(description=text, tooltip=tooltip, icon=icon, button_style=style, layout={"width": "auto"})
    made.on_click(lambda _: press())
    return made
