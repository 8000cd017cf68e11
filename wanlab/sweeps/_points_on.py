"""The points of an experiment on the workers of a `distributed.Client`: one task each, in a kernel of the worker."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.spec.identity import content_id
from wanlab.sweeps._clients import checked, enter
from wanlab.sweeps._dispatch import Dispatch, Job
from wanlab.sweeps._point import PointOptions, run_point
from wanlab.sweeps._telling import Telling
from wanlab.watch import Cancelled

_log = logging.getLogger(__name__)


def run_points_on(
    client: Any,
    out: Path,
    notebook: Path,
    points: Sequence[runs.Point],
    options: PointOptions,
    telling: Telling,
) -> None:
    """Run points as `run_point` does, each on some worker, whose kernel sees the worker's GPU.

    Raises KeyboardInterrupt when the workers have stopped, WanlabError for a client that sweeps do not run on.
    """
    client = checked(client)
    jobs = [_job(out, notebook, point, options) for point in points]
    with contextlib.suppress(Cancelled), telling:  # the records tell it
        Dispatch(client, out, options.max_attempts, telling).run(jobs)


def _job(out: Path, notebook: Path, point: runs.Point, options: PointOptions) -> Job:
    data = {
        "out": str(out),
        "folder": os.getcwd(),
        "notebook": str(notebook),
        "point": point.model_dump(mode="json"),
        "options": asdict(options) | {"cwd": str(options.cwd)},
    }

    def records() -> list[tuple[Path, runs.RunRecord]]:
        folder = out / point.folder
        with contextlib.suppress(WanlabError):  # none yet
            if runs.read_run(folder).status == "ok":
                return []
        return [(folder, runs.RunRecord(id=point.id, params=dict(point.settings), env=runs.environment()))]

    return Job(content_id({"point": point.id, "out": str(out), "time": runs.now()}), 1, "", (point_on, data), records)


def point_on(data: Mapping[str, Any]) -> str:
    """Run one point in this process, a worker; how that ended, in a word."""
    enter(data["folder"])
    out, options = Path(data["out"]), data["options"]
    if runs.is_cancelled(out):
        return "cancelled"
    options = PointOptions(**{**options, "cwd": Path(options["cwd"])})
    try:
        run_point(out, Path(data["notebook"]), runs.Point.parse(data["point"]), options)
    except runs.GaveUp as error:
        _log.warning("%s", error)
        return "crashed"
    finally:
        runs.end_working(out)
    return "done"
