"""What a report tells about all its runs together: how they ended, what they share, where they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wanlab.errors import WanlabError
from wanlab.reports._columns import words
from wanlab.reports._distances import Distances, readable_spec
from wanlab.spec import GenerationSpec, plain

if TYPE_CHECKING:
    from wanlab.runs import Results, Row

_ORDER = ("ok", "failed", "oom", "crashed", "cancelled", "unreadable", "running", "pending")
_ENV = ("gpu", "platform", "python", "wanlab", "commit", "torch", "cuda", "threads", "diffusers", "transformers")


@dataclass(frozen=True)
class Facts:
    """What holds for a whole report."""

    title: str
    verdict: str
    """On one line: how many runs ended how, and on what machine."""
    base: dict[str, Any]
    """Settings that each run's are a difference to, by flat name."""
    base_is: str
    """In words, what the base is."""
    differences: tuple[dict[str, tuple[Any, Any]], ...]
    """For each run, the settings that differ: name -> (base's, its own)."""
    specs: tuple[dict[str, Any] | None, ...]
    """For each run, its whole spec; None where there is none."""
    environment: dict[str, Any]
    """What all records say alike."""
    environments: dict[str, dict[str, list[int]]]
    """What they do not: name -> value in words -> numbers of the runs."""
    reference: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def tell(results: Results, distances: Distances) -> Facts:
    """Gather the facts of results and of what was measured at report time."""
    rows, sweep = list(results), results.sweep
    specs = [readable_spec(row) for row in rows]
    base_spec, base_is = _base(sweep, specs)
    planned = {} if sweep is None else dict(sweep.base)
    base = _flat(base_spec) if base_spec is not None else {} if sweep is not None and sweep.kind == "specs" else planned
    same, other = _environments(rows)
    return Facts(
        title=(sweep.title if sweep is not None else "") or results.folder.resolve().name or "runs",
        verdict=_verdict(rows, same, other),
        base=base,
        base_is=base_is if base_spec is not None else "the parameters of the notebook",
        differences=tuple(_difference(row, spec, base_spec, base) for row, spec in zip(rows, specs, strict=True)),
        specs=tuple(None if spec is None else spec.to_dict() for spec in specs),
        environment=same,
        environments=other,
        reference=distances.settings,
        notes=tuple(f"{count} run{'s' if count != 1 else ''}: {note}" for note, count in distances.notes.items()),
    )


def _base(sweep: Any, specs: Sequence[Any]) -> tuple[GenerationSpec | None, str]:
    """The base of the sweep, else the first spec that can be read."""
    if sweep is not None and sweep.kind == "specs":
        try:
            return GenerationSpec.from_json(sweep.base), "the base of the sweep"
        except WanlabError:
            return next((s for s in specs if s is not None), None), "the first run, as the sweep's base cannot be read"
    return next((s for s in specs if s is not None), None), "the first run"


def _flat(spec: GenerationSpec) -> dict[str, Any]:
    return {name: plain(value) for name, value in spec.flat().items()}


def _difference(row: Row, spec: Any, base_spec: Any, base: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    if spec is not None and base_spec is not None:
        return {name: (plain(a), plain(b)) for name, (a, b) in base_spec.diff(spec).items()}
    return {name: (base.get(name), value) for name, value in row.settings.items() if base.get(name) != value}


def _environments(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, dict[str, list[int]]]]:
    """What the runs' environments say alike, and what they do not."""
    known = [(i + 1, row.record.env) for i, row in enumerate(rows) if row.record is not None and row.record.env]
    names = sorted({n for _, env in known for n in env}, key=lambda n: (_ENV.index(n) if n in _ENV else len(_ENV), n))
    same: dict[str, Any] = {}
    other: dict[str, dict[str, list[int]]] = {}
    for name in names:
        values: dict[str, list[int]] = {}
        for number, env in known:
            values.setdefault(words(env.get(name)), []).append(number)
        if len(values) > 1:
            other[name] = values
        elif known[0][1].get(name) is not None:
            same[name] = known[0][1][name]
    return same, other


def _verdict(rows: Sequence[Row], same: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    counts = Counter(row.status for row in rows)
    said = [f"{counts['ok']} of {len(rows)} runs ok"]
    said += [f"{counts[s]} {s}" for s in (*_ORDER[1:], *sorted(set(counts) - set(_ORDER))) if counts[s]]
    if stale := sum(bool(row.stale) for row in rows):
        said.append(f"{stale} with earlier numerics")
    return " · ".join([*said, *_machine(rows, same, other)])


def _machine(rows: Sequence[Row], same: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The device, and when the last run ended."""
    said = []
    if "gpu" in other or "platform" in other:
        said.append("several machines")
    elif "gpu" in same:
        said.append(words(same["gpu"]))
    elif "platform" in same:
        threads = f", {words(same['threads'])} threads" if "threads" in same else ""
        said.append(f"CPU{threads}, {words(same['platform'])}")
    ended = [row.record.ended for row in rows if row.record is not None and row.record.ended]
    return said + ([f"ended {max(ended)[:10]}"] if ended else [])
