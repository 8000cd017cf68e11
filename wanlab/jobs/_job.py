"""One submitted generation: how far it is, how it ended, and how to stop it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from wanlab import pipeline
from wanlab.errors import WanlabError
from wanlab.jobs._folder import JobFolder
from wanlab.pipeline import Result
from wanlab.sampling import OnStep
from wanlab.spec import GenerationSpec
from wanlab.watch import STAGES, Cancelled, Lines, Progress, Watch

Status = Literal["queued", "running", "done", "failed", "cancelled"]
_LOOK_SECONDS = 0.25  # between looks at the progress of a job that a cell waits for
_numbers = itertools.count()
_log = logging.getLogger(__name__)


class Job:
    """One submitted generation: `.progress`, `.status`, `.cancel()`, `.result()`, and `await job` in an async cell."""

    def __init__(
        self, model: Any, spec: GenerationSpec, on_step: OnStep | None = None, folder: JobFolder | None = None
    ) -> None:
        self.spec = spec
        self.number = next(_numbers)
        """Counts the jobs of this process, in the order they were submitted."""
        self.unsaved: Result | None = None
        """The result of a job that failed because its folder could not be written; `unsaved.save(path)` keeps it."""
        self._model: Any = model
        self._record = folder
        self._watch = Watch(on_step, stages=STAGES if folder is None else (*STAGES, "save"))
        self._future: Future[Result] = Future()
        self._claimed = self._begun = self._over = False
        self._line: Callable[[Job], int] = lambda job: 0
        self._callbacks: list[Callable[[Job], Any]] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

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

    @property
    def folder(self) -> Path | None:
        """Where the job keeps its record and its result; None for a job that writes nothing."""
        return None if self._record is None else self._record.path

    @property
    def ahead(self) -> int:
        """How many unfinished jobs of its device are in front of it; 0 when it runs or is over."""
        return 0 if self.done() else self._line(self)

    @property
    def error(self) -> BaseException | None:
        """What the generation raised; None while it runs and when it ended well."""
        return self._future.exception() if self.done() else None

    def done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self._future.done()

    def cancel(self) -> None:
        """Ask the job to stop: a queued one never starts, a running one ends within one step. Returns at once."""
        self._check_process()
        self._watch.cancel()
        if self._claim():
            self._settle(Cancelled("Cancelled before it started."))

    def cut_short(self) -> None:
        """Cancel because the process ends; the record says crashed."""
        if self._record is not None:
            self._record.cut_short()
        self.cancel()

    def on_end(self, fn: Callable[[Job], Any]) -> None:
        """Call `fn(job)` once when the job is over, in the thread that ends it; at once if it is over already.

        What `fn` raises is logged.
        """
        with self._lock:
            if not self._over:
                self._callbacks.append(fn)
                return
        self._tell(fn)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result; `timeout` in seconds. A long wait tells the progress, as `generate` does.

        Interrupting the wait (Ctrl-C, the notebook's stop button) cancels the job, waits for its end and raises on.
        Raises what the generation raised, `Cancelled` after `cancel()`, TimeoutError when the time is over.
        """
        self._check_process()
        lines, end = Lines(), None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                left = _LOOK_SECONDS if end is None else min(_LOOK_SECONDS, end - time.monotonic())
                try:
                    return self._future.result(max(0.0, left))
                except TimeoutError:
                    if self.done():  # in this moment, or with a TimeoutError of its own
                        return self._future.result()
                    if end is not None and time.monotonic() >= end:
                        raise
                lines.show(lambda: self.progress)
        except KeyboardInterrupt:
            self.cancel()
            self._future.exception()
            raise
        finally:
            lines.close(self.progress)

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait().__await__()

    async def _wait(self) -> Result:
        self._check_process()
        try:
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _check_process(self) -> None:
        """Raise WanlabError in a process that was forked off: its copy of the job never ends."""
        if os.getpid() != self._pid:
            raise WanlabError(
                "This job runs in the process that submitted it", remedy="Wait for it and cancel it there"
            )

    def _claim(self) -> bool:
        """Whether the caller is the first to take the job: the worker to run it, or who cancels it before that."""
        with self._lock:
            first, self._claimed = not self._claimed, True
            return first

    def _run(self) -> None:
        """Run in the worker's thread; any way out settles the future and lets go of the model and of frames' locals."""
        if not self._claim():
            return
        self._begun = True
        try:
            with self._watch:
                result = self._generate()
        except BaseException as error:  # noqa: BLE001 - it is handed to whoever waits for the job
            self._settle(error)
        else:
            self._settle(result)

    def _generate(self) -> Result:
        if self._record is None:
            return pipeline.run(self._model, self.spec, self._watch)
        self._record.begin()
        result = pipeline.run(self._model, self.spec, self._watch)
        self._watch.enter("save")
        self.unsaved = result
        self._record.save(result)
        self.unsaved = None
        return result

    def _settle(self, outcome: Result | BaseException) -> None:
        """End the job, once."""
        self._model = None
        if isinstance(outcome, BaseException):
            try:
                if self._record is not None:
                    self._record.fail(outcome)
            except Exception:  # noqa: BLE001 - whoever waits for the job must hear of its end, whatever the record says
                _log.exception("Recording the end of %r", self)
            _clear_frames(outcome)
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)
        with self._lock:
            self._over, callbacks, self._callbacks = True, self._callbacks, []
        for fn in callbacks:
            self._tell(fn)

    def _tell(self, fn: Callable[[Job], Any]) -> None:
        try:
            fn(self)
        except (Exception, Cancelled):  # noqa: BLE001 - the worker goes on, as in concurrent.futures
            _log.exception("Calling %r at the end of %r", fn, self)

    def __repr__(self) -> str:
        return f"Job({self.status}, {self.progress})"


def _clear_frames(error: BaseException | None) -> None:
    """Empty the frames of an error and of those it came from: their locals would pin the device's memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
