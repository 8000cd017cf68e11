"""Folders of sweeps as the tests of what reads them need: small clips, failures, processes at work; nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wanlab import runs
from wanlab.result import Result
from wanlab.runs import Failure, Point, RunRecord, SweepFile, Working
from wanlab.spec import GenerationSpec
from wanlab.sweeps import Grid

HOSTILE = '<img src=x onerror="window.pwned=1">'


def plan(out: str | Path, grid: Grid, forwards: Mapping[str, int] | None = None) -> list[Path]:
    """Write what a sweep plans; returns the folders of its points, none of which is there yet."""
    names = [runs.folder_name(spec, runs.run_id(spec.id, "")) for spec in grid]
    points = [
        Point(id=spec.id, settings=grid.settings(i), spec=spec.to_dict(), folder=names[i])
        for i, spec in enumerate(grid)
    ]
    base = grid.base.to_dict()
    runs.write_sweep(out, SweepFile(base=base, names=grid.names, points=points, forwards=dict(forwards or {})))
    return [Path(out) / name for name in names]


def record(spec: GenerationSpec, **changes: Any) -> RunRecord:
    return RunRecord(id=runs.run_id(spec.id, ""), spec=spec.to_dict(), **changes)


def finish(folder: Path, spec: GenerationSpec, *, seconds: float = 2.0, side: int = 32, **metrics: float) -> None:
    """A run that ended well: a clip whose colour moves and is of its seed."""
    steps = np.linspace(0, 200, 5, dtype=np.uint8)
    frames = np.zeros((5, side, side, 3), np.uint8)
    frames[..., 0] = steps[:, None, None]
    frames[..., 1:] = 40 + 30 * (spec.sampling.seed % 7)
    ended = record(spec, status="ok", timings={"denoise": seconds, "total": seconds}, metrics=metrics)
    Result(frames, None, spec, ended, 16.0).save(folder)


def break_off(folder: Path, spec: GenerationSpec, message: str = "out of luck", status: str = "failed") -> None:
    """A run that did not end well."""
    folder.mkdir(parents=True, exist_ok=True)
    error = Failure(type="RuntimeError", message=message, traceback_tail=f'  File "x.py", line 1\n{message}')
    runs.write_run(folder, record(spec, status=status, error=error), {})


def begin(folder: Path, spec: GenerationSpec) -> None:
    """A run that this process has in hand."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.begin_run(folder, record(spec))


def work(out: str | Path, **facts: Any) -> None:
    """This process says what it does."""
    runs.write_working(out, Working(**facts))
