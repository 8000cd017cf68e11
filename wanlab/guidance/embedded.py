"""Guidance that the network takes as an input, as Flux's distilled models do."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from pydantic import Field
from torch import Tensor

from wanlab.guidance._rule import COND, Rule, Text, guided, pair
from wanlab.registry import GUIDANCE
from wanlab.sites import Branch, Conditions, StepContext
from wanlab.spec import Part


@GUIDANCE.register("embedded")
class Embedded(Rule):
    """One branch, told the guidance scale; `true_cfg_scale` other than 1 adds classifier-free guidance on top.

    Source: FLUX.1-dev; same arithmetic as diffusers 0.42.1's FluxPipeline.
    """

    tells_network = True

    class Options(Part):
        """What comes on top of the embedded scale."""

        true_cfg_scale: float = Field(1.0, ge=0)
        """Classifier-free guidance on top; 1 is none and runs one branch."""

    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        scale = self.scale(ctx)
        if self.options.true_cfg_scale == 1:
            return [Branch(COND, text["prompt"], conditions, guidance=scale)]
        return pair(text, conditions, scale)

    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        return guided(predictions, self.options.true_cfg_scale)

    def acts(self, ctx: StepContext) -> Hashable:
        return "embedded", self.scale(ctx), self.options.true_cfg_scale

    def needs_negative(self, num_steps: int) -> bool:
        return self.options.true_cfg_scale != 1
