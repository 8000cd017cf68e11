"""Generation in the background: one worker thread a device, first in first out.

`submit` returns at once with a `Job`; the kernel stays free for widgets and other cells. The worker only ever runs
`pipeline.run`, so a job's result equals that of `generate`.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import traceback
import weakref
from collections.abc import Generator
from concurrent.futures import Future, wait
from typing import Any, Literal

from wanlab import pipeline
from wanlab.pipeline import Result
from wanlab.sampling import OnStep
from wanlab.spec import GenerationSpec
from wanlab.watch import Cancelled, Progress, Watch

_EXIT_SECONDS = 60.0  # that the end of the process waits for the last step

Status = Literal["queued", "running", "done", "failed", "cancelled"]


class Job:
    """One submitted generation: `.progress`, `.status`, `.cancel()`, `.result()`, and `await job` in an async cell."""

    def __init__(self, model: Any, spec: GenerationSpec, on_step: OnStep | None = None) -> None:
        self.spec = spec
        self._model: Any = model
        self._watch = Watch(on_step)
        self._future: Future[Result] = Future()
        self._begun = False
        self._lock = threading.Lock()

    @property
    def status(self) -> Status:
        """ "queued", "running", "done", "failed" or "cancelled"."""
        if not self._future.done():
            return "running" if self._begun else "queued"
        error = self._future.exception()
        if error is None:
            return "done"
        return "cancelled" if isinstance(error, Cancelled) else "failed"

    @property
    def progress(self) -> Progress:
        """Stage, step, seconds so far, seconds left (None while unknown) and the fraction done, at this moment."""
        return self._watch.progress

    def done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self._future.done()

    def cancel(self) -> None:
        """Ask the job to stop: a queued one never starts, a running one ends within one step. Returns at once."""
        self._watch.cancel()
        with self._lock:
            if not self._begun and not self._future.done():
                self._model = None
                self._future.set_exception(Cancelled("Cancelled before it started."))

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result; `timeout` in seconds.

        Interrupting the wait (Ctrl-C, the notebook's stop button) cancels the job, waits for its end and raises on.
        Raises what the generation raised, `Cancelled` after `cancel()`, TimeoutError when the time is over.
        """
        try:
            return self._future.result(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self._future.exception()
            raise

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait().__await__()

    async def _wait(self) -> Result:
        try:
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _run(self) -> None:
        """Run in the worker's thread; any way out settles the future and lets go of the model and of frames' locals."""
        with self._lock:
            if self._future.done():
                return
            self._begun = True
        try:
            result = pipeline.run(self._model, self.spec, self._watch)
        except BaseException as error:  # noqa: BLE001 - it is handed to whoever waits for the job
            _clear_frames(error)
            self._model = None
            self._future.set_exception(error)
        else:
            self._model = None
            self._future.set_result(result)

    def __repr__(self) -> str:
        return f"Job({self.status}, {self.progress})"


def _clear_frames(error: BaseException | None) -> None:
    """Empty the frames of an error and of those it came from: their locals would pin the device's memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class _Worker:
    """The daemon thread of one device and its queue; started with the first job."""

    def __init__(self, device: str) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"wanlab-{device}", daemon=True).start()

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            job._run()
            del job  # otherwise the last clip stays in memory until the next job


_workers: dict[str, _Worker] = {}
_workers_lock = threading.Lock()
_unfinished: weakref.WeakSet[Job] = weakref.WeakSet()


@atexit.register
def _stop() -> None:
    """Cancel what still runs: a thread inside torch while the interpreter goes down aborts the process."""
    jobs = [job for job in _unfinished if not job.done()]
    for job in jobs:
        job.cancel()
    wait([job._future for job in jobs], timeout=_EXIT_SECONDS)


def submit(model: Any, spec: GenerationSpec | None = None, /, *, on_step: OnStep | None = None, **changes: Any) -> Job:
    """Queue a generation on the worker of the model's device and return its `Job` at once.

    A spec that is wrong raises WanlabError here, in the cell that made it, not later in the worker.
    `on_step(step, sigma, latents, denoised)` is called in the worker's thread.
    """
    spec = pipeline.full_spec(model, spec, **changes)
    pipeline.checked(model, spec)
    job = Job(model, spec, on_step)
    with _workers_lock:
        device = str(model.device)
        worker = _workers.get(device) or _workers.setdefault(device, _Worker(device))
    _unfinished.add(job)
    worker.put(job)
    return job
