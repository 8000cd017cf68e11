"""Studies of results and methods."""

from wanlab.study.side_by_side import Comparison, compare

__all__ = ["Comparison", "compare"]
