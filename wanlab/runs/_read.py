"""The rows of a folder: what its plan and its run folders say at this moment, read again only where files changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError
from wanlab.runs._claims import is_in_hand
from wanlab.runs._held import newest_attempt
from wanlab.runs._plan import Point, SweepFile, read_sweep
from wanlab.runs._record import RUN_JSON, RunRecord, read_record, run_id, status_now
from wanlab.runs._row import UNREADABLE, Row
from wanlab.runs._working import PROGRESS

_KEPT = 20_000  # records that stay in memory, of all folders together

Stamp = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class _Read:
    """A run.json as it was when it was read."""

    stamp: Stamp
    record: RunRecord | None
    error: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The whole spec or the parameters, by flat names."""
        if self.record is None:
            return {}
        return flat(self.record.spec) if self.record.spec else dict(self.record.params)


_records: dict[str, _Read] = {}
_sweeps: dict[str, tuple[tuple[Stamp, ...], SweepFile | None]] = {}


def flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a spec's JSON by the names of `GenerationSpec.flat`: a method by its part's name."""
    found: dict[str, Any] = {}
    for part, values in spec.items():
        if not isinstance(values, Mapping):
            found[part] = values
            continue
        for name, value in values.items():
            if name == "options" and isinstance(value, Mapping):
                found |= {f"{part}.{option}": v for option, v in value.items()}
            else:
                found[part if name == "method" else name] = value
    found.pop("schema", None)
    return found


def rows(folder: Path) -> tuple[SweepFile | None, list[Row]]:
    """The plan, and a row a run: those planned, in order, then those that no plan names, by the folder's name.

    Raises WanlabError where the folder cannot be listed or its plan is damaged.
    """
    try:
        with os.scandir(folder) as entries:
            folders = sorted((e.name, e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        problem = f"Cannot read {folder}: {error.strerror or error}"
        raise WanlabError(problem, remedy="Give the folder that a sweep wrote, or that holds run folders") from None
    sweep = _sweep(folder)
    planned = {point.folder: point for point in sweep.points if point.folder} if sweep else {}
    found: dict[str, tuple[_Read, str]] = {}
    for name, path in folders:
        if name != PROGRESS and (there := _run(path, name in planned)) is not None:
            found[name] = there
    return sweep, list(_ordered(folder, sweep, found))


def _sweep(folder: Path) -> SweepFile | None:
    stamps = tuple(stamp for p in sorted(folder.glob("sweep*.json")) if (stamp := _stamp(str(p))) is not None)
    there = _sweeps.get(str(folder))
    if there is None or there[0] != stamps:
        there = _sweeps[str(folder)] = stamps, read_sweep(folder)
    return there[1]


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _run(path: str, is_planned: bool) -> tuple[_Read, str] | None:
    """What a folder says and its status now; None for a folder that is no run's."""
    file = os.path.join(path, RUN_JSON)
    try:
        stamp = _stamp(file)
        if stamp is None:
            return _begun(Path(path)) if is_planned or newest_attempt(Path(path)) else None
    except OSError as error:
        return _Read((0, 0, 0), None, f"Cannot read {file}: {error.strerror or error}"), UNREADABLE
    read = _records.get(file)
    if read is None or read.stamp != stamp:
        read = _records[file] = _parsed(Path(file), stamp)
        while len(_records) > _KEPT:
            with contextlib.suppress(KeyError, RuntimeError):  # another thread was quicker
                _records.pop(next(iter(_records)))
    if read.record is None:
        return read, UNREADABLE
    return read, status_now(Path(path), read.record)


def _parsed(file: Path, stamp: Stamp) -> _Read:
    try:
        return _Read(stamp, read_record(file), "")
    except WanlabError as error:
        return _Read(stamp, None, str(error))


def _begun(folder: Path) -> tuple[_Read, str]:
    """A folder without a record: somebody is just about to write it, or died before it could."""
    number = newest_attempt(folder)
    status = "pending" if not number else "running" if is_in_hand(folder, number) else "crashed"
    return _Read((0, 0, 0), None, ""), status


def _ordered(folder: Path, sweep: SweepFile | None, found: dict[str, tuple[_Read, str]]) -> Iterator[Row]:
    points = sweep.points if sweep else ()
    mine = _matched(points, found)
    theirs = {name for names in mine.values() for name in names}
    for point in points:
        names = mine.get(point.id, [])
        yield from (_row(folder / name, *found[name], point) for name in names)
        if not names:
            yield Row(point.id, "pending", None, point.settings, planned=point.spec)
    others = {name: there for name, there in found.items() if name not in theirs}
    names = sweep.names if sweep and sweep.names else _differing([there for there, _ in others.values()])
    for name, (read, status) in others.items():
        yield _row(folder / name, read, status, settings={n: read.settings.get(n) for n in names})


def _row(folder: Path, read: _Read, status: str, point: Point | None = None, settings: Any = None) -> Row:
    record = read.record
    why = read.error if record is None or record.error is None else f"{record.error.type}: {record.error.message}"
    if status == "crashed" and not why:
        why = "Its process ended before it did"
    planned = point.spec if point else {}
    told = point.settings if point else settings
    return Row(_id(folder, record, point), status, folder, told, record, why if status != "ok" else "", planned)


def _id(folder: Path, record: RunRecord | None, point: Point | None) -> str:
    return point.id if point else (record.id if record else "") or folder.name


def _matched(points: Iterable[Point], found: Mapping[str, tuple[_Read, str]]) -> dict[str, list[str]]:
    """Point's id -> names of its run folders: the one it names, and those whose run is its spec's.

    More than one where other weights or other numerics were run too.
    """
    by_run: dict[str, list[str]] = {}
    kinds: set[tuple[str, int]] = set()
    for name, (read, _) in found.items():
        if read.record is not None:
            by_run.setdefault(read.record.id, []).append(name)
            kinds.add((read.record.fingerprint, read.record.numerics))
    mine: dict[str, list[str]] = {}
    for point in points:
        runs = [point.id, *(run_id(point.id, *kind) for kind in kinds)]
        names = [point.folder] if point.folder in found else []
        mine[point.id] = list(dict.fromkeys([*names, *(name for run in runs for name in by_run.get(run, ()))]))
    return mine


def _differing(reads: Iterable[_Read]) -> list[str]:
    """Names of the settings in which any run differs from another."""
    values: dict[str, set[str]] = {}
    known = [read.settings for read in reads if read.record is not None]
    for name in dict.fromkeys(name for settings in known for name in settings):
        values[name] = {_text(settings.get(name)) for settings in known}
    return [name for name, different in values.items() if len(different) > 1]


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)


def everything(row: Row) -> dict[str, Any]:
    """All that a row's run was made with, by flat names, also what does not differ from the others."""
    if row.record is not None:
        return flat(row.record.spec) if row.record.spec else dict(row.record.params)
    return flat(row.planned)
