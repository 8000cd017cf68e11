"""Panels for notebooks: GeneratePanel, AblationPanel, RunBrowser, ModelPicker, SpecForm, comparisons that play.

The names below load on first use; each works headless too, where it shows itself as plain HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.widgets._ablation import AblationPanel
    from wanlab.widgets._compare import Compare, compare
    from wanlab.widgets._run_browser import RunBrowser
    from wanlab.widgets.form import SpecForm
    from wanlab.widgets.panel import GeneratePanel
    from wanlab.widgets.picker import ModelPicker

_HOME = {
    "AblationPanel": "_ablation",
    "Compare": "_compare",
    "compare": "_compare",
    "GeneratePanel": "panel",
    "ModelPicker": "picker",
    "RunBrowser": "_run_browser",
    "SpecForm": "form",
}
__all__ = ["AblationPanel", "Compare", "GeneratePanel", "ModelPicker", "RunBrowser", "SpecForm", "compare"]
__getattr__ = lazy(__name__, _HOME)
