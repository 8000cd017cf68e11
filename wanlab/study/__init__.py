"""Studies of results and methods. The names that need torch load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy
from wanlab.study.side_by_side import Comparison, compare

if TYPE_CHECKING:
    from wanlab.study._calibrate import calibrate, read_calibration
    from wanlab.study._calibration import Calibration
    from wanlab.study._plan import show_plan

_HOME = {
    "Calibration": "_calibration",
    "calibrate": "_calibrate",
    "read_calibration": "_calibrate",
    "show_plan": "_plan",
}
__all__ = ["Calibration", "Comparison", "calibrate", "compare", "read_calibration", "show_plan"]
__getattr__ = lazy(__name__, _HOME)
