"""Between a running generation and whoever watches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import Literal

import torch
from torch import Tensor

from wanlab.sampling import OnStep
from wanlab.watch._lines import Lines
from wanlab.watch._progress import Progress, StageTime

STAGES = ("text", "conditions", "denoise", "decode", "post")
_SHARES = {"decode": (0.9, 0.08), "post": (0.98, 0.0), "save": (0.99, 0.0), "done": (1.0, 0.0)}
"""Where the bar is when a stage begins and how far it goes in it; the steps have all before."""
_KEPT = 100  # runs of different models and sizes whose times are remembered

_took: dict[Hashable, dict[str, float]] = {}
"""Seconds of each stage, and of a "step", in the last run of its kind in this process. Only estimates read it."""


class Cancelled(BaseException):
    """A generation ended because it was asked to. Not an `Exception`, so `except Exception` does not swallow it."""


def ended_as(error: BaseException) -> Literal["failed", "oom", "cancelled"]:
    """The status of a run that ended with this error."""
    if isinstance(error, Cancelled):
        return "cancelled"
    return "oom" if isinstance(error, torch.cuda.OutOfMemoryError) else "failed"


class Watch:
    """The stage and step that a generation has reached, and the wish to stop it.

    Entered around the generation; one thread runs it and any may look at `progress` and `cancel`. `lines` prints on
    the way, `stages` are those to come.
    """

    def __init__(
        self, on_step: OnStep | None = None, lines: Lines | None = None, stages: tuple[str, ...] = STAGES
    ) -> None:
        self._on_step, self._lines, self._names = on_step, lines, stages
        self._stop = threading.Event()
        self._stage, self._num_steps = "waiting", 0
        self._part = (0.0, 0.0)  # the share of the stage that is done, and since when
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._end: float | None = None
        self._steps = (0, 0.0, 0.0)  # how many are done, when the first was and when the last; read in other threads
        self._kind: Hashable = None
        self._known: dict[str, float] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end = time.monotonic()
        self._ended.setdefault(self._stage, self._end)
        if kind is None:
            self._stage = "done"
            self._remember()
        if self._lines is not None:
            self._lines.close(self.progress)

    def expect(self, kind: Hashable, num_steps: int) -> None:
        """Say what is generated: runs of one `kind` take about the same time."""
        self._kind, self._num_steps = kind, num_steps
        self._known = _took.get(kind, {})

    def _remember(self) -> None:
        seconds = {name: end - self._began[name] for name, end in self._ended.items() if name in self._began}
        if self._steps[0]:
            seconds["step"] = self._step_seconds()
        _took.pop(self._kind, None)
        _took[self._kind] = {**self._known, **seconds}
        while len(_took) > _KEPT:
            _took.pop(next(iter(_took)), None)

    def cancel(self) -> None:
        """Ask the generation to stop; it does within one step. Callable from any thread."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if the generation is to stop."""
        if self._stop.is_set():
            raise Cancelled(f"Cancelled in {self._stage}, step {self._steps[0]} of {self._num_steps}.")
        if self._lines is not None:
            self._lines.show(lambda: self.progress)

    def part(self, share: float) -> None:
        """Note the share (0 to 1) of the present stage that is done; raises `Cancelled` as `check` does."""
        if share > self._part[0]:
            self._part = (share, time.monotonic())
        self.check()

    def enter(self, stage: str, num_steps: int = 0) -> None:
        """Note that `stage` begins; raises `Cancelled` if the generation is to stop."""
        self.check()
        now = time.monotonic()
        if self._began:
            self._ended[self._stage] = now
        self._began[stage], self._part = now, (0.0, now)
        self._stage, self._num_steps = stage, num_steps or self._num_steps

    def on_step(self, step: int, sigma: float, latents: Tensor, denoised: Tensor) -> None:
        """The `on_step` of the loop: counts, passes the call on; raises `Cancelled` if the generation is to stop."""
        now = time.monotonic()
        self._steps = (step + 1, self._steps[1] or now, now)
        if self._on_step is not None:
            self._on_step(step, sigma, latents, denoised)
        self.check()

    @property
    def progress(self) -> Progress:
        """A snapshot of this moment."""
        now, stage, step = self._end or time.monotonic(), self._stage, self._steps[0]
        first = next(iter(tuple(self._began.values())), now)
        begins, length = _SHARES.get(stage, (0.0, 0.0))
        fraction = begins + length * self._part[0]
        if stage not in _SHARES and self._num_steps:
            fraction = _SHARES["decode"][0] * step / self._num_steps
        stages = tuple(self._stage_time(name, now) for name in self._names)
        eta = None if self._end or stage not in self._began else self._eta(stage, now)
        return Progress(stage, step, self._num_steps, now - first, eta, fraction, stages)

    def _stage_time(self, name: str, now: float) -> StageTime:
        began, ended = self._began.get(name), self._ended.get(name)
        done = ended is not None and name != self._stage
        return StageTime(name, None if began is None else (ended or now) - began, done)

    def _eta(self, stage: str, now: float) -> float | None:
        """Seconds left of this stage, None while unknown, and of the later ones as far as they are known."""
        here = self._left(stage, now)
        later = self._names[self._names.index(stage) + 1 :] if stage in self._names else ()
        return None if here is None else here + sum(self._usual(name) or 0.0 for name in later)

    def _left(self, stage: str, now: float) -> float | None:
        """Seconds left of the present stage: of its steps, else as in the last run, else by its parts."""
        (done, _, last), (share, since), began = self._steps, self._part, self._began[stage]
        if stage == "denoise" and done:
            return max(0.0, self._step_seconds() * (self._num_steps - done) - (now - last))
        usual = self._usual(stage)
        if share and (usual is None or usual < now - began):
            return max(0.0, (since - began) * (1 / share - 1) - (now - since))
        return None if usual is None else max(0.0, usual - (now - began))

    def _usual(self, stage: str) -> float | None:
        """Seconds that a stage took the last time, scaled to the number of steps."""
        if stage == "denoise":
            return None if "step" not in self._known else self._known["step"] * self._num_steps
        return self._known.get(stage)

    def _step_seconds(self) -> float:
        """Of one step: the first one, which reads weights and warms up, does not count once there are two."""
        done, first, last = self._steps
        return (last - first) / (done - 1) if done > 1 else last - self._began["denoise"]
