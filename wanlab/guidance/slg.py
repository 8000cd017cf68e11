"""Skip-layer guidance: away from what the network predicts with some of its layers left out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.guidance._rule import COND, PLAIN, UNCOND, Text, guided
from wanlab.guidance.cfg import CFG
from wanlab.registry import GUIDANCE
from wanlab.sites import Branch, Conditions, StepContext
from wanlab.spec import GenerationSpec, Part

SKIP = "skip"


@GUIDANCE.register("slg")
class SLG(CFG):
    """`cfg` that also moves away from a network without `layers`, in the steps start <= step / num_steps < stop.

    scale None: the unconditional branch itself leaves the layers out, at no cost (WanGP's way; needs a guidance scale
    other than 1). A number: a third branch, the prompt without the layers, and scale * (cond - skip) is added, as for
    Stable Diffusion 3.5. Without layers, outside the steps or with scale 0 it is `cfg`.
    Source: Stability-AI/sd3.5, and STG (arXiv:2411.18664) for video; same arithmetic as diffusers 0.42.1's
    SkipLayerGuidance, which starts one step later and, at guidance_scale 1, gives its original formulation only.
    """

    class Options(Part):
        """Which layers, when, and how strongly; the defaults are WanGP's."""

        layers: tuple[Annotated[int, Field(ge=0)], ...] = (9,)
        """Blocks to leave out, counted from 0."""
        start: float = Field(0.1, ge=0, le=1)
        """They are left out from this fraction of the steps."""
        stop: float = Field(0.9, ge=0, le=1)
        """They are left out before this fraction of the steps."""
        scale: float | None = None
        """Strength of a branch of its own; None leaves the layers out of the unconditional branch instead."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.start > self.stop:
                raise WanlabError(f"start {self.start} is after stop {self.stop}", remedy="Give start <= stop.")
            return self

    def check(self, spec: GenerationSpec) -> None:
        if self.options.layers and self.options.scale is None and not super().needs_negative(spec.sampling.num_steps):
            raise WanlabError(
                "slg leaves layers out of the unconditional branch, and guidance_scale 1 runs none",
                remedy="Give slg a scale of its own, e.g. 2.8, or a higher guidance_scale.",
            )

    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        branches = super().branches(ctx, text, conditions)
        if not self._skips(ctx):
            return branches
        if self.options.scale is not None:
            return [*branches, replace(branches[0], name=SKIP, skip_blocks=self.options.layers)]
        return [replace(b, skip_blocks=self.options.layers) if b.name == UNCOND else b for b in branches]

    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        velocity = guided(predictions, self.scale(ctx))
        if SKIP not in predictions:
            return velocity
        return velocity + self.options.scale * (predictions[COND] - predictions[SKIP])

    def acts(self, ctx: StepContext) -> Hashable:
        scale, own = self.scale(ctx), self.options.scale
        if not self._skips(ctx) or (own is None and scale == 1):
            return PLAIN, scale
        return "slg", scale, own, self.options.layers

    def _skips(self, ctx: StepContext) -> bool:
        inside = self.options.start <= ctx.step / ctx.num_steps < self.options.stop
        return inside and bool(self.options.layers) and self.options.scale != 0
