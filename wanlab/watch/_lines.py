"""What a call that blocks says on its way: a line now and then, so that nobody waits before a silent cell."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from wanlab import notebook
from wanlab.watch._progress import Progress

_LINE_SECONDS = 10.0  # between lines of text, and before the first one: short runs say nothing
_LIVE_SECONDS = 0.25  # between changes of the one line of a live notebook
_LIVE_FIRST = 2.0
_REST = 50.0  # times as long as a look took, until the next one


class Lines:
    """Progress as text: one line that changes in a live notebook, else a line on stderr every 10 seconds.

    Says nothing in the first seconds, and nothing outside the main thread, where no cell would show it. What goes
    wrong in showing ends the showing, never the run.
    """

    def __init__(self, live_seconds: float = _LIVE_SECONDS) -> None:
        self._live = notebook.is_live()
        self._seconds = live_seconds if self._live else _LINE_SECONDS
        self._silent = threading.current_thread() is not threading.main_thread()
        self._next = time.monotonic() + (_LIVE_FIRST if self._live else _LINE_SECONDS)
        self._shown: Any = None

    def show(self, look: Callable[[], object]) -> None:
        """Show what `look` returns, a `Progress` or another thing that `str` makes a line of, if it is time to."""
        now = time.monotonic()
        if self._silent or now < self._next:
            return
        progress = look()
        ended = time.monotonic()
        self._next = max(now + self._seconds, ended + _REST * (ended - now))
        if not (isinstance(progress, Progress) and progress.stage == "waiting"):  # who waits is told for what
            self._write(str(progress))

    @property
    def has_shown(self) -> bool:
        """Whether there is a line that `close` replaces or follows."""
        return self._shown is not None and not self._silent

    def close(self, progress: object) -> None:
        """Leave a last line, if there were any."""
        if self.has_shown:
            self._write(str(progress))
        self._silent = True

    def _write(self, line: str) -> None:
        try:
            if not self._live:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
                self._shown = True
            elif self._shown is None:
                from IPython.display import display

                self._shown = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self._shown.update({"text/plain": line}, raw=True)
        except Exception:  # noqa: BLE001 - a closed stream or a lost frontend must not end hours of work
            self._silent = True
