"""How far a job is, on stderr: one line that changes on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from wanlab.cli._console import say

if TYPE_CHECKING:
    from wanlab.watch import Progress
    from wanlab.weights import Transfer

_EVERY = 5.0  # seconds between plain lines
_BAR = 24  # characters


class ProgressLine:
    """Shows text and `Progress` again and again; `close` ends the line."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._updates = self._stream.isatty()
        self._stage, self._told = "", -_EVERY
        self._is_open = False

    def begin(self, text: str) -> None:
        """On a terminal, put `text` on the line until something replaces it; elsewhere nothing."""
        if self._updates:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be written over
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._stream.flush()
            self._is_open = True

    def show(self, progress: Progress | Transfer) -> None:
        """Show it now on a terminal; elsewhere when the stage changed or five seconds have passed."""
        if self._updates:
            self.begin(f"{bar(progress.fraction)} {progress}")
        elif progress.stage != self._stage or time.monotonic() - self._told >= _EVERY:
            say(str(progress), self._stream)
            self._stage, self._told = progress.stage, time.monotonic()

    def close(self) -> None:
        """End the line that changes, so that what follows starts on its own."""
        if self._is_open:
            self._stream.write("\n")
            self._stream.flush()
            self._is_open = False


def bar(fraction: float) -> str:
    """A fraction of 0..1 as a bar of ASCII.

    >>> bar(0.5)
    '[============            ]'
    """
    return f"[{'=' * round(_BAR * fraction):{_BAR}}]"
