"""What a sweep plans: its points, written before anything runs.

Each sweep into the same folder that plans something new adds a file, `sweep.json`, `sweep-002.json` and so on, which
exactly one process creates and nobody changes: so none is lost, whoever else writes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from wanlab.errors import WanlabError
from wanlab.files import read_json, writing
from wanlab.runs._exclusive import create
from wanlab.runs._process import now
from wanlab.spec.part import Part

SWEEP_JSON = "sweep.json"
SCHEMA = 1
_NAME = re.compile(r"sweep(-\d{3,9})?\.json")
_MAX_BYTES = 256 << 20


class Point(Part):
    """One cell of a grid."""

    id: str
    """Of the spec, or of a notebook's parameters."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the axes set here, by flat names."""
    spec: dict[str, Any] = Field(default_factory=dict)
    """The whole spec; empty for notebooks."""
    folder: str = ""
    """The run's name below the sweep's folder; empty while it is not known."""


class SweepFile(Part):
    """What `sweep.json` holds."""

    schema_version: int = Field(SCHEMA, alias="schema", ge=1, le=SCHEMA)
    kind: Literal["specs", "notebook"] = "specs"
    title: str = ""
    base: dict[str, Any] = Field(default_factory=dict)
    """The spec, or the parameters, that the points are changes of."""
    names: tuple[str, ...] = ()
    """The axes, in order."""
    points: tuple[Point, ...] = ()
    created: str = Field(default_factory=now)
    forwards: dict[str, int] = Field(default_factory=dict)
    """Predicted forwards of the network: "alone" run one by one, "shared" as planned; 0 where unknown."""


def write_sweep(out: str | Path, sweep: SweepFile) -> SweepFile:
    """Write what a sweep plans, before it runs; returns it with what was planned in this folder before.

    Points of the same id are one; what is new of a later one (its folder, its settings) counts. Nothing is written
    where nothing is new. Raises WanlabError for a folder that holds a sweep of another kind or a file of a newer
    wanlab, and for a full disk.
    """
    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    while True:
        there = read_sweep(out)
        whole = sweep if there is None else _merged(there, sweep, out)
        if there is not None and whole.with_(created=there.created) == there:
            return there
        number = max(map(_number, _files(out)), default=0) + 1
        path = out / (SWEEP_JSON if number == 1 else f"sweep-{number:03}.json")
        if create(path, sweep.model_dump_json(by_alias=True, indent=2) + "\n"):
            return whole


def read_sweep(out: str | Path) -> SweepFile | None:
    """All that was planned in a folder; None where no sweep was. Raises WanlabError for a file that is damaged."""
    found: SweepFile | None = None
    for path in sorted(_files(Path(out)), key=_number):
        read = _read(path)
        found = read if found is None else _merged(found, read, path)
    return found


def _read(path: Path) -> SweepFile:
    data = read_json(path, _MAX_BYTES)
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise WanlabError(f"{path} has schema {schema}, this version reads up to {SCHEMA}", remedy="Update wanlab")
    return SweepFile.parse(data if isinstance(data, dict) else {"file": data}, prefix=path.name)


def _files(out: Path) -> list[Path]:
    return [path for path in out.glob("sweep*.json") if _NAME.fullmatch(path.name)]


def _number(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[1][1:]) if found and found[1] else 1


def _merged(first: SweepFile, later: SweepFile, where: Path) -> SweepFile:
    if first.kind != later.kind:
        remedy = "Give a folder of its own to each"
        raise WanlabError(f"{where} plans {later.kind}, and the folder has a sweep of {first.kind}", remedy=remedy)
    points = {point.id: point for point in first.points}
    for point in later.points:
        there = points.get(point.id)
        folder = point.folder or (there.folder if there else "")
        points[point.id] = point if folder == point.folder else point.with_(folder=folder)
    return first.with_(
        title=later.title or first.title,
        base=first.base or later.base,
        names=tuple(dict.fromkeys([*first.names, *later.names])),
        points=[point.model_dump(mode="json") for point in points.values()],
        forwards=later.forwards or first.forwards,
    )
