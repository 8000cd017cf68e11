"""A run that this process has in hand: its record until it ends, its result or why there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wanlab import media, runs
from wanlab.errors import WanlabError
from wanlab.files import sweep
from wanlab.result import Result, publishable
from wanlab.spec import GenerationSpec
from wanlab.watch import Cancelled, Interrupts, ended_as


@dataclass(frozen=True)
class Task:
    """A point that is to be run, and where."""

    spec: GenerationSpec
    run: str
    """The run id."""
    folder: Path
    group: str
    """Points of equal groups may share steps; see `group_key`."""

    def record(self, fingerprint: str) -> runs.RunRecord:
        """What its run.json says before it ran."""
        return runs.RunRecord(
            id=self.run,
            spec=publishable(self.spec).to_dict(),
            seeds=[self.spec.sampling.seed],
            fingerprint=fingerprint,
            env=runs.environment(),
        )


class Claimed:
    """A task in hand: `save` or `fail` ends that."""

    def __init__(self, task: Task, record: runs.RunRecord) -> None:
        self.task, self.record, self.started = task, record, runs.now()
        self.path = task.folder

    def save(self, result: Result, interrupts: Interrupts) -> None:
        """Write the complete run; `interrupts` act while media are encoded, not while files take their places.

        Raises WanlabError for a full disk; the run is still in hand then.
        """
        result.record = result.record.with_(attempt=self.record.attempt, started=self.record.started)
        sweep(self.path)  # of earlier attempts; now, since nobody looks in here again once the run is ok
        with runs.encoded(self.path, result.artifacts(), interrupts.let_through) as artifacts:
            runs.write_run(self.path, result.published_record(), artifacts)

    def fail(self, error: BaseException) -> None:
        """Write why there is no result."""
        with contextlib.suppress(WanlabError):  # media that are not stored any more are in nobody's record
            files = media.run_files(self.task.spec.media)
            there = {name: file for name, file in files.items() if file.is_file()}
            runs.fail(self.path, self.record, error, ended_as(error), runs.shared(there))
            return
        runs.fail(self.path, self.record, error, ended_as(error))


@contextmanager
def in_hand() -> Iterator[dict[str, Claimed]]:
    """A dict for claimed runs by their ids: put them in as they are claimed, take them out as they end.

    Those that are still in it at the end of the block have ended too, as failed or cancelled. Raises what stops all: an
    interrupt, `Cancelled`, and an Exception that no run could tell; others are told in the runs' records.
    """
    left: dict[str, Claimed] = {}
    try:
        yield left
        assert not left, f"{list(left)} were not run"
    except Exception as error:  # of encoding, or a slip of ours
        if not left:  # swallowed, it would come again and again
            raise
        for member in left.values():
            member.fail(error)
    except BaseException as stop:
        why = stop if isinstance(stop, Cancelled) else Cancelled("Interrupted.")
        for member in left.values():
            member.fail(why)
        raise
