"""Studies of results and methods. The names below load on first use: comparing results needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.study._calibrate import calibrate, read_calibration
    from wanlab.study._calibration import Calibration
    from wanlab.study._cards import Card
    from wanlab.study._counterfactual import Counterfactual, counterfactual
    from wanlab.study._estimate import CachePrediction, Estimate, Floor, estimate
    from wanlab.study._measure import Samples, Speedup, Timing, measure
    from wanlab.study._plan import show_plan
    from wanlab.study.side_by_side import Comparison, compare

_HOME = {
    "calibrate": "_calibrate",
    "read_calibration": "_calibrate",
    "Calibration": "_calibration",
    "Card": "_cards",
    "Counterfactual": "_counterfactual",
    "counterfactual": "_counterfactual",
    "CachePrediction": "_estimate",
    "Estimate": "_estimate",
    "Floor": "_estimate",
    "estimate": "_estimate",
    "Samples": "_measure",
    "Speedup": "_measure",
    "Timing": "_measure",
    "measure": "_measure",
    "show_plan": "_plan",
    "Comparison": "side_by_side",
    "compare": "side_by_side",
}
__all__ = [
    "CachePrediction",
    "Calibration",
    "Card",
    "Comparison",
    "Counterfactual",
    "Estimate",
    "Floor",
    "Samples",
    "Speedup",
    "Timing",
    "calibrate",
    "compare",
    "counterfactual",
    "estimate",
    "measure",
    "read_calibration",
    "show_plan",
]
__getattr__ = lazy(__name__, _HOME)
