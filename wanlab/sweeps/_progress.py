"""How far a sweep is, read from its files alone: whoever runs it, wherever, any process can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from wanlab import runs

_ENDED = ("ok", "failed", "oom")  # what no process takes up again by itself
_FAILED = ("failed", "oom")


class FailedRun(NamedTuple):
    """A run that did not end well: its id, its folder (None for one that is gone), what was raised."""

    id: str
    folder: Path | None
    error: str


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is. `str()` is a line for the terminal; times are seconds, shares and `fraction` are of 0..1."""

    done: int
    """Runs that ended, well or not; crashed and cancelled ones are still to do."""
    total: int
    by_status: Mapping[str, int]
    eta: float | None = None
    """Seconds until all have ended, if the processes that work now go on alone; None while nothing tells."""
    current: tuple[runs.Working, ...] = ()
    """What each process that is alive does now: `.current`, `.step` of `.num_steps`, `.host`, `.pid`."""
    failures: tuple[FailedRun, ...] = ()
    share_saved: float | None = None
    """Of the forwards that the finished and running points take alone, those that sharing left out; None: unknown."""
    predicted_saved: float | None = None
    """The same of the whole sweep, as it was planned."""
    fraction: float = 0.0

    @classmethod
    def of(cls, results: Any) -> SweepProgress:
        """Of a folder, or of what `wanlab.results` returned for it. Reads files, imports no torch.

        Raises WanlabError for a folder that is not there.
        """
        found = runs.results(results) if isinstance(results, str | Path) else results
        working = tuple(runs.read_working(found.folder))
        rows = list(found)
        by_status = dict(found.counts())
        done = sum(by_status.get(status, 0) for status in _ENDED)
        planned = found.sweep.forwards if found.sweep is not None else {}
        return cls(
            done=done,
            total=len(rows),
            by_status=by_status,
            eta=_eta(rows, done, working, planned.get("shared", 0) / max(1, len(rows))),
            current=working,
            failures=tuple(FailedRun(r.id, r.folder, r.error) for r in rows if r.status in _FAILED),
            share_saved=_saved(sum(w.alone for w in working), sum(max(w.planned, w.executed) for w in working)),
            predicted_saved=_saved(planned.get("alone", 0), planned.get("shared", 0)),
            fraction=_fraction(done, len(rows), working),
        )

    @property
    def is_over(self) -> bool:
        """Whether no run is left that waits or works."""
        return not self.current and not any(self.by_status.get(status) for status in ("pending", "running"))

    def __str__(self) -> str:
        facts = [f"{self.done}/{self.total} runs"]
        facts += [f"{count} {status}" for status, count in self.by_status.items() if count and status not in _QUIET]
        if self.eta is not None and self.done < self.total:
            facts.append(f"about {duration(self.eta)} left")
        facts += [_doing(working, len(self.current) > 1) for working in self.current[:_SHOWN]]
        if len(self.current) > _SHOWN:
            facts.append(f"{len(self.current) - _SHOWN} more processes")
        if self.share_saved is not None and round(self.share_saved, 2):
            facts.append(f"sharing saved {self.share_saved:.0%} of the forwards")
        elif self.share_saved is None and self.predicted_saved:
            verb = "saved" if self.total == self.by_status.get("ok", 0) else "is to save"
            facts.append(f"sharing {verb} {self.predicted_saved:.0%} of the forwards")
        return " · ".join(facts)


_QUIET = ("ok", "pending", "running")  # told by the other words of the line
_SHOWN = 2  # processes in the line


def duration(seconds: float) -> str:
    """Seconds in the largest units that tell something.

    >>> duration(8.2), duration(272), duration(7_500)
    ('8 s', '4 min 32 s', '2 h 5 min')
    """
    whole = math.ceil(seconds) if seconds < 1 else round(seconds)
    for size, name, small, part in ((3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def _doing(working: runs.Working, is_one_of_many: bool) -> str:
    steps = f" step {working.step}/{working.num_steps}" if working.num_steps else ""
    where = f" (process {working.pid} on {working.host})" if is_one_of_many else ""
    return f"{working.current or 'waiting'}{steps}{where}"


def _saved(alone: float, shared: float) -> float | None:
    return None if alone <= 0 or shared <= 0 else max(0.0, 1 - shared / alone)


def _fraction(done: int, total: int, working: Sequence[runs.Working]) -> float:
    """Finished runs and the part of the running ones that is behind; below 1 while one is left."""
    if total == 0:
        return 0.0
    half = sum(w.step / w.num_steps for w in working if w.num_steps)
    return min(1.0, (done + min(half, float(total - done))) / total)


def _eta(rows: Sequence[Any], done: int, working: Sequence[runs.Working], forwards_per_run: float) -> float | None:
    """From the forwards that each process still has before it and those of runs that nobody has in hand yet.

    Where a process counts none, from the mean finished run.
    """
    if not working or done >= len(rows):
        return 0.0 if rows and done >= len(rows) else None
    waiting = sum(row.status not in (*_ENDED, "running") for row in rows)
    if all(w.planned and w.executed for w in working) and (forwards_per_run or not waiting):
        rates = [w.executed / max(_age(w.started), 1e-3) for w in working]
        own = [max(0, w.planned - w.executed) for w in working]
        last = max(left / rate for left, rate in zip(own, rates, strict=True))
        return max(last, (sum(own) + waiting * forwards_per_run) / sum(rates))
    seconds = [row.seconds for row in rows if row.status == "ok" and row.seconds is not None]
    if not seconds:
        return None
    return sum(seconds) / len(seconds) * (len(rows) - done) / len(working)


def _age(time: str) -> float:
    """Seconds since a time of `runs.now`."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    except (TypeError, ValueError):  # of a foreign file
        return 0.0
