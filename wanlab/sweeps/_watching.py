"""The watch of a sweep's process: stops when the folder says so, and tells others what it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from wanlab import runs
from wanlab.errors import WanlabError
from wanlab.watch import Cancelled, Watch

_CANCEL_SECONDS = 0.1  # between looks for the file that asks to stop
_TELL_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Watching(Watch):
    """A `Watch` of many runs: `check` also looks for the sweep's cancel file, and rewrites the progress file.

    `forwards` is asked for the number that ran, `telling` is called to tell who waits. Entered once around all runs of
    a process.
    """

    def __init__(self, out: Path, telling: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.working = runs.Working()
        self.forwards: Callable[[], int] = lambda: 0
        self._out, self._telling = out, telling
        self._looked = self._told = 0.0

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _CANCEL_SECONDS:
            self._looked = now
            if runs.is_cancelled(self._out):
                self.cancel()
        if self.cancelled:
            at = f", step {self.working.step} of {self.working.num_steps}" if self.working.step else ""
            raise Cancelled(f"Cancelled{at}.")
        super().check()
        self.tell()
        self._telling()

    def on_step(self, step: int, sigma: float, latents: Tensor, denoised: Tensor) -> None:
        self.working = self.working.with_(step=step + 1)
        self._looked = 0.0  # a step may be shorter than the time between looks
        self.check()

    def __exit__(self, *_: object) -> None:
        """Keep no times: those of many runs say nothing about the next one."""
        self.tell(force=True)

    def begin(self, current: str, num_steps: int) -> None:
        """Say what runs now."""
        self.working = self.working.with_(current=current, step=0, num_steps=num_steps)
        self.tell(force=True)

    def tell(self, *, force: bool = False) -> None:
        """Rewrite the progress file, at most once a second; a disk that refuses is logged: it stops no run."""
        now = time.monotonic()
        if not force and now - self._told < _TELL_SECONDS:
            return
        self._told = now
        try:
            runs.write_working(self._out, self.working.with_(executed=self.forwards()))
        except WanlabError as error:
            _log.warning("%s", error)
