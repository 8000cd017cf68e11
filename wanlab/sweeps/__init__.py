"""Sweeps: many generations as one thing, planned before anything runs.

    grid = wanlab.grid(spec, cache=["none", "magcache"], seed=wanlab.seeds(4))
    grid.preview()

The names below load on first use: making a grid needs no torch until a point names a method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.sweeps._experiment import Experiment, default_out, read_experiment, refuse, run_experiment, run_points
    from wanlab.sweeps._grid import Grid, grid, zip_
    from wanlab.sweeps._log import log
    from wanlab.sweeps._point import PointOptions, run_point
    from wanlab.sweeps._points import Zip, expand, seeds
    from wanlab.sweeps._preview import Preview

_HOME = {
    "Experiment": "_experiment",
    "default_out": "_experiment",
    "read_experiment": "_experiment",
    "refuse": "_experiment",
    "run_points": "_experiment",
    "run_experiment": "_experiment",
    "log": "_log",
    "PointOptions": "_point",
    "run_point": "_point",
    "Grid": "_grid",
    "grid": "_grid",
    "zip_": "_grid",
    "Preview": "_preview",
    "Zip": "_points",
    "expand": "_points",
    "seeds": "_points",
}
__all__ = [
    "Experiment",
    "Grid",
    "PointOptions",
    "Preview",
    "Zip",
    "default_out",
    "expand",
    "grid",
    "log",
    "read_experiment",
    "refuse",
    "run_experiment",
    "run_point",
    "run_points",
    "seeds",
    "zip_",
]
__getattr__ = lazy(__name__, _HOME)
