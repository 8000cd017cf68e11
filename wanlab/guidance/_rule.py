"""What all guidance rules share: the scale of each step, the text of each branch, the extrapolation, the memory."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.sites import Branch, Conditions, StepContext
from wanlab.spec import GenerationSpec, Part

Text = Mapping[str, Mapping[str, Tensor]]
"""Embeddings by prompt: {"prompt": {"embeds": (B, L, D), ...}, "negative_prompt": {...}}."""

COND = "cond"
UNCOND = "uncond"
PLAIN = "cfg"
"""What `Rule.acts` calls classifier-free guidance, which is what most rules are at some steps."""
SECOND_EXPERT = "transformer_2"
_ROUNDING = 1e-6  # a sampler's levels are float32, whose 0.6 lies above a spec's


class Guidance(Protocol):
    """The leaves that every rule reads; the spec's guidance part has them."""

    guidance_scale: float
    guidance_scale_2: float | None
    phase_boundaries: tuple[float, ...]
    phase_scales: tuple[float, ...]
    batch_branches: bool


class Rule(abc.ABC):
    """Which branches a step runs and how their predictions become one velocity.

    `guidance` holds the scales, `options` what only this rule knows. An instance belongs to one run: what it remembers
    between steps is in `state()`, which the sampling loop keeps beside the latents.
    """

    tells_network: ClassVar[bool] = False
    """Whether the network is told the scale, through `Branch.guidance`: only some networks take it."""

    class Options(Part):
        """No options."""

    def __init__(self, guidance: Guidance, options: Part | None = None) -> None:
        self.guidance = guidance
        self.options: Any = self.Options() if options is None else options

    @abc.abstractmethod
    def branches(self, ctx: StepContext, text: Text, conditions: Conditions) -> list[Branch]:
        """The network calls of this step, the conditional one first; none where the step asks for no prediction."""

    @abc.abstractmethod
    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        """The velocity, from the predictions by branch name; `ctx.latents` are what the branches saw."""

    def acts(self, ctx: StepContext) -> Hashable:
        """What this rule does at a step, by everything that its branches and combination depend on there.

        Rules of any class that do the same return the same. Memory counts by what it will change. Only a class's own
        method is asked: a subclass may do something else.
        """
        return self._everything(ctx)

    def at(self, ctx: StepContext) -> Hashable:
        """`acts`; of a class that has none of its own, all that the rule could look at."""
        return self.acts(ctx) if "acts" in vars(type(self)) else self._everything(ctx)

    def _everything(self, ctx: StepContext) -> Hashable:
        names = ("guidance_scale", "guidance_scale_2", "phase_boundaries", "phase_scales", "batch_branches")
        leaves = tuple(getattr(self.guidance, name) for name in names)
        sigmas = tuple(ctx.sigmas.flatten().tolist()) if isinstance(ctx.sigmas, Tensor) else ctx.sigmas
        return (type(self), self.options.model_dump_json(), leaves, self.scale(ctx), ctx.num_steps, sigmas)

    @abc.abstractmethod
    def needs_negative(self, num_steps: int) -> bool:
        """Whether some step of a run of `num_steps` may need the negative prompt."""

    @classmethod
    def unfit(cls, model: Any) -> str:
        """Why a model's network cannot follow this rule, to be read after "whose network"; empty where it can."""
        if cls.tells_network == model.takes_guidance:
            return ""
        return "takes the guidance scale as an input" if model.takes_guidance else "takes no guidance scale as an input"

    def check(self, spec: GenerationSpec) -> None:  # noqa: B027 - an optional hook
        """Raise WanlabError for options that do nothing in this run."""

    def scale(self, ctx: StepContext) -> float:
        """The guidance scale of this step: that of its phase, else of its expert.

        A phase holds while the noise level is above its boundary; where latent frames differ, the highest counts.
        """
        if self.guidance.phase_scales:
            level = float(ctx.sigma.max()) if isinstance(ctx.sigma, Tensor) else ctx.sigma
            phase = sum(level <= boundary + _ROUNDING for boundary in self.guidance.phase_boundaries)
            return self.guidance.phase_scales[phase]
        second = self.guidance.guidance_scale_2
        return second if ctx.expert == SECOND_EXPERT and second is not None else self.guidance.guidance_scale

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance scales that steps may have."""
        first, second = self.guidance.guidance_scale, self.guidance.guidance_scale_2
        return self.guidance.phase_scales or (first, first if second is None else second)

    def state(self) -> dict[str, Tensor]:
        """What the rule remembers between steps, as named tensors."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, nothing for a run's start; raises WanlabError for the memory of another rule."""
        if tensors:
            raise foreign(type(self).__name__, tensors)


def foreign(rule: str, tensors: Mapping[str, Tensor]) -> WanlabError:
    """The error for a state that another rule left."""
    return WanlabError(
        f"This state holds what another guidance rule remembers ({', '.join(tensors)}), and the run uses {rule}",
        remedy="Go on with the guidance it was made with, or clear it: dataclasses.replace(state, guidance={}).",
    )


def guided(predictions: Mapping[str, Tensor], scale: float) -> Tensor:
    """Classifier-free guidance, uncond + scale * (cond - uncond), in the order of diffusers' pipelines.

    Source: arXiv:2207.12598. A step without the unconditional branch gives the conditional prediction, unscaled.
    """
    cond = predictions[COND]
    if UNCOND not in predictions:
        return cond
    uncond = predictions[UNCOND]
    return uncond + scale * (cond - uncond)


def negative(text: Text) -> Mapping[str, Tensor]:
    """The negative prompt's embeddings; raises WanlabError where they are missing."""
    if "negative_prompt" not in text:
        raise WanlabError(
            "Guidance needs the negative prompt's embeddings and got only the prompt's",
            remedy="Encode the text with the same spec that denoises: encode_text(model, spec).",
        )
    return text["negative_prompt"]


def pair(text: Text, conditions: Conditions, guidance: float | None = None) -> list[Branch]:
    """The conditional and the unconditional branch; raises WanlabError without the negative prompt's embeddings."""
    return [
        Branch(COND, text["prompt"], conditions, guidance=guidance),
        Branch(UNCOND, negative(text), conditions, guidance=guidance),
    ]
