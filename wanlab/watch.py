"""Who watches a generation and how it is stopped: progress, cancelling, and Ctrl-C at moments that can bear it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wanlab.sampling import OnStep


class Cancelled(BaseException):
    """A generation ended because it was asked to. Not an `Exception`, so `except Exception` does not swallow it."""


@dataclass(frozen=True)
class Progress:
    """How far a generation is: `seconds` since its start, `eta` seconds of steps left or None, `fraction` of 0..1."""

    stage: str
    step: int
    num_steps: int
    seconds: float
    eta: float | None
    fraction: float

    def __str__(self) -> str:
        steps = f" {self.step}/{self.num_steps}" if self.stage == "denoise" else ""
        left = "" if self.eta is None or self.stage == "done" else f", about {self.eta:.0f} s left"
        return f"{self.stage}{steps}, {self.seconds:.1f} s{left}"


class Watch:
    """Between a running generation and whoever watches it: the stage and step reached, and the wish to stop."""

    _DENOISING = 0.9  # share of the whole that the bar gives to the steps; decoding has the rest

    def __init__(self, on_step: OnStep | None = None) -> None:
        self._on_step = on_step
        self._stop = threading.Event()
        self._stage, self._step, self._num_steps = "waiting", 0, 0
        self._started: float | None = None
        self._ended: float | None = None
        self._loop_started = 0.0

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
            raise Cancelled(f"Cancelled in {self._stage}, step {self._step} of {self._num_steps}.")

    def enter(self, stage: str, num_steps: int = 0) -> None:
        """Note that `stage` begins; raises `Cancelled` if the generation is to stop."""
        self.check()
        now = time.monotonic()
        self._started = self._started or now
        self._stage, self._num_steps = stage, num_steps or self._num_steps
        if stage == "denoise":
            self._loop_started = now

    def finish(self) -> None:
        """Note that the generation is complete."""
        self._stage, self._ended = "done", time.monotonic()

    def on_step(self, step: int, sigma: float, latents: Tensor, denoised: Tensor) -> None:
        """The `on_step` of the loop: counts, passes the call on; raises `Cancelled` if the generation is to stop."""
        self._step = step + 1
        if self._on_step is not None:
            self._on_step(step, sigma, latents, denoised)
        self.check()

    @property
    def progress(self) -> Progress:
        """A snapshot of this moment."""
        now = self._ended or time.monotonic()
        seconds = now - self._started if self._started else 0.0
        share = self._step / self._num_steps if self._num_steps else 0.0
        eta = None
        if self._stage == "denoise" and self._step:
            eta = (now - self._loop_started) * (1 / share - 1)
        fraction = 1.0 if self._stage == "done" else self._DENOISING * share
        return Progress(self._stage, self._step, self._num_steps, seconds, eta, fraction)


class Interrupts:
    """Holds Ctrl-C back while something is attached or detached, so that it never falls between doing and noting it.

    `with Interrupts() as interrupts, attach(...), interrupts.let_through():` in one statement: an interrupt acts at
    once in the body and waits before and after it, until the next `check` or the end. Other threads get none anyway.
    """

    def __init__(self) -> None:
        self._waiting = False
        self._open = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._previous = handler
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        self.check()

    def _handle(self, number: int, frame: Any) -> None:
        if self._open:
            self._previous(number, frame)
        else:
            self._waiting = True

    def check(self) -> None:
        """Let a waiting interrupt act now."""
        if self._waiting:
            self._waiting = False
            self._previous(signal.SIGINT, None)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Interrupts act inside, those that waited first."""
        self._open = True
        try:
            self.check()
            yield
        finally:
            self._open = False
