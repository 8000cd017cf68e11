"""Classifier-free guidance over an interval of steps."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

from pydantic import Field, model_validator

from wanlab.errors import WanlabError
from wanlab.guidance._rule import PLAIN
from wanlab.guidance.cfg import CFG
from wanlab.registry import GUIDANCE
from wanlab.sites import StepContext
from wanlab.spec import Part


@GUIDANCE.register("cfg_interval")
class CFGInterval(CFG):
    """`cfg` in the steps with start <= step / num_steps < stop, the conditional branch alone in the others.

    Each step left out saves a network call; the defaults leave out none and equal `cfg`. Source: arXiv:2404.07724.
    """

    class Options(Part):
        """The interval, in fractions of the steps (not of sigma)."""

        start: float = Field(0.0, ge=0, le=1)
        """Guidance begins at this fraction of the steps; 0 is the first, noisiest step."""
        stop: float = Field(1.0, ge=0, le=1)
        """Guidance ends before this fraction of the steps; 1 keeps it to the last."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.start > self.stop:
                raise WanlabError(f"start {self.start} is after stop {self.stop}", remedy="Give start <= stop.")
            return self

    def scale(self, ctx: StepContext) -> float:
        return super().scale(ctx) if self._guides(ctx.step, ctx.num_steps) else 1.0

    def acts(self, ctx: StepContext) -> Hashable:
        return PLAIN, self.scale(ctx)

    def needs_negative(self, num_steps: int) -> bool:
        return super().needs_negative(num_steps) and any(self._guides(i, num_steps) for i in range(num_steps))

    def _guides(self, step: int, num_steps: int) -> bool:
        return self.options.start <= step / num_steps < self.options.stop
