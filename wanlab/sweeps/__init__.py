"""Sweeps: many generations that share what they have in common. The names below load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.sweeps._checkpoint import Checkpoints
    from wanlab.sweeps._keys import conditions_key, group_key, text_key
    from wanlab.sweeps._plan import Forecast, Segment, forecast, plan
    from wanlab.sweeps._together import Together, denoise_together
    from wanlab.sweeps._variant import Variant

_HOME = {
    "Checkpoints": "_checkpoint",
    "conditions_key": "_keys",
    "group_key": "_keys",
    "text_key": "_keys",
    "Forecast": "_plan",
    "Segment": "_plan",
    "forecast": "_plan",
    "plan": "_plan",
    "Together": "_together",
    "denoise_together": "_together",
    "Variant": "_variant",
}
__all__ = [
    "Checkpoints",
    "Forecast",
    "Segment",
    "Together",
    "Variant",
    "conditions_key",
    "denoise_together",
    "forecast",
    "group_key",
    "plan",
    "text_key",
]
__getattr__ = lazy(__name__, _HOME)
