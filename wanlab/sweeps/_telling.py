"""What a sweep that is waited for says: how far it is, now and then, and how it ended."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from wanlab.errors import WanlabError
from wanlab.sweeps._progress import SweepProgress, duration
from wanlab.watch import Lines

_LIVE_SECONDS = 1.0  # between changes of a notebook's line; a look reads the folder's files


class Telling:
    """Tells how far the sweep in `out` is: one line that changes in a live notebook, else one on stderr every 10 s.

    Entered around the work by the thread that waits for it, which calls this often. Says nothing about short sweeps,
    and with `is_silent` nothing at all.
    """

    def __init__(self, out: Path, is_silent: bool = False) -> None:
        self._out = out
        self._lines = None if is_silent else Lines(_LIVE_SECONDS)
        self._began = time.monotonic()

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is None or not self._lines.has_shown:
            return
        try:
            found = SweepProgress.of(self._out)
        except WanlabError:  # the folder is gone, which the caller will tell
            return
        took = f"ended after {duration(time.monotonic() - self._began)}"
        self._lines.close(f"{replace(found, current=(), eta=None)} · {took}")

    def __call__(self) -> None:
        """Tell it, if it is time to."""
        if self._lines is not None:
            self._lines.show(self._look)

    def _look(self) -> str:
        try:
            return str(SweepProgress.of(self._out))
        except WanlabError as error:  # what cannot be read must not end hours of work
            return f"How far it is cannot be read: {error}"
