"""Seconds and peak memory of stages and steps; every reading waits for the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GB = 1e9


class Gauge:
    """Reads the time and the peak of a device's allocated memory; there is no such peak on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def now(self) -> float:
        """Seconds, after all that was asked of the device is done."""
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def reset(self) -> None:
        """Begin a new peak."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """GB (1e9 bytes) allocated at the worst moment since `reset`, weights included."""
        return round(torch.cuda.max_memory_allocated() / GB, 2) if self._cuda else None

    def stage(self, run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """(what `run` returns, its seconds and peak)."""
        self.reset()
        begin = self.now()
        result = run()
        seconds = self.now() - begin
        return result, {"seconds": round(seconds, 4), "peak_gb": self.peak_gb()}


class Clock:
    """One denoising run: the conditions up to the first forward, then each step."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self.conditions: dict[str, Any] = {}
        self.steps: list[float] = []
        self.latents: list[Tensor] = []
        """After each step; the last as the run returns them."""
        self.peak_gb: float | None = None
        self._mark = 0.0

    def start(self) -> None:
        """Now the conditions begin."""
        self._gauge.reset()
        self._mark = self._gauge.now()

    def forward(self) -> None:
        """A forward begins; only the first one counts."""
        if self.conditions:
            return
        now = self._gauge.now()
        self.conditions = {"seconds": round(now - self._mark, 4), "peak_gb": self._gauge.peak_gb()}
        self._gauge.reset()
        self._mark = now

    def step(self, latents: Tensor) -> None:
        """A step has ended."""
        now = self._gauge.now()
        self.steps.append(round(now - self._mark, 4))
        self._mark = now
        self.latents.append(latents)

    def end(self, latents: Tensor) -> None:
        """The run has ended."""
        assert self.latents[-1].shape == latents.shape
        self.latents[-1] = latents
        self._gauge.now()
        self.peak_gb = self._gauge.peak_gb()
