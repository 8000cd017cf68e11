"""One generation at a time: who runs a model now, and who has to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wanlab.errors import WanlabError

_POLL = 0.05  # seconds between looks at the lock, so that an interrupt ends the wait


class RunLock:
    """A re-entrant lock that knows what it is held for.

    `hold(owner)` waits, and Ctrl-C ends the wait. `check(what)` raises where another thread holds the lock: attaching
    to a model or changing its weights while somebody else generates with it would change their result.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: int | None = None
        self._depth = 0
        self._sampling = False
        self.owner = ""
        """What the lock is held for; empty if nobody holds it."""

    @contextmanager
    def hold(self, owner: str, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the lock for `owner`; `on_wait(who)` is called while it waits, with the present owner; it may raise."""
        self.acquire(owner, on_wait)
        try:
            yield
        finally:
            self.release()

    def acquire(self, owner: str, on_wait: Callable[[str], None] | None = None) -> None:
        """Wait for the lock, interruptibly."""
        if not self._lock.acquire(blocking=False):
            who = "another generation"
            while not self._lock.acquire(timeout=_POLL):
                who = self.owner or who  # empty for a moment while the holder takes or gives back the lock
                if on_wait is not None:
                    on_wait(who)
        self._holder = threading.get_ident()
        self._depth += 1
        self.owner = self.owner if self._depth > 1 else owner

    def release(self) -> None:
        """Give the lock back; only the thread that holds it may."""
        assert self._holder == threading.get_ident(), "released by a thread that does not hold it"
        self._depth -= 1
        if self._depth == 0:
            self._holder, self.owner = None, ""
        self._lock.release()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around one sampling loop, by the thread that holds the lock; a loop inside another one raises WanlabError.

        The inner one would run with the outer one's cache and attention, and leave its own state to the outer one.
        """
        if self._sampling:
            raise WanlabError(
                f"This model is in the middle of {self.owner or 'a generation'}",
                remedy="Generate after it, not from its on_step; or load the model a second time",
            )
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    @property
    def held_elsewhere(self) -> bool:
        """Whether another thread holds the lock."""
        return self._holder not in (None, threading.get_ident())

    def check(self, what: str) -> None:
        """Raise WanlabError if another thread is generating with the model."""
        if self.held_elsewhere:
            raise WanlabError(
                f"Cannot {what} while the model is busy with {self.owner or 'another generation'}",
                remedy="Wait for it or cancel it first",
            )

    def settle(self) -> None:
        """Wait until no other thread holds the lock: what a detaching context manager does, since it must not fail."""
        if self.held_elsewhere:
            self.acquire("detaching")
            self.release()
