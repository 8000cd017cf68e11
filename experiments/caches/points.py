"""Three operating points of every cache, from careful to bold, for a given number of steps.

Where a paper or its code names settings, these are they; the others were chosen on one prompt so that the points of all
methods lie between about 1.3 and 3 times the speed.
"""

from __future__ import annotations

from typing import Any

Points = dict[str, dict[str, dict[str, Any]]]


def every(num_steps: int, period: int, warm: float = 0.1) -> list[bool]:
    """A mask that computes the first tenth of the steps, then one step in `period`, and the last."""
    first = max(1, round(num_steps * warm))
    return [i < first or (i - first) % period == period - 1 or i == num_steps - 1 for i in range(num_steps)]


def points(num_steps: int, constants: dict[str, dict[str, Any]]) -> Points:
    """label -> name of the point -> the spec's cache; `constants` are a calibration's options by method."""
    mag, tea = ({"method": name, **constants[name]} for name in ("magcache", "teacache"))
    return {
        "fixed": {f"every {k}": {"method": "fixed", "mask": every(num_steps, k)} for k in (2, 3, 4)},
        "magcache": {
            "0.12, K2": {**mag, "threshold": 0.12, "max_skip": 2},
            "0.12, K4": {**mag, "threshold": 0.12, "max_skip": 4},
            "0.24, K6": {**mag, "threshold": 0.24, "max_skip": 6},
        },
        "teacache": {f"{speed:g}x wanted": {**tea, "speedup": speed} for speed in (1.5, 2.0, 2.5)},
        "easycache": {f"{t:g}": {"method": "easycache", "threshold": t} for t in (0.02, 0.05, 0.1)},
        "first_block": {f"{t:g}": {"method": "first_block", "threshold": t} for t in (0.03, 0.05, 0.1)},
        "dbcache": {
            f"F1B0, {t:g}": {"method": "dbcache", "num_first": 1, "threshold": t} for t in (0.04, 0.08, 0.16)
        },
        "adacache": {
            "slow, at most 2": {"method": "adacache", "codebook": "slow", "max_interval": 2},
            "slow": {"method": "adacache", "codebook": "slow"},
            "fast": {"method": "adacache", "codebook": "fast"},
        },
        "seacache": {f"{t:g}": {"method": "seacache", "threshold": t} for t in (0.1, 0.25, 0.5)},
        "taylorseer": {f"every {k}": {"method": "taylorseer", "interval": k} for k in (2, 3, 5)},
        "taylorseer, all": {
            f"every {k}": {"method": "taylorseer", "interval": k, "modules": "all"} for k in (2, 3, 5)
        },
        "pab": {
            "self 2, cross 5": {"method": "pab"},
            "self 3, cross 6": {"method": "pab", "self_range": 3, "cross_range": 6},
            "self 4, cross 8, ffn 2": {"method": "pab", "self_range": 4, "cross_range": 8, "ffn_range": 2},
        },
    }  # fmt: skip
