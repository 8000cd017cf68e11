"""Adaptive projected guidance: high scales without oversaturation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from wanlab.guidance._rule import COND, PLAIN, UNCOND, Guidance, foreign, guided
from wanlab.guidance.cfg import CFG
from wanlab.registry import GUIDANCE
from wanlab.sites import StepContext
from wanlab.spec import Part

_AVERAGE = "average"


@GUIDANCE.register("apg")
class APG(CFG):
    """cond + (scale - 1) * update, the update being cond - uncond with momentum, clipped, less its part along cond.

    Remembers the running average of cond - uncond from step to step. With momentum 0, norm_threshold 0 and eta 1 it is
    `cfg`. The paper writes all of it for estimates of the clean data, where the part along the estimate is what makes
    pictures glaring. The part along a flow's velocity, noise - data, means nothing of the kind, so on="denoised" is the
    default; diffusers and WanGP take the velocity as it is.
    Source: arXiv:2410.02416; with on="velocity" same arithmetic as diffusers 0.42.1's AdaptiveProjectedGuidance in its
    original formulation, whose scale is ours - 1.
    """

    class Options(Part):
        """Momentum, clipping and projection; the defaults are WanGP's."""

        momentum: float = Field(-0.75, gt=-1, lt=1)
        """Weight of the average so far; negative pushes away from where earlier steps went, 0 forgets it."""
        norm_threshold: float = Field(55.0, ge=0)
        """Longest update, as the norm over all of a sample; 0 does not clip."""
        eta: float = 0.0
        """How much of the update's part along the conditional estimate stays; 1 is all of it."""
        on: Literal["denoised", "velocity"] = "denoised"
        """What is projected: the estimate of the clean data, or the network's own prediction."""

    def __init__(self, guidance: Guidance, options: Part | None = None) -> None:
        super().__init__(guidance, options)
        self._average: Tensor | None = None

    def combine(self, predictions: Mapping[str, Tensor], ctx: StepContext) -> Tensor:
        scale, o = self.scale(ctx), self.options
        if UNCOND not in predictions or self._is_plain:
            return guided(predictions, scale)
        cond, uncond = (_widened(predictions[name]) for name in (COND, UNCOND))
        if o.on == "velocity":
            return cond + (scale - 1) * self._update(cond - uncond, cond)
        assert ctx.latents is not None
        sigma = _by_frame(ctx.sigma, cond)
        update = self._update(-sigma * (cond - uncond), ctx.latents - sigma * cond)
        return cond - (scale - 1) * torch.where(sigma > 0, update / sigma, 0)  # frames that are clean stay as they are

    def acts(self, ctx: StepContext) -> Hashable:
        scale, o = self.scale(ctx), self.options
        if scale == 1 or self._is_plain:
            return PLAIN, scale
        return "apg", scale, o.momentum, o.norm_threshold, o.eta, o.on

    @property
    def _is_plain(self) -> bool:
        return bool((self.options.momentum, self.options.norm_threshold, self.options.eta) == (0, 0, 1))

    def _update(self, difference: Tensor, estimate: Tensor) -> Tensor:
        """The difference (B, ...) with momentum, clipped, less its part along the estimate; moves the average on."""
        if self.options.momentum:
            if self._average is not None:
                difference = difference + self.options.momentum * self._average.to(difference)
            self._average = difference
        if self.options.norm_threshold:
            norm = difference.flatten(1).norm(dim=1).view(-1, *[1] * (difference.ndim - 1))
            difference = difference * (self.options.norm_threshold / norm).clamp(max=1)
        along = parallel(difference, estimate)
        return difference - along + self.options.eta * along

    def state(self) -> dict[str, Tensor]:
        return {} if self._average is None else {_AVERAGE: self._average}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        if set(tensors) - {_AVERAGE}:
            raise foreign(type(self).__name__, tensors)
        self._average = tensors.get(_AVERAGE)


def parallel(x: Tensor, direction: Tensor) -> Tensor:
    """The part of x (B, ...) along `direction`, for each sample; in float64 inside, since it is a sum of millions."""
    unit = F.normalize(direction.flatten(1).double(), dim=1)
    along = (x.flatten(1).double() * unit).sum(1, keepdim=True) * unit
    return along.view_as(x).to(x.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_frame(sigma: float | Tensor, like: Tensor) -> Tensor:
    """Noise levels, a scalar, (B,) or (B, T), shaped to multiply (B, C, T, H, W)."""
    levels = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    return levels.view(-1, 1, levels.shape[-1] if levels.ndim == 2 else 1, 1, 1) if levels.ndim else levels
