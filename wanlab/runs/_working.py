"""What the processes of a sweep are doing, and the wish that they stop."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wanlab.errors import WanlabError
from wanlab.files import PART, read_json, writing
from wanlab.runs import _process
from wanlab.runs._process import STALE_SECONDS, age, now
from wanlab.spec.part import Part

PROGRESS, CANCEL = "progress", "cancel"
_lock = threading.Lock()


class Working(Part):
    """What one process does for a sweep at the moment; forwards are those of the network."""

    host: str = Field(default_factory=_process.host)
    pid: Annotated[int, Field(ge=1, lt=2**31)] = Field(default_factory=os.getpid)
    process: str = Field(default_factory=_process.this_process)
    started: str = Field(default_factory=now)
    heartbeat: str = Field(default_factory=now)
    current: str = ""
    """What it is at, in words."""
    step: int = 0
    num_steps: int = 0
    executed: int = 0
    """Forwards that it has run."""
    planned: int = 0
    """Forwards that it is to run, those included."""
    alone: int = 0
    """Forwards that its finished and running points would have taken one by one."""

    @property
    def share_saved(self) -> float:
        """The share, 0 to 1, of those forwards that sharing spares."""
        return max(0.0, 1 - max(self.planned, self.executed) / self.alone) if self.alone else 0.0


def write_working(out: str | Path, working: Working) -> None:
    """Tell what this process is doing, and that it lives; at most once a second, please."""
    text = working.with_(heartbeat=now()).model_dump_json(indent=2)
    file = _file(Path(out), working)
    part = file.with_name(f"{PART}{file.name}")  # of this process alone, so a kill leaves one, and it has an owner
    with _lock, writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, file)


def end_working(out: str | Path) -> None:
    """Tell that this process does nothing for the sweep any more, and clear up after those that died."""
    living = {_file(Path(out), working).name for working in read_working(out)} - {_file(Path(out), Working()).name}
    for path in (Path(out) / PROGRESS).glob("*.json"):
        if path.name.removeprefix(PART) not in living:
            with contextlib.suppress(OSError):
                path.unlink()


def read_working(out: str | Path) -> list[Working]:
    """What the living processes of a sweep are doing, the oldest first."""
    found = []
    for path in (Path(out) / PROGRESS).glob("[!.]*.json"):
        with contextlib.suppress(WanlabError):  # gone meanwhile, or nobody's
            found.append(Working.parse(read_json(path), prefix=path.name))
    return sorted(filter(_lives, found), key=lambda working: (working.started, working.pid))


def _lives(working: Working) -> bool:
    alive = _process.lives(working.host, working.pid, working.process)
    return age(working.heartbeat) <= STALE_SECONDS if alive is None else alive


def _file(out: Path, working: Working) -> Path:
    return out / PROGRESS / f"{re.sub(r'[^A-Za-z0-9.-]', '_', working.host)[:100]}-{working.pid}.json"


def request_cancel(out: str | Path) -> None:
    """Ask all that work for a sweep, in whatever process, to stop within a step."""
    with writing(out):
        (Path(out) / CANCEL).touch()


def is_cancelled(out: str | Path) -> bool:
    """Whether the sweep is to stop; takes some microseconds on a local disk."""
    return os.path.exists(os.path.join(out, CANCEL))


def clear_cancel(out: str | Path) -> None:
    """Forget an earlier wish to stop; whoever begins a sweep does."""
    with writing(out):
        (Path(out) / CANCEL).unlink(missing_ok=True)
