"""What of an experiment's runs goes into git: the report's table, and the numbers; no clips and no notebooks.

    python experiments/keep.py runs/caches experiments/caches/results

Writes report.html beside the runs, table.md and summary.json into the second folder. "forwards" counts those of the
clips' shared sweep by the shares of blocks that were computed: one by one, and with steps taken together counted once
(two pairs of clips that parted from each other before they parted in themselves count as one until then).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wanlab
from wanlab import sweeps
from wanlab.files import atomic_write

_ENV = ("commit", "dirty", "python", "platform", "torch", "threads")


def per_step(model: Any, row: Any) -> list[float]:
    """Shares of the forwards that a clip's steps computed."""
    cache = row.record.resolved["ran"].get("cache")
    if cache is None:
        return list(map(float, sweeps.Variant(model, row.id, row.spec).computed))
    return [sum(step) for step in zip(*(branch.values() for branch in cache["shares"].values()), strict=True)]


def once(rows: Sequence[Any], steps: dict[str, list[float]]) -> float:
    """Forwards of clips of one prompt, those of steps that several took together counted once."""
    total = 0.0
    for i in range(max(map(len, steps.values()))):
        taken: dict[frozenset[str], float] = {}
        for row in rows:
            mine, shared = row.record.id, row.record.resolved["ran"]["shared"]
            who = frozenset([mine, *shared["with"]] if i < shared["prefix_steps"] else [mine])
            taken[who] = max(taken.get(who, 0.0), sum(steps[mine][i : i + 1]))
        total += sum(taken.values())
    return total


def forwards(clips: Path) -> dict[str, float]:
    """Of all clips of the shared sweep."""
    model = wanlab.load("wan_tiny")
    rows = [row for row in wanlab.results(clips) if row.status == "ok"]
    steps = {row.record.id: per_step(model, row) for row in rows}
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(f"{row.spec.text.prompt} {row.spec.sampling.seed}", []).append(row)
    alone = sum(map(sum, steps.values()))
    shared = sum(once(group, {row.record.id: steps[row.record.id] for row in group}) for group in groups.values())
    return {"clips": len(rows), "alone": round(alone, 1), "run": round(shared, 1), "ratio": round(shared / alone, 3)}


def summary(results: Any) -> dict[str, Any]:
    """Settings and metrics of each run, and where they ran."""
    rows = [
        {"settings": dict(row.settings), "metrics": row.metrics, "seconds": row.seconds, "attempt": row.attempt}
        for row in results
    ]
    env = next(row.record.env for row in results if row.status == "ok")
    seconds = round(sum(row["seconds"] or 0 for row in rows), 1)
    counts = results.counts()
    return {"counts": counts, "seconds": seconds, "env": {name: env.get(name) for name in _ENV}, "rows": rows}


def main(folder: Path, results: Path) -> None:
    found = wanlab.results(folder)
    made = {"forwards": forwards(folder / "clips"), **summary(found)}
    results.mkdir(parents=True, exist_ok=True)
    atomic_write(results / "summary.json", json.dumps(made, indent=1) + "\n")
    atomic_write(results / "table.md", wanlab.report(folder).to_markdown() + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
