"""Normalized attention guidance: a negative prompt inside cross-attention, without a branch of its own."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from pydantic import Field

from wanlab.guidance._rule import PLAIN, Text, negative
from wanlab.guidance.cfg import CFG
from wanlab.registry import GUIDANCE
from wanlab.sites import Branch, Conditions, StepContext
from wanlab.spec import Part


@GUIDANCE.register("nag")
class NAG(CFG):
    """The conditional branch's cross-attention moves away from the negative prompt; a guidance scale adds `cfg`.

    So a negative prompt works at guidance_scale 1, for distilled models, at the cost of one more cross-attention; the
    network computes `attention.normalized_guidance` in every block. scale 1 or alpha 0 is `cfg`. The defaults are usual
    for Wan; WanGP's are off, 3.5 and 0.5. Source: arXiv:2505.21179.
    """

    class Options(Part):
        """How far, and what holds it back."""

        scale: float = Field(11.0, ge=1)
        """Extrapolation from the negative prompt's attention to the prompt's; 1 is none."""
        tau: float = Field(2.5, ge=1)
        """Longest result, in L1 norms of the prompt's attention."""
        alpha: float = Field(0.25, ge=0, le=2)
        """Share of the result that is mixed in; 0 is none."""

    @classmethod
    def unfit(cls, model: Any) -> str:
        return super().unfit(model) or ("" if model.nag else "has no cross-attention that takes a negative prompt")

    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        cond, *others = super().branches(ctx, text, conditions)
        if not self._acts:
            return [cond, *others]
        o = self.options
        both = {**cond.text, **{f"negative_{name}": value for name, value in negative(text).items()}}
        return [replace(cond, text=both, nag=(o.scale, o.tau, o.alpha)), *others]

    def acts(self, ctx: StepContext) -> Hashable:
        o = self.options
        return ("nag", self.scale(ctx), o.scale, o.tau, o.alpha) if self._acts else (PLAIN, self.scale(ctx))

    def needs_negative(self, num_steps: int) -> bool:
        return self._acts or super().needs_negative(num_steps)

    @property
    def _acts(self) -> bool:
        return bool(self.options.scale != 1 and self.options.alpha != 0)
