"""What a report's table has for each run: the settings that differ, what was measured, what it took."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from wanlab.details import in_words
from wanlab.errors import unknown

if TYPE_CHECKING:
    from wanlab.runs import Row

Better = Literal["low", "high", ""]
STATUS = "status"
REFERENCE = "reference_"  # what the names of distances to the reference begin with
_LOW = (
    "second",
    "time",
    "byte",
    "memory",
    "loss",
    "error",
    "distance",
    "mse",
    "mae",
    "lpips",
    "flip",
    "flicker",
    "fid",
    "forwards",
)
_DIGITS = 4  # significant ones of the largest number of a column
_MB = 1e6


@dataclass(frozen=True)
class Column:
    """A column: its name, how it is headed, its unit and which numbers are better."""

    name: str
    title: str
    unit: str = ""
    meaning: str = ""
    better: Better = ""
    decimals: int | None = None
    is_setting: bool = False
    is_number: bool = True
    """Whether all its values are numbers, so that it sorts as such and can be an axis."""

    @property
    def head(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: Any) -> str:
        """A value as it is shown: numbers with the column's decimals, "∞" for a distance of equals, "" for none."""
        if value is None:
            return ""
        if isinstance(value, float) and math.isinf(value):
            return "∞" if value > 0 else "−∞"
        if self.is_number and self.decimals is not None:
            return f"{value:.{self.decimals}f}"
        return words(value)


@dataclass(frozen=True)
class Entry:
    """A run in the report: its place, from 1, what it is called, and a value for each column that has one."""

    number: int
    label: str
    row: Row
    values: dict[str, Any] = field(default_factory=dict)
    is_reference: bool = False


_MEASURES = (
    Column("seconds", "total", "s", "all stages of the run; loading counts, if any", "low", 2),
    Column("denoise_seconds", "denoising", "s", "time in the network and the sampler", "low", 2),
    Column("forwards", "forwards", "", "of the network that the run asked for", "low", 0),
    Column("skipped_forwards", "skipped", "", "forwards in which a cache reused something", "high", 0),
    Column("ideal_speedup", "ideal speed-up", "×", "of the cache, if reuse cost nothing", "high", 2),
    Column("state_mb", "cache state", "MB", "what the cache held at the most", "low", 1),
    Column("peak_mb", "peak memory", "MB", "of the GPU; on the CPU, of the process", "low", 0),
)
DISTANCES = (
    Column(f"{REFERENCE}psnr", "PSNR", "dB", "to the reference's clip, one error over all frames", "high", 2),
    Column(f"{REFERENCE}ssim", "SSIM", "", "to the reference's clip; 1 is equal", "high", 4),
    Column(f"{REFERENCE}latent_psnr", "latent PSNR", "dB", "to the reference's final latents", "high", 2),
)
_STATUS = Column(STATUS, STATUS, meaning="how the run ended", is_number=False)


def gather(
    rows: Sequence[Row], names: Iterable[str], distances: Mapping[int, Mapping[str, float]], references: set[int]
) -> tuple[list[Column], list[Entry]]:
    """The columns that any run has a value for, and the runs.

    names: the settings that vary, in order; `distances` by the row's index; `references`: indices of rows that others
    are measured against.
    """
    settings = list(dict.fromkeys([*names, *(name for row in rows for name in row.settings)]))
    entries = [
        Entry(i + 1, _label(row, i + 1), row, _values(row, distances.get(i, {})), i in references)
        for i, row in enumerate(rows)
    ]
    metrics = [name for name in _logged(rows) if name not in settings]
    measures = {c.name: replace(c, decimals=None) for c in _MEASURES}
    known = [replace(c, is_number=True) for c in DISTANCES]
    columns = [Column(name, name, is_setting=True) for name in settings]
    columns += [
        *known,
        *(
            measures.get(m, Column(m, m.replace("_", " "), better=_direction(m)))
            for m in metrics
            if m not in _names(known)
        ),
    ]
    columns += [c for c in _MEASURES if c.name not in {*settings, *metrics}]
    filled = [_fitted(c, [e.values.get(c.name) for e in entries]) for c in columns]
    return [_STATUS, *(c for c in filled if c is not None)], entries


def chosen(columns: Sequence[Column], names: Sequence[str] | None) -> list[Column]:
    """Columns by name, in the order given; None means all. Raises WanlabError for a name that no column has."""
    if names is None:
        return list(columns)
    by_name = {c.name: c for c in columns}
    for name in [names] if isinstance(names, str) else names:
        if name not in by_name:
            raise unknown("column", name, by_name, "report.columns lists them.")
    return [by_name[name] for name in ([names] if isinstance(names, str) else names)]


def words(value: Any) -> str:
    """A JSON value in one line of words; strings as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return in_words({str(k): v for k, v in value.items()})
    return json.dumps(value, ensure_ascii=False, default=str)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(columns: Iterable[Column]) -> set[str]:
    return {c.name for c in columns}


def _logged(rows: Sequence[Row]) -> list[str]:
    """Names of metrics in the order in which they were logged, by the run that has most of them."""
    return list(dict.fromkeys(n for row in sorted(rows, key=lambda row: -len(row.metrics)) for n in row.metrics))


def _label(row: Row, number: int) -> str:
    return in_words(row.settings) or (row.folder.name if row.folder is not None else f"run {number}")


def _values(row: Row, distances: Mapping[str, float]) -> dict[str, Any]:
    files = {file.path for file in row.record.artifacts} if row.record else set()
    metrics = {name: value for name, value in row.metrics.items() if not (isinstance(value, str) and value in files)}
    found = {**_took(row), **metrics, **distances, **row.settings, STATUS: row.status}
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in found.items()}


def _took(row: Row) -> dict[str, Any]:
    """Seconds, forwards and bytes of a record, which may be foreign; what it does not say is left out."""
    record = row.record
    if record is None:
        return {}
    ran = record.resolved.get("ran")
    ran = ran if isinstance(ran, dict) else {}
    forwards, cache = ran.get("forwards"), ran.get("cache")
    cache = cache if isinstance(cache, dict) else {}
    counts = list(forwards.values()) if isinstance(forwards, dict) else []
    found = {
        "seconds": row.seconds,
        "denoise_seconds": record.timings.get("denoise"),
        "forwards": sum(counts) if counts and all(map(is_number, counts)) else None,
        "skipped_forwards": cache.get("reused"),
        "ideal_speedup": cache.get("ideal_speedup"),
        "state_mb": _megabytes(cache.get("state_bytes")),
        "peak_mb": _megabytes(record.peak_bytes),
    }
    return {name: value for name, value in found.items() if is_number(value)}


def _megabytes(num_bytes: Any) -> float | None:
    return num_bytes / _MB if is_number(num_bytes) and num_bytes > 0 else None


def _direction(name: str) -> Better:
    """Whether small numbers of a measure that a user named are the better ones, by its name."""
    return "low" if any(word in name.lower() for word in _LOW) else "high"


def _fitted(column: Column, values: Sequence[Any]) -> Column | None:
    """The column as its values need it; None without any."""
    present = [v for v in values if v is not None]
    if not present:
        return None
    if not all(map(is_number, present)):
        return replace(column, is_number=False, better="", decimals=None)
    if column.is_setting or column.decimals is not None:
        return column
    return replace(column, decimals=_decimals([v for v in present if math.isfinite(v)]))


def _decimals(numbers: Sequence[float]) -> int:
    """As many as give the largest number four significant digits; none for whole numbers."""
    if all(float(v).is_integer() for v in numbers):
        return 0
    largest = max(abs(v) for v in numbers)
    return min(max(_DIGITS - 1 - math.floor(math.log10(largest)), 0), 8)
