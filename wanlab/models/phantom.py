"""Phantom: Wan's text-to-video network, tuned to show the people and things of reference pictures.

Each picture is one clean latent frame after the video's last one: attended to and placed in time like any frame, told
the step's timestep, put in again before every forward, cut off at the end. diffusers has no pipeline for it.
Source: Phantom (arXiv:2502.11079), Phantom-video/Phantom 7e2997d5: generate.py, phantom_wan/subject2video.py.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from wanlab.models import _wan_inputs as inputs
from wanlab.models.wan import Wan, share
from wanlab.registry import FAMILIES
from wanlab.sites import Branch, Conditions, StepContext, Streams
from wanlab.spec import GenerationSpec


@FAMILIES.register("phantom")
class Phantom(Wan):
    """Video of the subjects in `references`, each brought whole onto white at the video's size.

    The guidance rule "dual" weighs them apart from the prompt: it blanks `Conditions.reference_frames`.
    """

    family = "phantom"
    optional_encoders = ()
    starts_from_video = False
    references_are_frames = True

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        return ("references",)

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        return ("references",)

    def latent_shape(self, spec: GenerationSpec) -> tuple[int, int, int, int]:
        channels, frames, height, width = super().latent_shape(spec)
        return channels, frames + len(spec.media.references), height, width

    @torch.no_grad()
    def encode_conditions(self, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
        self._refuse_windows(window, previous)
        spec = self.resolve(spec)
        self.check_media(spec)
        frames = [self._encode_pixels(inputs.reference(ref, spec)) for ref in spec.media.references]
        return self._stretched(spec, Conditions(reference_frames=torch.cat(frames, 2)))

    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        references = branch.conditions.reference_frames
        if references is not None:
            video = latents[:, :, : -references.shape[2]]
            latents = torch.cat([video, share(references.to(latents), latents.shape[0])], 2)
        return super().embed(latents, ctx, branch)

    def finish(self, latents: Tensor, conditions: Conditions) -> Tensor:
        references = conditions.reference_frames
        return latents if references is None else latents[:, :, : -references.shape[2]]
