"""How far a generation is, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class StageTime(NamedTuple):
    """One stage of a generation: seconds spent in it so far, None before it begins."""

    name: str
    seconds: float | None
    done: bool


@dataclass(frozen=True)
class Progress:
    """How far a generation is: `seconds` since its start, `eta` seconds left or None, `fraction` of 0..1.

    `eta` covers the rest of the run, in denoise from the steps done; stages after it count with what they took in the
    last run of the same model and size in this process, and not at all before there was one. `fraction` never falls.
    """

    stage: str
    step: int
    num_steps: int
    seconds: float
    eta: float | None
    fraction: float
    stages: tuple[StageTime, ...] = ()

    def __str__(self) -> str:
        steps = f" {self.step}/{self.num_steps}" if self.stage == "denoise" else ""
        left = "" if self.eta is None or self.stage == "done" else f", about {self.eta:.0f} s left"
        return f"{self.stage}{steps}, {self.seconds:.1f} s{left}"
