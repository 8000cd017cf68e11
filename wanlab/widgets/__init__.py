"""Panels for notebooks: GeneratePanel, ModelPicker, SpecForm, and comparisons that play.

The names below load on first use; each works headless too, where it shows itself as plain HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.widgets._compare import Compare, compare
    from wanlab.widgets.form import SpecForm
    from wanlab.widgets.panel import GeneratePanel
    from wanlab.widgets.picker import ModelPicker

_HOME = {
    "Compare": "_compare",
    "compare": "_compare",
    "GeneratePanel": "panel",
    "ModelPicker": "picker",
    "SpecForm": "form",
}
__all__ = ["Compare", "GeneratePanel", "ModelPicker", "SpecForm", "compare"]
__getattr__ = lazy(__name__, _HOME)
