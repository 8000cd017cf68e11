"""The thread that tells other processes that this one still has its runs in hand."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Protocol

from wanlab.errors import WanlabError

BEAT_SECONDS = 15.0
_log = logging.getLogger(__name__)


class Beating(Protocol):
    """What a heart keeps alive."""

    def beat(self) -> None:
        """Leave a sign of life; raises WanlabError where that cannot be written."""


class Heart:
    """A daemon thread that beats all that it watches and that is still referred to; started with the first one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._watched: weakref.WeakSet[Beating] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="wanlab-heart", daemon=True)

    def watch(self, beating: Beating) -> None:
        """Beat this too, until nobody refers to it any more."""
        with self._lock:
            self._watched.add(beating)
            if self._thread.ident is None:
                self._thread.start()

    def _work(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._lock:
                watched = list(self._watched)
            for beating in watched:
                try:
                    beating.beat()
                except WanlabError as error:  # the end of the run says so if the disk is still full then
                    _log.warning("%s", error)
            watched.clear()


_heart: Heart | None = None


def keep_alive(beating: Beating) -> None:
    """Beat this every 15 seconds, until nobody refers to it any more."""
    global _heart
    if _heart is None or _heart.pid != os.getpid():  # a forked process has no threads, and the runs are not its own
        _heart = Heart()
    _heart.watch(beating)
