"""One run as a row of a table, read from its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from wanlab.runs import _record
from wanlab.runs._record import RunRecord
from wanlab.spec import GenerationSpec

UNREADABLE = "unreadable"
STATUSES = ("ok", "running", "pending", "failed", "oom", "cancelled", "crashed", UNREADABLE)
_CLIPS = ("video.mp4", "image.png")
_NOTEBOOKS = ("notebook.ipynb", "failed.ipynb")


@dataclass(frozen=True, eq=False)
class Row:
    """A run that is planned, runs or has ended; one whose record cannot be read is a row too, and `error` says why."""

    id: str
    """Of the spec, or of a notebook's parameters, where the sweep's plan tells; else the run's."""
    status: str
    folder: Path | None = None
    """None for a run that nobody has begun."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What tells it from the others: what the sweep varies, or where the specs differ."""
    record: RunRecord | None = None
    error: str = ""
    """Why it did not end well, or cannot be read; empty for all others."""
    planned: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The spec as the sweep's plan has it."""

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured, by name."""
        return dict(self.record.metrics) if self.record else {}

    @property
    def seconds(self) -> float | None:
        """Of the whole run; None while nobody knows."""
        return self.record.timings.get("total") if self.record else None

    @property
    def attempt(self) -> int:
        """How often it was begun; 0 for a run that nobody has begun."""
        return self.record.attempt if self.record else 0

    @property
    def stale(self) -> bool:
        """Whether an earlier version made it, whose numerics were others."""
        return self.record is not None and self.status == "ok" and self.record.numerics != _record.NUMERICS

    @cached_property
    def spec(self) -> GenerationSpec | None:
        """The spec; None for a notebook's run. Raises WanlabError for one that this version cannot read."""
        there = self.record.spec if self.record and self.record.spec else self.planned
        return GenerationSpec.from_json(there) if there else None

    @property
    def notebook(self) -> Path | None:
        """The executed notebook, the failed one too."""
        return self._first(_NOTEBOOKS)

    @property
    def clip(self) -> Path | None:
        """The video or image that the record lists."""
        listed = {file.path for file in self.record.artifacts} if self.record else set()
        return self._first(tuple(name for name in _CLIPS if name in listed))

    def _first(self, names: tuple[str, ...]) -> Path | None:
        places = [] if self.folder is None else [self.folder / name for name in names]
        return next((place for place in places if os.path.isfile(place)), None)

    def costs(self) -> dict[str, Any]:
        """What the record says that it took: forwards of the network, those a cache skipped, peak of the memory."""
        ran = self.record.resolved.get("ran") if self.record else None
        ran = ran if isinstance(ran, dict) else {}
        forwards, cache = ran.get("forwards"), ran.get("cache")
        reused = cache.get("reused") if isinstance(cache, dict) else None  # a record may be foreign
        counts = list(forwards.values()) if isinstance(forwards, dict) else []
        return {
            "forwards": sum(counts) if counts and all(isinstance(n, int) for n in counts) else None,
            "skipped": reused if isinstance(reused, int) else None,
            "peak_bytes": self.record.peak_bytes if self.record else None,
        }
