"""The worker threads, the queue of each, and what happens to them when the process ends or forks."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from wanlab import pipeline
from wanlab.jobs._folder import JobFolder
from wanlab.jobs._job import Job
from wanlab.sampling import OnStep
from wanlab.spec import GenerationSpec

_EXIT_SECONDS = 60.0  # that the end of the process waits for the last step
_log = logging.getLogger(__name__)


class _Worker:
    """The daemon thread of one device and its jobs, the running one first; started with the first job."""

    def __init__(self, device: str) -> None:
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name=f"wanlab-{device}", daemon=True).start()

    def put(self, job: Job) -> None:
        job._line = self.ahead
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def pending(self) -> list[Job]:
        """The unfinished jobs in order."""
        with self._changed:
            return [job for job in self._jobs if not job.done()]

    def ahead(self, job: Job) -> int:
        """How many unfinished jobs come before this one."""
        jobs = self.pending()
        return jobs.index(job) if job in jobs else 0

    def _work(self) -> None:
        while True:
            with self._changed:
                self._jobs = [job for job in self._jobs if not job.done()]
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs[0]
            try:
                job._run()
            except BaseException:  # noqa: BLE001 - a slip of ours must not end the thread that all later jobs wait for
                _log.exception("Running %r", job)
            with self._changed:
                self._jobs.remove(job)
            del job  # otherwise the last clip stays in memory until the next job


_workers: dict[str, _Worker] = {}
_lock = threading.Lock()


def submit(
    model: Any,
    spec: GenerationSpec | None = None,
    /,
    *,
    on_step: OnStep | None = None,
    folder: str | Path | None = None,
    **changes: Any,
) -> Job:
    """Queue a generation on the worker of the model's device and return its `Job` at once.

    With `folder` the job keeps its record there from now on (pending, running, then what became of it) and writes the
    complete run into it at the end; `wanlab.open_result(folder)` reads it, after a restart of the kernel too.
    `on_step(step, sigma, latents, denoised)` is called in the worker's thread.
    A spec that is wrong raises WanlabError here, in the cell that made it, not later in the worker; so does a folder
    that cannot be written and one that holds a run which ended well or is in hand.
    """
    spec = pipeline.full_spec(model, spec, **changes)
    pipeline.checked(model, spec)
    job = Job(model, spec, on_step, None if folder is None else JobFolder(folder, model, spec))
    with _lock:
        name = _device_name(model.device)
        worker = _workers.get(name) or _workers.setdefault(name, _Worker(name))
    worker.put(job)
    return job


def pending(device: Any = None) -> list[Job]:
    """The unfinished jobs, of one device or of all, in the order they were submitted: running ones first."""
    asked = None if device is None else _device_name(device)
    with _lock:
        workers = [worker for name, worker in _workers.items() if asked in (None, name)]
    return sorted((job for worker in workers for job in worker.pending()), key=lambda job: job.number)


def _device_name(device: Any) -> str:
    """One name for a device: "cuda" is "cuda:0"."""
    return "cuda:0" if str(device) == "cuda" else str(device)


@atexit.register
def _stop() -> None:
    """Cut short what still runs: a thread inside torch while the interpreter goes down aborts the process.

    Nobody asked for the end of these runs, so their records say crashed, as after a kill: a kernel that is restarted
    may end either way.
    """
    jobs = pending()
    for job in jobs:
        job.cut_short()
    wait([job._future for job in jobs], timeout=_EXIT_SECONDS)


def _forget() -> None:
    """A forked process has no worker threads, and the jobs are not its own."""
    global _lock
    _lock = threading.Lock()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
