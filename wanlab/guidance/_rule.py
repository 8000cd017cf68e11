"""What all guidance rules share: the scale of each expert, the text of each branch, the extrapolation."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.sites import Branch, Conditions, StepContext
from wanlab.spec import Part

Text = Mapping[str, Mapping[str, Tensor]]
"""Embeddings by prompt: {"prompt": {"embeds": (B, L, D), ...}, "negative_prompt": {...}}."""

COND = "cond"
UNCOND = "uncond"
SECOND_EXPERT = "transformer_2"


class Guidance(Protocol):
    """The leaves that every rule reads; the spec's guidance part has them."""

    guidance_scale: float
    guidance_scale_2: float | None
    batch_branches: bool


class Rule(abc.ABC):
    """Which branches a step runs and how their predictions become one velocity. Without state: it sees the clock.

    `guidance` holds the scales, `options` what only this rule knows.
    """

    tells_network: ClassVar[bool] = False
    """Whether the network is told the scale, through `Branch.guidance`: only some networks take it."""

    class Options(Part):
        """No options."""

    def __init__(self, guidance: Guidance, options: Part | None = None) -> None:
        self.guidance = guidance
        self.options = self.Options() if options is None else options

    @abc.abstractmethod
    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        """The network calls of this step, the conditional one first."""

    @abc.abstractmethod
    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        """The velocity, from the predictions by branch name."""

    @abc.abstractmethod
    def needs_negative(self, num_steps: int) -> bool:
        """Whether some step of a run of `num_steps` may need the negative prompt."""

    def scale(self, ctx: StepContext) -> float:
        """The guidance scale of this step: the second expert may have its own."""
        second = self.guidance.guidance_scale_2
        return second if ctx.expert == SECOND_EXPERT and second is not None else self.guidance.guidance_scale


def guided(predictions: Mapping[str, Tensor], scale: float) -> Tensor:
    """Classifier-free guidance, uncond + scale * (cond - uncond), in the order of diffusers' pipelines.

    Source: arXiv:2207.12598. A step without the unconditional branch gives the conditional prediction, unscaled.
    """
    cond = predictions[COND]
    if UNCOND not in predictions:
        return cond
    uncond = predictions[UNCOND]
    return uncond + scale * (cond - uncond)


def pair(text: Text, conditions: Conditions, guidance: float | None = None) -> list[Branch]:
    """The conditional and the unconditional branch; raises WanlabError without the negative prompt's embeddings."""
    if "negative_prompt" not in text:
        raise WanlabError(
            "Guidance needs the negative prompt's embeddings and got only the prompt's",
            remedy="Encode the text with the same spec that denoises: encode_text(model, spec).",
        )
    return [
        Branch(COND, text["prompt"], conditions, guidance=guidance),
        Branch(UNCOND, text["negative_prompt"], conditions, guidance=guidance),
    ]
