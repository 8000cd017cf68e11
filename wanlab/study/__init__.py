"""Studies of results and methods. The names that need torch load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy
from wanlab.study.side_by_side import Comparison, compare

if TYPE_CHECKING:
    from wanlab.study._counterfactual import Counterfactual, counterfactual

_HOME = {"Counterfactual": "_counterfactual", "counterfactual": "_counterfactual"}
__all__ = ["Comparison", "Counterfactual", "compare", "counterfactual"]
__getattr__ = lazy(__name__, _HOME)
