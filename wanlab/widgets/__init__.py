"""Panels for notebooks: GeneratePanel, ModelPicker, SpecForm. The names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.widgets.form import SpecForm
    from wanlab.widgets.panel import GeneratePanel
    from wanlab.widgets.picker import ModelPicker

_HOME = {"GeneratePanel": "panel", "ModelPicker": "picker", "SpecForm": "form"}
__all__ = ["GeneratePanel", "ModelPicker", "SpecForm"]
__getattr__ = lazy(__name__, _HOME)
