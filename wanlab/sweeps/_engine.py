"""Runs one notebook in a kernel of its own, and ends it when it must end: papermill's engine "wanlab".

Beside papermill's own engine it stores no widget state, limits what is printed, and stops a cell within a moment: for a
cancelled sweep, for a cell that takes too long, and for output without end. A kernel is interrupted first and killed
if that does not help; whatever it started in its process group goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook

from wanlab.sweeps._outputs import MOST_PRINTED, Log, Outputs

NAME = "wanlab"
GRACE = 5.0  # seconds that an interrupted cell has to end
_LOOK = 0.1  # seconds between looks at what may stop a cell
_TELL = 1.0  # seconds
_FLOOD = "TooMuchOutput"
_START = 60.0  # seconds that a kernel has to start
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_quiet = logging.getLogger(f"{__name__}.client")  # what nbclient says about dead kernels is in the record
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True)
class Stop:
    """Why a point was ended from outside."""

    kind: str
    """"cancelled", "failed" or "crashed": the status of the run."""
    type: str
    message: str
    trace: str = ""


@dataclass
class Session:
    """One execution: what it is given, and what became of it."""

    log: Log
    env: Mapping[str, str]
    """Variables of the kernel beside those of this process."""
    cwd: Path
    name: str
    """Of the notebook, for its metadata."""
    timeout: float | None = None
    """Seconds a cell; None: any."""
    is_cancelled: Callable[[], bool] = lambda: False
    tell: Callable[[int, int, str], None] = lambda cell, num_cells, text: None
    """Called at most once a second while a cell runs: which code cell, of how many, the line printed last."""
    grace: float = field(default_factory=lambda: GRACE)
    node: Any = None
    """The executed notebook, from its first cell on."""
    stop: Stop | None = None
    outputs: Outputs = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = Outputs(self.log)

    def why_stop(self, began: float) -> Stop | None:
        """What ends the running cell now."""
        if self.is_cancelled():
            return Stop("cancelled", "Cancelled", "The sweep was cancelled.")
        if self.timeout is not None and time.monotonic() - began > self.timeout:
            return Stop("failed", "CellTimeout", f"A cell took more than {self.timeout:g} s.")
        if self.outputs.printed > MOST_PRINTED or self.log.size() > 2 * MOST_PRINTED:
            return Stop("failed", _FLOOD, f"More than {MOST_PRINTED >> 20} MB were printed.")
        return None


class Client(PapermillNotebookClient):
    """nbclient with limits and a way to be stopped; everything happens in one event loop of its own."""

    def __init__(self, manager: Any, session: Session, kernel_name: str) -> None:
        super().__init__(
            manager, kernel_name=kernel_name, log=_quiet, timeout=None, startup_timeout=_START, store_widget_state=False
        )
        self.session = session
        self._group: int | None = None
        self._cell: Any = None

    async def run_all(self) -> None:
        """Execute the notebook's cells until one fails or the session is stopped."""
        try:
            if await self._started():
                await self._run_cells()
        finally:
            await self._ended()

    async def _started(self) -> bool:
        """Start the kernel; a second time if the first fails, as another process may have taken its port."""
        for last in (False, True):
            try:
                manager = self.create_kernel_manager()
                self.extra_arguments = ["--IPKernelApp.log_level=40"] if manager.ipykernel else []
                log = self.session.log.fileno()
                env = {**os.environ, **self.session.env}
                await self.async_start_new_kernel(cwd=str(self.session.cwd), env=env, stdout=log, stderr=log)
                self._group = getattr(self.km.provisioner, "pgid", None)
                await self.async_start_new_kernel_client()
                return True
            except (RuntimeError, OSError, ImportError) as error:
                await self._ended()
                if last or self.session.is_cancelled():
                    stop = Stop("failed", "KernelDidNotStart", f"{error}".strip() or type(error).__name__)
                    self._fail(self._first_code(), self.session.why_stop(time.monotonic()) or stop)
        return False

    def _first_code(self) -> int:
        return next(i for i, cell in enumerate(self.nb.cells) if cell.cell_type == "code")

    async def _run_cells(self) -> None:
        for index, cell in enumerate(self.nb.cells):
            self.nb_man.cell_start(cell, index)
            self._cell = cell
            self.session.outputs.begin_cell()
            try:
                await self._run_cell(cell, index)
                if self.session.stop is not None:  # the cell swallowed the interrupt
                    self._fail(index, self.session.stop)
            except CellExecutionError as error:
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                if self.session.stop is not None:
                    self._fail(index, self.session.stop)
                return
            except DeadKernelError:
                self._fail(index, self.session.stop or self._death())
            finally:
                self.nb_man.cell_complete(cell, cell_index=index)
            if self.session.stop is not None:
                return

    async def _run_cell(self, cell: Any, index: int) -> None:
        others = asyncio.all_tasks()
        watcher = asyncio.ensure_future(self._watch(time.monotonic(), index))
        try:
            await self.async_execute_cell(cell, index)
        finally:
            left = {watcher, *asyncio.all_tasks()} - others  # what nbclient leaves when a kernel dies too
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _watch(self, began: float, index: int) -> None:
        """Tell how far it is, look what may stop the cell, and stop it."""
        codes = [i for i, cell in enumerate(self.nb.cells) if cell.cell_type == "code"]
        told = -_TELL
        while True:
            if time.monotonic() - told >= _TELL:
                self.session.tell(codes.index(index) if index in codes else 0, len(codes), self.session.outputs.line)
                told = time.monotonic()
            await asyncio.sleep(_LOOK)
            stop = self.session.why_stop(began)
            if stop is None:
                continue
            self.session.stop = stop
            with contextlib.suppress(RuntimeError, OSError):
                await self.km.interrupt_kernel()
            grace = 0.5 if stop.type == _FLOOD else self.session.grace  # messages pile up meanwhile
            await asyncio.sleep(grace)  # the end of the cell ends this wait
            self._kill()
            if self.task_poll_for_reply is not None:
                self.task_poll_for_reply.cancel()
            return

    def _kill(self) -> None:
        """End the kernel and what it started."""
        if self._group is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._group, signal.SIGKILL)

    def _death(self) -> Stop:
        """How the kernel died, in words."""
        process = getattr(getattr(self.km, "provisioner", None), "process", None)
        code = None if process is None else process.poll()
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"was ended by {name}"
            hint = ", maybe because memory ran out" if name == "SIGKILL" else ""
        else:
            how, hint = "ended" if code is None else f"ended with status {code}", ""
        return Stop("crashed", "KernelDied", f"The kernel {how} in cell [{self.code_cells_executed}]{hint}.")

    def _fail(self, index: int, stop: Stop) -> None:
        """Mark a cell as the one where the point ended."""
        self.session.stop = stop
        cell = self.nb.cells[index]
        cell.outputs = [out for out in cell.get("outputs", []) if out.output_type != "error"]
        cell.outputs.append(
            nbformat.v4.new_output("error", ename=stop.type, evalue=stop.message, traceback=[stop.message])
        )
        self.nb_man.cell_exception(cell, cell_index=index)

    async def _ended(self) -> None:
        """Shut the kernel down, at once if the point was stopped; nothing that it started stays."""
        if self.km is not None:
            self.shutdown_kernel = "graceful" if self.session.stop is None else "immediate"
            with contextlib.suppress(RuntimeError, OSError, asyncio.TimeoutError):
                await self._async_cleanup_kernel()
        self._kill()
        self.km = self.kc = None

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        """nbclient's, with limits: a stream is one output of its cell."""
        out = super().output(outs, msg, display_id, cell_index)
        if out is None:
            return None
        outs.pop()
        kept = self.session.outputs.take(out, outs)
        if kept is not None:
            outs.append(kept)
        return kept

    def _update_display_id(self, display_id: str, msg: dict[str, Any]) -> None:
        """nbclient's; an output that was left out stays so."""
        with contextlib.suppress(IndexError):
            super()._update_display_id(display_id, msg)

    def clear_output(self, outs: list[Any], msg: dict[str, Any], cell_index: int) -> None:
        """nbclient's, and the cell's text starts anew."""
        super().clear_output(outs, msg, cell_index)
        if not outs:
            self.session.outputs.begin_cell()


class WanlabEngine(Engine):
    """papermill's hook: `execute_notebook(..., engine_name="wanlab", session=Session(...))`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
        """Execute in an event loop of this thread's own."""
        session: Session = kwargs["session"]
        session.node = nb_man.nb
        nb_man.nb.metadata.papermill["input_path"] = session.name  # papermill puts the whole notebook there
        asyncio.run(Client(nb_man, session, kernel_name).run_all())


papermill_engines.register(NAME, WanlabEngine)


def execute(notebook: Any, parameters: Mapping[str, Any], kernel: str, session: Session) -> Stop | None:
    """Execute a notebook's node; `session.node` is the outcome. Returns why it did not end well.

    Blocks, in a thread without an event loop. A cell's own error is of the kind "failed", or "oom".
    """
    try:
        execute_notebook(
            notebook,
            None,
            parameters=dict(parameters),
            engine_name=NAME,
            kernel_name=kernel,
            language="python",  # checked before; a notebook's metadata need not say it
            progress_bar=False,
            session=session,
        )
    except PapermillExecutionError as error:
        if session.stop is not None:
            return session.stop
        kind = "oom" if "OutOfMemoryError" in error.ename else "failed"
        trace = _COLOURS.sub("", "\n".join(error.traceback))
        return Stop(kind, error.ename, error.evalue or f"in cell [{error.exec_count}]", trace)
    return None
