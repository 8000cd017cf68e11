"""Give jobs to the workers of a Dask client, one at a time each, and see every one to its end whatever dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.sweeps._clients import GPU, distributed
from wanlab.watch import Cancelled

_POLL_SECONDS = 0.2  # between looks for the cancel file and for new workers
_WAIT_SECONDS = 15.0  # until it is told that there is no worker
_FUTILE = 3  # workers that may die at a job before any of its runs has begun
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Runs that one worker does together."""

    key: str
    cost: float
    """The longest go first."""
    equipment: str
    """What takes long to change: a worker goes on with what it has."""
    call: tuple[Any, ...]
    """A function of this package and its arguments, plain data. It claims each of the runs before it begins it."""
    records: Callable[[], Sequence[tuple[Path, runs.RunRecord]]]
    """Its runs that have no result: folder, and what to claim it with."""


@dataclass
class Dispatch:
    """The jobs of a sweep on a client's workers.

    A worker has one job at a time, so that whoever dies takes no others with it: Dask does its job again, and claims
    see to it that a run which ended is not. `run` raises KeyboardInterrupt and `Cancelled` once all workers stopped.
    """

    client: Any
    out: Path
    max_attempts: int = runs.MAX_ATTEMPTS
    telling: Callable[[], None] = lambda: None
    """Called while it waits."""
    _given: dict[Any, tuple[Job, str]] = field(default_factory=dict)
    """Future -> its job and the worker that it was given to."""
    _had: dict[str, str] = field(default_factory=dict)
    """Worker -> the equipment of its last job."""
    _crashes: dict[str, int] = field(default_factory=dict)
    """Job -> how often its open runs had crashed when it was given again."""
    _deaths: dict[str, int] = field(default_factory=dict)
    """Job -> workers that it lost."""
    _woken: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs. What cannot be done is written down in its runs."""
        left = list(jobs)
        try:
            self._run(left)
        except KeyboardInterrupt:
            runs.request_cancel(self.out)
            self._stop()
            raise
        if runs.is_cancelled(self.out):
            self._stop()
            raise Cancelled(f"The sweep in {self.out} was cancelled.")

    def _run(self, left: list[Job]) -> None:
        heard = time.monotonic()
        while (left or self._given) and not runs.is_cancelled(self.out):
            self._check()
            working = self.client.processing()
            left += self._lost(working)
            for worker in self._idle(working)[: len(left)]:
                self._give(worker, left.pop(left.index(self._next(worker, left))))
            if working:
                heard = time.monotonic()
            elif time.monotonic() - heard > _WAIT_SECONDS:
                _log.warning("Waiting for a worker: %s has none", self.client.scheduler.address)
                heard = time.monotonic()
            self._woken.wait(_POLL_SECONDS)
            self._woken.clear()
            left += self._collect()
            self.telling()

    def _check(self) -> None:
        if self.client.status != "running":
            raise WanlabError(
                f"The connection to the scheduler is {self.client.status}", remedy="Run it again: what ended well stays"
            )

    def _idle(self, working: Mapping[str, Sequence[str]]) -> list[str]:
        """Workers without a job of anybody; `working` has the keys of what each one does."""
        known = {key for keys in working.values() for key in keys}
        reserved = {worker for future, (_, worker) in self._given.items() if future.key not in known}
        return [worker for worker, keys in working.items() if not keys and worker not in reserved]

    def _lost(self, working: Mapping[str, Sequence[str]]) -> list[Job]:
        """Jobs whose worker died when there was no other one: Dask would wait for that address to come back."""
        known, again = {key for keys in working.values() for key in keys}, []
        for future, (job, worker) in list(self._given.items()):
            if not working or worker in working or future.key in known or future.done():
                continue
            del self._given[future]
            future.cancel()
            error = WanlabError(f"The worker at {worker} died", remedy="See what it wrote; it may lack memory")
            if self._got_further(job) or self._deaths[job.key] < _FUTILE:
                again.append(job)
            else:
                self._fail(job, error)
        return again

    def _next(self, worker: str, left: Sequence[Job]) -> Job:
        """What a worker is best given: for what it holds, else for what no other one does; the longest of those."""
        mine = self._had.get(worker)
        others = {job.equipment for job, _ in self._given.values()}
        return max(left, key=lambda job: (job.equipment == mine, job.equipment not in others, job.cost))

    def _give(self, worker: str, job: Job) -> None:
        function, *arguments = job.call
        deaths = self._deaths.get(job.key, 0)
        future = self.client.submit(
            function,
            *arguments,
            key=f"wanlab-{job.key}-{deaths}" if deaths else f"wanlab-{job.key}",
            pure=False,
            retries=0,
            workers=[worker],
            allow_other_workers=True,  # if that one dies
            resources=self._resources(worker),
        )
        future.add_done_callback(lambda _: self._woken.set())
        self._given[future] = (job, worker)
        self._had[worker] = job.equipment

    def _resources(self, worker: str) -> dict[str, float] | None:
        resources = self.client.scheduler_info()["workers"].get(worker, {}).get("resources", {})
        return {GPU: 1} if resources.get(GPU) else None

    def _collect(self) -> list[Job]:
        """Take what ended off the list; returns the jobs that are to be given again."""
        again = []
        for future in [future for future in self._given if future.done()]:
            job, _ = self._given.pop(future)
            if future.status == "finished":
                future.release()
                continue
            if future.status != "error":
                self._given.clear()
                raise WanlabError(
                    f"The scheduler lost a job: it is {future.status}", remedy="Run it again: what ended well stays"
                )
            error = future.exception()
            if isinstance(error, distributed().KilledWorker) and self._got_further(job):
                again.append(job)
            else:
                self._fail(job, error)
        return again

    def _got_further(self, job: Job) -> bool:
        """Whether a job whose workers died may come to an end: some run of it crashed that had not before."""
        left = [runs.num_crashes(folder) for folder, _ in job.records()]
        before, self._crashes[job.key] = self._crashes.get(job.key, 0), sum(left)
        self._deaths[job.key] = self._deaths.get(job.key, 0) + 1
        return sum(left) > before and any(number < self.max_attempts for number in left)

    def _fail(self, job: Job, error: BaseException) -> None:
        """Write into what is left of a job why it is not done."""
        _log.warning("%s: %s", type(error).__name__, error)
        for folder, record in job.records():
            try:
                claimed = runs.claim(folder, record, self.max_attempts)
            except WanlabError as why:  # it has told that it crashed too often
                _log.warning("%s", why)
                continue
            if claimed is not None:
                runs.fail(folder, claimed, error)

    def _stop(self) -> None:
        """Wait until the jobs ended, whose workers look for the cancel file; take back those that no worker has."""
        told = time.monotonic()
        while self._given and self.client.status == "running":
            taken = {key for keys in self.client.processing().values() for key in keys}
            for future in [future for future in self._given if future.done()]:
                del self._given[future]
            for future in self._given:
                if future.key not in taken:
                    future.cancel()
            if time.monotonic() - told > _WAIT_SECONDS:
                _log.warning("Waiting for %d workers to stop", len(self._given))
                told = time.monotonic()
            self._woken.wait(_POLL_SECONDS)
            self._woken.clear()
