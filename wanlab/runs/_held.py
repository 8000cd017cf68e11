"""The runs that this process has claimed and not ended yet."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path

from wanlab.errors import WanlabError
from wanlab.files import writing
from wanlab.runs._heart import keep_alive
from wanlab.runs._record import attempt_file

_NAME = re.compile(r"attempt-(\d{3,9})\.json")
_held: dict[Path, Held] = {}
_lock = threading.Lock()


class Held:
    """A claimed run; `number` is its attempt, 0 while it is not known whether the claim succeeds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pid, self.number = folder, os.getpid(), 0

    def begin(self, number: int) -> None:
        """Note the attempt that was claimed, and show signs of life from now on."""
        self.number = number
        keep_alive(self)

    def beat(self) -> None:
        """Leave a sign of life: the time of the claim's file."""
        if self.number and self.pid == os.getpid():
            with writing(self.folder):
                os.utime(attempt_file(self.folder, self.number))


def hold(folder: Path) -> Held | None:
    """Note that one thread of this process is about to claim a run; None if another one has it."""
    folder = folder.absolute()
    with _lock:
        there = _held.get(folder)
        if there is not None and there.pid == os.getpid():
            return None
        _held[folder] = mine = Held(folder)
        return mine


def release(folder: str | Path) -> None:
    """Let go of a run that was claimed: it has ended, or somebody else may take it over."""
    with _lock:
        _held.pop(Path(folder).absolute(), None)


def check_held(folder: Path) -> None:
    """Raise WanlabError where this process claimed the run and another one has taken it over since."""
    with _lock:
        mine = _held.get(folder.absolute())
    if mine is not None and mine.pid == os.getpid() and mine.number < newest_attempt(folder):
        remedy = "This process gave no sign of life for a minute; the other one ends the run"
        raise WanlabError(f"{folder} was taken over by another process", remedy=remedy)


def newest_attempt(folder: Path) -> int:
    """The number of the last claim in a folder; 0 without one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return max((int(found[1]) for entry in entries if (found := _NAME.fullmatch(entry.name))), default=0)
    return 0
