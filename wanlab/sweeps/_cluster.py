"""A sweep on the workers of a `distributed.Client`: one task for points that share work, run there as here.

What travels is plain data. Claims make every run happen once, whatever Dask does when a worker dies.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wanlab import runs
from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.spec import GenerationSpec
from wanlab.spec.identity import content_id
from wanlab.sweeps._claimed import Task
from wanlab.sweeps._clients import checked, enter
from wanlab.sweeps._dispatch import Dispatch, Job
from wanlab.sweeps._models import Models
from wanlab.sweeps._split import Line, spread
from wanlab.sweeps._telling import Telling
from wanlab.sweeps._watching import Watching
from wanlab.sweeps._work import Options, Work, equipment
from wanlab.watch import Cancelled

# In the process that asks


def run_on(client: Any, work: Work, telling: Telling) -> None:
    """Run the work on a client's workers, until all of it has ended, telling how far it is.

    Raises KeyboardInterrupt and `Cancelled` when the workers have stopped, WanlabError for a client that sweeps do not
    run on (see `checked`) and where the scheduler is lost.
    """
    client = checked(client)
    device = torch.device(work.options.device) if work.options.device != "auto" else None
    if device is not None and device.index is not None:
        raise WanlabError(
            f"device={work.options.device!r} is one GPU, and every worker has its own",
            remedy='device="cuda", with local_cluster(gpus=[...])',
        )
    dispatch = Dispatch(client, work.out, work.options.max_attempts, telling)
    try:
        with telling:
            dispatch.run(jobs(work, max(1, len(client.nthreads()))))
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.run(let_go, str(work.out), on_error="ignore")


def jobs(work: Work, workers: int) -> list[Job]:
    """What is left of the work, for so many workers: a job for each group, more only where a worker would wait."""
    tasks = {task.run: task for task in work.open_tasks()}
    lines = []
    for group in work.groups(list(tasks.values())):
        lines.append(Line.of(work.model_of(group[0]), {task.run: task.spec for task in group}))
    return [_job(work, [tasks[key] for key in line.keys], line.cost()) for line in spread(lines, workers)]


def _job(work: Work, tasks: Sequence[Task], cost: float) -> Job:
    data = {
        "out": str(work.out),
        "folder": os.getcwd(),
        "numerics": runs.NUMERICS,
        "specs": [task.spec.to_dict() for task in tasks],
        "runs": [task.run for task in tasks],
        "options": asdict(work.options),
        "definitions": {
            task.spec.model: work.model_of(task).definition.model_dump(mode="json", by_alias=True) for task in tasks[:1]
        },
    }

    def records() -> list[tuple[Path, runs.RunRecord]]:
        open_runs = {task.run for task in work.open_tasks()}
        mine = [task for task in tasks if task.run in open_runs]
        return [(task.folder, task.record(work.model_of(task).fingerprint)) for task in mine]

    key = content_id({"runs": sorted(data["runs"]), "out": data["out"], "time": runs.now()})
    return Job(key, cost, equipment(tasks[0].spec), (work_on, data), records)


# In the worker

_lock = threading.Lock()  # several workers may be threads of one process, whose model does one thing at a time
_models: dict[str, Models] = {}
_watches: dict[str, Watching] = {}


def work_on(data: Mapping[str, Any]) -> str:
    """Run some points in this process, as `run_here` does; how that ended, in a word."""
    with _lock:
        enter(data["folder"])
        out, options = Path(data["out"]), Options(**data["options"])
        if data["numerics"] != runs.NUMERICS:
            raise WanlabError(
                f"This worker computes with numerics {runs.NUMERICS}, and the sweep with {data['numerics']}",
                remedy="Install the same version of wanlab everywhere",
            )
        specs = [GenerationSpec.from_json(spec) for spec in data["specs"]]
        work = Work(out, specs, options, _models_for(data["definitions"], options.device))
        if [task.run for task in work.tasks] != data["runs"]:
            raise WanlabError(
                "This worker finds other weights for the model than the process that asked",
                remedy="Make both see the same files",
            )
        return _run(work)


def _run(work: Work) -> str:
    before = _watches.get(str(work.out))
    watch = _watches[str(work.out)] = Watching(work.out)
    if before is not None:
        executed = before.forwards()
        watch.working, watch.forwards = before.working, lambda: executed
    try:
        with watch:
            work.run(watch)
    except Cancelled:
        return "cancelled"
    finally:
        executed_now = watch.forwards()
        watch.forwards = lambda: executed_now
        watch.working = watch.working.with_(current="", step=0, num_steps=0)
        watch.tell(force=True)
    return "done"


def _models_for(definitions: Mapping[str, Any], device: str) -> Models:
    """The models of this process, those of the last job if they are the same ones: what is loaded stays."""
    known = _models.get(device)
    if known is None:
        known = _models[device] = Models((), device)
    for name, definition in definitions.items():
        known.define(name, Definition.of(definition))
    return known


def let_go(out: str) -> None:
    """Forget a sweep that ended."""
    _watches.pop(out, None)
    with contextlib.suppress(WanlabError):
        runs.end_working(out)
