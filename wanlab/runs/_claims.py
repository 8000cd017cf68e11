"""Who may run what: several processes, on one machine or on a shared disk, never do the same run twice.

A claim is a file, `attempt-001.json`, `attempt-002.json`, which exactly one process can create. A claim whose run has
begun is never deleted, so whoever decided by what it saw before cannot create the next one if anything happened since.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wanlab.errors import WanlabError
from wanlab.files import read_json, writing
from wanlab.runs import _process
from wanlab.runs._exclusive import create
from wanlab.runs._folder import Source, begin_run, write_run
from wanlab.runs._held import Held, check_held, hold, newest_attempt, release
from wanlab.runs._process import STALE_SECONDS, now
from wanlab.runs._record import (
    RUN_JSON,
    Failure,
    RunRecord,
    Status,
    attempt_file,
    beat_age,
    read_record,
    status_now,
)
from wanlab.spec.part import Part

MAX_ATTEMPTS = 3
_TAIL = 4000  # characters of a traceback that are kept
_log = logging.getLogger(__name__)


class GaveUp(WanlabError):
    """A run ended its process so often that it is not begun again."""


class Attempt(Part):
    """What a claim's file holds."""

    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    process: str = ""
    """See `_process.this_process`."""
    time: str
    crashes: int = 0
    """How many attempts before this one ended with their process."""


def claim(
    folder: str | Path,
    record: RunRecord,
    max_attempts: int = MAX_ATTEMPTS,
    stale: Literal["keep", "rerun"] = "keep",
) -> RunRecord | None:
    """Take a run in hand: its record, written as running, which nobody else gets until it has ended.

    None where somebody alive has it in hand, or where it ended ok. A thread of this process gives signs of life until
    `write_run`, `fail` or `release` is called for the folder. A run whose process died is taken over; one that failed,
    was cancelled or ran out of memory is begun again and does not count as a crash.

    stale: "rerun" begins a run that is ok again if other numerics than `record.numerics` made it.
    Raises GaveUp after `max_attempts` crashes, WanlabError for a folder that cannot be written, for a record that
    cannot be read and for one of another run.
    """
    folder = Path(folder).absolute()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    mine = hold(folder)
    if mine is None:
        return None
    try:
        begun = _claimed(mine, record, max_attempts, stale == "rerun")
    except BaseException:
        release(folder)
        raise
    if begun is None:
        release(folder)
    return begun


def _claimed(mine: Held, record: RunRecord, max_attempts: int, again: bool) -> RunRecord | None:
    folder = mine.folder
    newest, found = newest_attempt(folder), _read(folder)  # in this order: what comes after both makes `create` fail
    if found is not None and found.id != record.id:
        remedy = "Move it elsewhere: a run with another id would never be this one's result"
        raise WanlabError(f"{folder} holds the run {found.id}, not {record.id}", remedy=remedy)
    if _is_done(found, record, again):
        return None
    crashes = _crashes(folder, newest, found)
    if crashes is None:
        return None
    if crashes >= max_attempts:
        raise GaveUp(
            f"{folder} crashed {crashes} times", remedy=f"Give max_attempts={crashes + 1}, or delete the folder"
        )
    number = max(newest, found.attempt if found else 0) + 1
    whose = Attempt(host=_process.host(), pid=os.getpid(), process=_process.this_process(), time=now(), crashes=crashes)
    file = attempt_file(folder, number)
    if not create(file, whose.model_dump_json(indent=2) + "\n"):
        return None
    mine.begin(number)
    try:
        if _is_done(_read(folder), record, again) or newest_attempt(folder) > number:
            return None  # whoever had it wrote that as its last act; or this process slept, and was taken for dead
        return begin_run(folder, record.with_(attempt=number, started=None, ended=None, error=None))
    except BaseException:
        with contextlib.suppress(OSError):  # not begun: others need not wait until this process ends
            file.unlink()
        raise


def _read(folder: Path) -> RunRecord | None:
    path = folder / RUN_JSON
    return read_record(path) if path.is_file() else None


def _is_done(found: RunRecord | None, record: RunRecord, again: bool) -> bool:
    return found is not None and found.status == "ok" and (not again or found.numerics == record.numerics)


def _crashes(folder: Path, newest: int, found: RunRecord | None) -> int | None:
    """How many attempts ended with their process, of a run that nobody has in hand; None if somebody has."""
    last = read_attempt(folder, newest) if newest else None
    before = last.crashes if last else max(0, newest - 1)
    if found is None or found.attempt < newest:  # claimed and not begun: dying there was not the run's doing
        return None if newest and _has(folder, newest, last) else before
    if found.status == "ok":
        return 0
    if found.status not in ("pending", "running"):
        return before + (found.status == "crashed")
    if found.attempt > newest:  # a job's, which makes no claims
        return None if status_now(folder, found) != "crashed" and found.pid else before + bool(found.pid)
    return None if _has(folder, newest, last) else before + 1


def num_crashes(folder: str | Path) -> int:
    """How many attempts at a run ended with their process; 0 for one that somebody has in hand."""
    folder = Path(folder)
    with contextlib.suppress(WanlabError, OSError):  # whoever claims it is told
        return _crashes(folder, newest_attempt(folder), _read(folder)) or 0
    return 0


def _has(folder: Path, number: int, attempt: Attempt | None) -> bool:
    """Whether the process that made a claim is alive, and, if it is this one, has not let go of it."""
    if attempt is not None:
        whose = attempt.host, attempt.pid, attempt.process
        if whose == (_process.host(), os.getpid(), _process.this_process()):
            return False  # `hold` knows all that this process has
    return is_in_hand(folder, number)


def read_attempt(folder: Path, number: int) -> Attempt | None:
    """Who made a claim; None where the file says nothing: its process died, or is, between creating and writing it."""
    try:
        return Attempt.parse(read_json(attempt_file(folder, number)), prefix=attempt_file(folder, number).name)
    except WanlabError:
        return None


def is_in_hand(folder: Path, number: int) -> bool:
    """Whether the process that made a claim, this one too, is alive."""
    attempt = read_attempt(folder, number)
    alive = None if attempt is None else _process.lives(attempt.host, attempt.pid, attempt.process)
    return beat_age(folder, number) <= STALE_SECONDS if alive is None else alive


def fail(
    folder: str | Path,
    record: RunRecord,
    error: BaseException,
    status: Status = "failed",
    artifacts: Mapping[str, Source] | None = None,
) -> RunRecord:
    """Write why a run did not end well, and let go of it; what the disk refuses is logged: there is an error already.

    On a full disk the record takes the place of the former one, and holds little more than the error.
    artifacts: files to keep with it, as in `write_run`. Nothing is written where another process took the run over.
    """
    record = record.with_(status=status, error=failure(error, status).model_dump(), ended=now())
    try:
        return write_run(folder, record, artifacts or {})
    except WanlabError:
        if not _written_briefly(Path(folder), record):
            _log.exception("%s could not be told that its run was %s", folder, status)
        return record
    finally:
        release(folder)


def _written_briefly(folder: Path, record: RunRecord) -> bool:
    """Write a record without what is not needed, after the former one is gone; whether that could be done."""
    error = {} if record.error is None else {"error": record.error.with_(traceback_tail="").model_dump()}
    try:
        check_held(folder)
        (folder / RUN_JSON).unlink(missing_ok=True)
        write_run(folder, record.with_(**error, env={}, resolved={}), {})
    except (OSError, WanlabError):
        return False
    return True


def failure(error: BaseException, status: Status = "failed") -> Failure:
    """An error as a record holds it; who cancelled a run, or ended its process, needs no traceback.

    The texts of an error may come from a file's name and hold what UTF-8 cannot write: that is escaped.
    """
    tail = "" if status in ("cancelled", "crashed") else "".join(traceback.format_exception(error))[-_TAIL:]
    return Failure(type=type(error).__name__, message=_utf8(str(error)), traceback_tail=_utf8(tail))


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
