"""Guidance by text and by reference pictures, each with its scale, as Phantom uses it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.guidance._rule import COND, PLAIN, UNCOND, Text, guided
from wanlab.guidance.cfg import CFG
from wanlab.registry import GUIDANCE
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, StepContext
from wanlab.spec import GenerationSpec, Part

BARE = "bare"
_PICTURES = "reference_frames"


@GUIDANCE.register("dual")
class Dual(CFG):
    """bare + image_scale * (uncond - bare) + scale * (cond - uncond).

    cond has the prompt and the references, uncond the negative prompt and the references, bare the negative prompt and
    zeros for references. image_scale 1 is `cfg` and runs two branches; a guidance scale of 1 runs cond alone.
    Source: Phantom (Phantom-video/Phantom; guide_scale_text 7.5, guide_scale_img 5), as WanGP 8681e9f7 has it in
    models/wan/any2video.py.
    """

    class Options(Part):
        """The scale of the pictures."""

        image_scale: float = 5.0
        """Strength of the reference pictures; 1 leaves them as they are."""

    @classmethod
    def unfit(cls, model: Any) -> str:
        return super().unfit(model) or (
            "" if model.references_are_frames else "sees no references as frames of the video"
        )

    def check(self, spec: GenerationSpec) -> None:
        if not spec.media.references:
            raise WanlabError("guidance 'dual' weighs reference pictures, and none is given", remedy="Give references.")

    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        branches = super().branches(ctx, text, conditions)
        if len(branches) == 1 or self.options.image_scale == 1:
            return branches
        if conditions.reference_frames is None and conditions is not NO_CONDITIONS:  # those only list the branches
            raise WanlabError(
                "guidance 'dual' needs references as frames beside the video, and this model reads them elsewhere",
                remedy="Use guidance 'cfg'.",
            )
        return [*branches, Branch(BARE, branches[1].text, conditions.blank(_PICTURES))]

    def acts(self, ctx: StepContext) -> Hashable:
        scale, pictures = self.scale(ctx), self.options.image_scale
        return (PLAIN, scale) if 1 in (scale, pictures) else ("dual", scale, pictures)

    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        if BARE not in predictions:
            return guided(predictions, self.scale(ctx))
        cond, uncond, bare = predictions[COND], predictions[UNCOND], predictions[BARE]
        return bare + self.options.image_scale * (uncond - bare) + self.scale(ctx) * (cond - uncond)
