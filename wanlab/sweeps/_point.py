"""One point of an experiment: claimed, executed in a kernel of its own, and written down whatever happens."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wanlab import runs
from wanlab.errors import WanlabError, shorten, unknown
from wanlab.sweeps._log import LOGGED, RUN_VARIABLE, logged
from wanlab.sweeps._notebook import Notebook, read_notebook

NOTEBOOK, FAILED, LOG = "notebook.ipynb", "failed.ipynb", "log.txt"
_STALE = ("keep", "rerun")
_LOOK_SECONDS = 0.5  # between calls of who tells the progress
_TAIL = 4000  # characters of a traceback that are kept


@dataclass(frozen=True)
class PointOptions:
    """How the points of one experiment run; it can be sent to another process."""

    cwd: Path
    """Where the kernels start: the notebook's folder, so that its relative paths mean what they mean by hand."""
    timeout: float | None = 3600.0
    """Seconds a cell; None: any."""
    stale: Literal["keep", "rerun"] = "keep"
    max_attempts: int = 3

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise WanlabError(f"timeout = {shorten(self.timeout)}", remedy="Give seconds, or None for no limit")
        if self.stale not in _STALE:
            raise unknown("stale", self.stale, _STALE)
        if not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise WanlabError(f"max_attempts = {shorten(self.max_attempts)}", remedy="Give a whole number from 1 on")


def run_point(
    out: Path, notebook: Path, point: runs.Point, options: PointOptions, telling: Callable[[], None] = lambda: None
) -> runs.RunRecord | None:
    """Run one point of the sweep in `out` and write its record; None if it is done or in other hands.

    Whatever goes wrong inside (errors, kernels that die, hang or do not start, too much output) becomes the record of
    that run; `telling` is called now and then while it runs. A cancelled sweep and Ctrl-C end the running cell at once;
    the latter is raised when that is written. Raises GaveUp for a point that crashed `max_attempts` times, WanlabError
    for a folder that cannot be written.
    """
    with _Interrupt() as interrupt:
        return _run_point(out, notebook, point, options, interrupt, telling)


def _run_point(
    out: Path,
    notebook: Path,
    point: runs.Point,
    options: PointOptions,
    interrupt: _Interrupt,
    telling: Callable[[], None],
) -> runs.RunRecord | None:
    folder = out / point.folder
    left = _files(folder)
    source = read_notebook(notebook)
    settings = source.settings(point.settings)
    seed = settings.get("seed")
    record = runs.RunRecord(
        id=point.id,
        params=settings,
        seeds=[seed] if isinstance(seed, int) and not isinstance(seed, bool) else [],
        env=runs.environment(),
    )
    record = runs.claim(folder, record, options.max_attempts, options.stale)
    if record is None:
        return None
    try:
        for name in (*left, LOGGED):
            (folder / name).unlink(missing_ok=True)
        work = _Work(out, folder, source, point, options, interrupt)
        _in_thread(work, telling)
        return work.write(record)
    except Exception as error:  # noqa: BLE001 - of whatever kind, it is this run's failure, and the next one goes on
        return runs.fail(folder, record, error)


def _files(folder: Path) -> list[str]:
    """What an earlier attempt kept, but its log."""
    try:
        return [entry.path for entry in runs.read_run(folder).artifacts if entry.path != LOG]
    except WanlabError:
        return []


class _Interrupt:
    """Ctrl-C is noted while the body runs, and raised after it: it never falls between a cell and its record."""

    def __init__(self) -> None:
        self.has_come = False
        self._previous: Any = None

    def __enter__(self) -> _Interrupt:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._previous = handler
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: object) -> None:
        self.has_come = True

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if self.has_come:
            raise KeyboardInterrupt


def _in_thread(work: Callable[[], None], meanwhile: Callable[[], None]) -> None:
    """Do `work` in a thread of its own, as this one may have an event loop, and raise what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, name="wanlab-notebook", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)
        meanwhile()
    if raised:
        raise raised[0]


class _Work:
    """The execution of one point, and what is written of it."""

    def __init__(
        self,
        out: Path,
        folder: Path,
        source: Notebook,
        point: runs.Point,
        options: PointOptions,
        interrupt: _Interrupt,
    ) -> None:
        self._out, self._folder, self._source, self._point = out, folder, source, point
        self._options, self._interrupt = options, interrupt
        self._session: Any = None
        self._stop: Any = None
        self._began, self._seconds = runs.now(), 0.0

    def __call__(self) -> None:
        """Execute the notebook."""
        from wanlab.sweeps._engine import Session, execute
        from wanlab.sweeps._outputs import Log

        began = time.monotonic()
        log = Log(self._folder / LOG)
        try:
            self._session = Session(
                log,
                {RUN_VARIABLE: str(self._folder.absolute())},
                self._options.cwd,
                self._source.path.name,
                self._options.timeout,
                lambda: self._interrupt.has_come or runs.is_cancelled(self._out),
                self._tell,
            )
            self._stop = execute(self._source.node, self._point.settings, self._source.kernel, self._session)
        finally:
            log.close()
        self._seconds = time.monotonic() - began

    def _tell(self, cell: int, num_cells: int, text: str) -> None:
        """Say what this process does; not being able to is no reason to end."""
        words = f"{self._point.folder}: {text}" if text else self._point.folder
        now = runs.Working(started=self._began, current=_utf8(words), step=cell, num_steps=num_cells)
        with contextlib.suppress(WanlabError):
            runs.write_working(self._out, now)

    def write(self, record: runs.RunRecord) -> runs.RunRecord:
        """Write the record, the notebook and what was logged."""
        from wanlab.sweeps._outputs import shrink

        stop, found = self._stop, logged(self._folder)
        record = record.with_(
            status="ok" if stop is None else stop.kind,
            metrics=found.metrics,
            env=record.env | found.env,
            timings={"total": round(self._seconds, 3)},
            ended=runs.now(),
        )
        artifacts: dict[str, runs.Source] = runs.shared({LOG: self._folder / LOG})
        if stop is not None:
            why = runs.Failure(type=stop.type, message=_utf8(stop.message), traceback_tail=_utf8(stop.trace)[-_TAIL:])
            record = record.with_(error=why.model_dump())
        if record.status != "cancelled":
            artifacts |= runs.shared({name: self._folder / name for name in found.files})
            artifacts[NOTEBOOK if stop is None else FAILED] = shrink(self._session.node, [LOG, *found.files])
        record = runs.write_run(self._folder, record, artifacts)
        for name in {LOGGED, NOTEBOOK, FAILED, *found.files} - set(artifacts):
            (self._folder / name).unlink(missing_ok=True)
        return record


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
