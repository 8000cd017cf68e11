"""Ctrl-C at moments that can bear it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """Holds Ctrl-C back while something is attached or detached, so that it never falls between doing and noting it.

    `with Interrupts() as interrupts, attach(...), interrupts.let_through():` in one statement: an interrupt acts at
    once in the body and waits before and after it, until the next `check` or the end. Other threads get none anyway.
    """

    def __init__(self) -> None:
        self._waiting = False
        self._open = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._previous = handler
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        self.check()

    def _handle(self, number: int, frame: Any) -> None:
        if self._open:
            self._previous(number, frame)
        else:
            self._waiting = True

    def check(self) -> None:
        """Let a waiting interrupt act now."""
        if self._waiting:
            self._waiting = False
            self._previous(signal.SIGINT, None)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Interrupts act inside, those that waited first."""
        self._open = True
        try:
            self.check()
            yield
        finally:
            self._open = False
