"""Sweeps: many generations as one thing, planned before anything runs.

    grid = wanlab.grid(spec, cache=["none", "magcache"], seed=wanlab.seeds(4))
    grid.preview()

The names below load on first use: making a grid needs no torch until a point names a method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.sweeps._grid import Grid, grid, zip_
    from wanlab.sweeps._points import Zip, expand, seeds
    from wanlab.sweeps._preview import Preview

_HOME = {
    "Grid": "_grid",
    "grid": "_grid",
    "zip_": "_grid",
    "Preview": "_preview",
    "Zip": "_points",
    "expand": "_points",
    "seeds": "_points",
}
__all__ = ["Grid", "Preview", "Zip", "expand", "grid", "seeds", "zip_"]
__getattr__ = lazy(__name__, _HOME)
