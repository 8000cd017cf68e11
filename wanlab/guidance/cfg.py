"""Classifier-free guidance at every step."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor

from wanlab.guidance._rule import COND, PLAIN, Rule, Text, guided, pair
from wanlab.registry import GUIDANCE
from wanlab.sites import Branch, Conditions, StepContext


@GUIDANCE.register("cfg")
class CFG(Rule):
    """uncond + scale * (cond - uncond), with a scale for each expert; a scale of 1 runs the conditional branch alone.

    Source: arXiv:2207.12598; same arithmetic as diffusers 0.42.1's WanPipeline, which also drops the unconditional
    branch below 1 and, when the first scale is 1, ignores the second; here both do what they say.
    """

    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        if self.scale(ctx) == 1:
            return [Branch(COND, text["prompt"], conditions)]
        return pair(text, conditions)

    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        return guided(predictions, self.scale(ctx))

    def acts(self, ctx: StepContext) -> Hashable:
        return PLAIN, self.scale(ctx)

    def needs_negative(self, num_steps: int) -> bool:
        return any(scale != 1 for scale in self.scales)
