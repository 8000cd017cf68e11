"""Reading the results: means and intervals over prompts, and what a method gives at a speed between its points."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wanlab.shapes.judge import wilson

PLAIN = "none/none"
NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its 95 % interval, by resampling prompts (percentile bootstrap)."""

    value: float
    low: float
    high: float


class Results:
    """results/h100.json, and results/cpu.json where it is given."""

    def __init__(self, file: Path, cpu: Path | None = None) -> None:
        self.data: dict[str, Any] = json.loads(file.read_text())
        self.cpu: dict[str, Any] = json.loads(cpu.read_text()) if cpu is not None else {"rows": {}}
        self.rows: dict[str, dict[str, Any]] = self.data["rows"]
        self.num_prompts = len(self.data["prompts"])
        rng = np.random.default_rng(0)
        self._picks = rng.integers(0, self.num_prompts, (NUM_RESAMPLES, self.num_prompts))

    @property
    def methods(self) -> dict[str, list[str]]:
        """Method -> its rows' keys, from careful to bold; without the plain run."""
        found: dict[str, list[str]] = {}
        for key in self.rows:
            if key != PLAIN:
                found.setdefault(label(key), []).append(key)
        return found

    def column(self, key: str, name: str) -> np.ndarray:
        """A value for each prompt."""
        values = self.rows[key]["clips"].get(name, 1.0)  # the plain run has no ideal speed-up: 1
        return np.broadcast_to(np.asarray(values, dtype=np.float64), self.num_prompts)

    def mean(self, key: str, name: str) -> Mean:
        """Of a column."""
        return self.mean_of(self.column(key, name))

    def mean_of(self, values: np.ndarray) -> Mean:
        """Of a value for each prompt; all columns are resampled alike."""
        low, high = np.percentile(values[self._picks].mean(1), [2.5, 97.5])
        return Mean(float(values.mean()), float(low), float(high))

    def at_speed(self, method: str, speed: float, name: str) -> np.ndarray | None:
        """A column between a method's points at an ideal speed-up, linear; None outside its points."""
        keys = self.methods[method]
        speeds = [self.mean(key, "ideal_speedup").value for key in keys]
        for left, right, below, above in zip(keys, keys[1:], speeds, speeds[1:], strict=False):
            if below <= speed <= above:
                part = (speed - below) / (above - below)
                return (1 - part) * self.column(left, name) + part * self.column(right, name)
        return None

    def right(self, key: str) -> tuple[int, float, float]:
        """Clips in which colour, shape and motion are the prompt's; Wilson's interval of their share."""
        count = int(self.column(key, "right").sum())
        return count, *wilson(count, self.num_prompts)

    def realised(self, key: str) -> list[float]:
        """Speed-up of each timed clip against the plain clip of its prompt, on the GPU."""
        plain, own = (self.rows[k]["timed"]["seconds"] for k in (PLAIN, key))
        return [a / b for a, b in zip(plain, own, strict=True)]

    def realised_mean(self, key: str) -> float:
        """Plain seconds over the point's, all timed clips together."""
        return sum(self.rows[PLAIN]["timed"]["seconds"]) / sum(self.rows[key]["timed"]["seconds"])

    def timed_ideal(self, key: str) -> float:
        """Of the timed clips, whose second prompt is not among the others'."""
        return statistics.harmonic_mean(self.rows[key]["timed"]["ideal_speedup"])

    def realised_cpu(self, key: str) -> list[float]:
        """Speed-up in processor seconds, a round each; empty where it was not measured."""
        rows = self.cpu["rows"]
        if key not in rows:
            return []
        return [a / b for a, b in zip(rows[PLAIN]["cpu_seconds"], rows[key]["cpu_seconds"], strict=True)]

    def front(self, name: str) -> list[str]:
        """Rows that no other row beats in both ideal speed-up and the mean of a column, from slow to quick."""
        place = {k: (self.mean(k, "ideal_speedup").value, self.mean(k, name).value) for k in self.rows if k != PLAIN}
        best = [
            k
            for k, (x, y) in place.items()
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in place.values())
        ]
        return sorted(best, key=lambda k: place[k])


def label(key: str) -> str:
    """The method of a row's key; TaylorSeer's two forms are two."""
    return key.split("/")[0]
