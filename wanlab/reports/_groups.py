"""Means over repetitions: runs whose settings are equal but for seed and prompt."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wanlab.reports._columns import Column, Entry
from wanlab.reports._distances import REPEATS


@dataclass(frozen=True)
class Mean:
    """A mean and the spread around it; `num_equal` infinite numbers (distances of equals) are left out of both."""

    mean: float | None
    sd: float | None
    """Sample standard deviation (n - 1); None for fewer than two numbers."""
    count: int
    num_equal: int = 0

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Mean:
        finite = [v for v in numbers if math.isfinite(v)]
        num_equal = len(numbers) - len(finite)
        try:
            sd = statistics.stdev(finite) if len(finite) > 1 else None
            return cls(statistics.fmean(finite) if finite else None, sd, len(finite), num_equal)
        except OverflowError:  # of a foreign record: numbers whose sum is none
            return cls(None, None, len(finite), num_equal)


@dataclass(frozen=True)
class Group:
    """Runs that ended well and repeat one another, their settings and the means of each column of numbers."""

    settings: dict[str, Any]
    entries: tuple[Entry, ...]
    means: dict[str, Mean]


def groups(columns: Sequence[Column], entries: Sequence[Entry]) -> list[Group]:
    """Groups of runs that ended well, in order; [] where no group has two, as there is nothing to average."""
    names = [c.name for c in columns if c.is_setting and c.name not in REPEATS]
    numbers = [c.name for c in columns if c.is_number and not c.is_setting]
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.row.status == "ok":
            key = json.dumps([entry.values.get(name) for name in names], sort_keys=True, default=str)
            found.setdefault(key, []).append(entry)
    if all(len(members) < 2 for members in found.values()):
        return []
    return [_group(names, numbers, tuple(members)) for members in found.values()]


def repeats(columns: Sequence[Column]) -> list[str]:
    """The settings that vary and only repeat a measurement."""
    return [c.name for c in columns if c.is_setting and c.name in REPEATS]


def _group(names: Sequence[str], numbers: Sequence[str], members: tuple[Entry, ...]) -> Group:
    settings = {name: members[0].values.get(name) for name in names}
    present = {name: [e.values[name] for e in members if e.values.get(name) is not None] for name in numbers}
    return Group(settings, members, {name: Mean.of(values) for name, values in present.items() if values})
