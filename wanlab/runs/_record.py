"""The record of a run, and how its file is read: earlier schemas are migrated, dead processes are seen through."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from wanlab.errors import WanlabError
from wanlab.files import read_json
from wanlab.runs import _process
from wanlab.runs._process import STALE_SECONDS, age, now
from wanlab.spec.part import Part

NUMERICS = 2
"""Raised when the same spec and weights give other results than before; part of every run id."""

SCHEMA = 2
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda record: {**record, "params": {}, "process": ""},
}
"""Schema n -> pure function that returns the same record in schema n + 1."""

RUN_JSON = "run.json"
_MAX_BYTES = 16 << 20

Status = Literal["pending", "running", "ok", "failed", "cancelled", "oom", "crashed"]


class Artifact(Part):
    """A file of the run folder."""

    path: str
    """Below the run folder, with forward slashes."""
    sha256: str
    bytes: int


class Failure(Part):
    """Why a run did not end well."""

    type: str
    message: str
    traceback_tail: str = ""


class RunRecord(Part):
    """What `run.json` holds. Times are ISO 8601 in UTC, durations seconds, sizes bytes."""

    schema_version: int = Field(SCHEMA, alias="schema")
    id: str = ""
    """`run_id`: what was asked, of which weights, by which numerics."""
    status: Status = "pending"
    attempt: Annotated[int, Field(ge=1)] = 1
    spec: dict[str, Any] = Field(default_factory=dict)
    """The spec as it was asked, with `auto` as the word."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The parameters of a notebook that was run; empty for a spec."""
    resolved: dict[str, Any] = Field(default_factory=dict)
    """What every `auto` became and which kernels and rungs really ran."""
    seeds: tuple[int, ...] = ()
    fingerprint: str = ""
    """Of the weights, see `weights.fingerprint`."""
    numerics: int = NUMERICS
    metrics: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    peak_bytes: int | None = None
    artifacts: tuple[Artifact, ...] = ()
    env: dict[str, Any] = Field(default_factory=dict)
    error: Failure | None = None
    started: str | None = None
    ended: str | None = None
    host: str = ""
    pid: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    process: str = ""
    """What tells it from a later process of the same pid, see `_process.this_process`; empty where nobody knows."""
    heartbeat: str | None = None

    def in_hand(self, status: Status) -> RunRecord:
        """The record of a run that this process has, with a sign of life."""
        whose = {"host": _process.host(), "pid": os.getpid(), "process": _process.this_process()}
        return self.with_(status=status, heartbeat=now(), **whose)


def run_id(spec_id: str, fingerprint: str, numerics: int | None = None) -> str:
    """12 hex digits that are equal when spec, weights and numerics (None: this version's) are."""
    number = NUMERICS if numerics is None else numerics
    return hashlib.sha256(f"{spec_id}\n{fingerprint}\n{number}".encode()).hexdigest()[:12]


def read_run(folder: str | Path) -> RunRecord:
    """The record of a run folder; one that claims to wait or to run but is stale reads as crashed.

    Raises `WanlabError` for a folder without run.json, an unreadable one and one of a newer schema.
    """
    path = Path(folder) / RUN_JSON
    if not path.is_file():
        remedy = "Give the folder that holds run.json; without it the run did not end, run it again"
        raise WanlabError(f"{folder} is no run folder: it has no {RUN_JSON}", remedy=remedy)
    return seen_through(Path(folder), read_record(path))


def read_record(path: Path) -> RunRecord:
    """What a run.json says, be it true or not. Raises `WanlabError` as `read_run` does."""
    return RunRecord.parse(_migrated(read_json(path, _MAX_BYTES), path), prefix=path.name)


def _migrated(data: Any, path: Path) -> dict[str, Any]:
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise WanlabError(f"{path} is no run record: it has no schema number", remedy="Run it again")
    if schema > SCHEMA:
        remedy = "A newer wanlab wrote it: update wanlab"
        raise WanlabError(f"{path} has schema {schema}, this version reads up to {SCHEMA}", remedy=remedy)
    for version in range(schema, SCHEMA):
        data = {**MIGRATIONS[version](data), "schema": version + 1}
    return data


def seen_through(folder: Path, record: RunRecord) -> RunRecord:
    """The record of a folder, crashed if it waits or runs in the hands of a process that shows no sign of life."""
    status = status_now(folder, record)
    return record if status == record.status else record.with_(status=status)


def status_now(folder: Path, record: RunRecord) -> Status:
    """The status of `seen_through`."""
    planned = record.status == "pending" and record.pid is None  # nobody has it in hand yet
    if record.status not in ("pending", "running") or planned:
        return record.status
    if _process.lives(record.host, record.pid, record.process) is False:
        return "crashed"
    beaten = [] if record.heartbeat is None else [age(record.heartbeat)]
    is_stale = min([*beaten, beat_age(folder, record.attempt)]) > STALE_SECONDS
    return "crashed" if is_stale else record.status


def attempt_file(folder: Path, number: int) -> Path:
    """The claim of one attempt; its time is the last sign of life of the process that made it."""
    return folder / f"attempt-{number:03}.json"


def beat_age(folder: Path, number: int) -> float:
    """Seconds since the claim of an attempt was made or beaten; infinite without one."""
    try:
        return time.time() - attempt_file(folder, number).stat().st_mtime
    except OSError:
        return math.inf
