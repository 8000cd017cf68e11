"""CFG-Zero*: guidance for flow models whose unconditional prediction is rescaled, and zero at first."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from wanlab.guidance._rule import COND, PLAIN, UNCOND, Text, guided
from wanlab.guidance.cfg import CFG
from wanlab.registry import GUIDANCE
from wanlab.sites import Branch, Conditions, StepContext
from wanlab.spec import Part

_EPSILON = 1e-8  # diffusers'


@GUIDANCE.register("cfg_zero")
class CFGZero(CFG):
    """`cfg` with uncond replaced by alpha * uncond, the multiple that is nearest to cond, for each sample.

    alpha = <cond, uncond> / |uncond|^2 over all of a sample. The first `zero_steps` steps predict zero and run no
    network. With optimised_scale off and no zero steps it is `cfg`.
    Source: CFG-Zero* (arXiv:2503.18886); same arithmetic as diffusers 0.42.1's ClassifierFreeZeroStarGuidance. WanGP
    shares one alpha over a batch, and its zero steps are plain `cfg`.
    """

    class Options(Part):
        """The two halves of CFG-Zero*."""

        zero_steps: int = Field(0, ge=0)
        """First steps whose prediction is zero: the latents stay. The paper zeroes the first 4 % of the steps."""
        optimised_scale: bool = True
        """Rescale the unconditional prediction."""

    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        return [] if self._is_zero(ctx) else super().branches(ctx, text, conditions)

    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        if self._is_zero(ctx):
            assert ctx.latents is not None
            return torch.zeros_like(ctx.latents)
        if UNCOND not in predictions or not self.options.optimised_scale:
            return guided(predictions, self.scale(ctx))
        cond, uncond = predictions[COND], predictions[UNCOND]
        return guided({COND: cond, UNCOND: uncond * optimised_scale(cond, uncond)}, self.scale(ctx))

    def acts(self, ctx: StepContext) -> Hashable:
        if self._is_zero(ctx):
            return "zero"
        scale = self.scale(ctx)
        return (PLAIN if scale == 1 or not self.options.optimised_scale else "cfg_zero"), scale

    def needs_negative(self, num_steps: int) -> bool:
        return super().needs_negative(num_steps) and self.options.zero_steps < num_steps

    def _is_zero(self, ctx: StepContext) -> bool:
        return ctx.step < self.options.zero_steps


def optimised_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """alpha (B, 1, ...) that brings alpha * uncond nearest to cond (B, ...); in the dtype of cond."""
    c, u = (x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)) for x in (cond, uncond))
    alpha = (c * u).sum(1) / ((u**2).sum(1) + _EPSILON)
    return alpha.to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))
