"""Sweeps: many generations as one thing, planned before anything runs, sharing what they have in common.

    grid = wanlab.grid(spec, cache=["none", "magcache"], seed=wanlab.seeds(4))
    grid.preview()
    wanlab.run_sweep(grid, out="runs/caches")

The names below load on first use: making a grid needs no torch until a point names a method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.sweeps._checkpoint import Checkpoints
    from wanlab.sweeps._clients import local_cluster, slurm_options
    from wanlab.sweeps._experiment import Experiment, default_out, read_experiment, refuse, run_experiment, run_points
    from wanlab.sweeps._grid import Grid, grid, zip_
    from wanlab.sweeps._keys import conditions_key, group_key, text_key
    from wanlab.sweeps._log import log, shared_folder
    from wanlab.sweeps._plan import Forecast, Segment, forecast, plan
    from wanlab.sweeps._point import PointOptions, run_point
    from wanlab.sweeps._points import Zip, expand, seeds
    from wanlab.sweeps._preview import Preview
    from wanlab.sweeps._progress import SweepProgress
    from wanlab.sweeps._sweep import run_sweep
    from wanlab.sweeps._together import Together, denoise_together
    from wanlab.sweeps._variant import Variant

_HOME = {
    "Experiment": "_experiment",
    "default_out": "_experiment",
    "read_experiment": "_experiment",
    "refuse": "_experiment",
    "run_points": "_experiment",
    "run_experiment": "_experiment",
    "log": "_log",
    "shared_folder": "_log",
    "PointOptions": "_point",
    "run_point": "_point",
    "Checkpoints": "_checkpoint",
    "local_cluster": "_clients",
    "slurm_options": "_clients",
    "Grid": "_grid",
    "grid": "_grid",
    "zip_": "_grid",
    "conditions_key": "_keys",
    "group_key": "_keys",
    "text_key": "_keys",
    "Forecast": "_plan",
    "Segment": "_plan",
    "forecast": "_plan",
    "plan": "_plan",
    "Zip": "_points",
    "expand": "_points",
    "seeds": "_points",
    "Preview": "_preview",
    "SweepProgress": "_progress",
    "run_sweep": "_sweep",
    "Together": "_together",
    "denoise_together": "_together",
    "Variant": "_variant",
}
__all__ = [
    "Checkpoints",
    "Experiment",
    "Forecast",
    "Grid",
    "PointOptions",
    "Preview",
    "Segment",
    "SweepProgress",
    "Together",
    "Variant",
    "Zip",
    "conditions_key",
    "default_out",
    "denoise_together",
    "expand",
    "forecast",
    "grid",
    "group_key",
    "local_cluster",
    "log",
    "plan",
    "read_experiment",
    "refuse",
    "run_experiment",
    "run_point",
    "run_points",
    "run_sweep",
    "seeds",
    "shared_folder",
    "slurm_options",
    "text_key",
    "zip_",
]
__getattr__ = lazy(__name__, _HOME)
