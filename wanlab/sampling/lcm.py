"""Consistency sampling, for distilled models and few steps."""

from __future__ import annotations

from torch import Tensor

from wanlab.registry import SAMPLERS
from wanlab.sampling._base import Sampler
from wanlab.sampling._schedules import linear_sigmas
from wanlab.sampling._state import SamplerState


@SAMPLERS.register("lcm")
class LCM(Sampler):
    """Jump to the data, then add fresh noise, `noise(step, shape)`, up to the next level.

    Its schedule is `linear_sigmas`, at any number of steps. WanGP's sampler of this name cuts them to 8, takes Euler's
    steps without noise, and ends at level .003 before the shift.
    Source: Latent Consistency Models (arXiv:2310.04378); same arithmetic as diffusers 0.42.1's FlowMatchLCMScheduler.
    """

    needs_noise = True
    reads_ahead = False
    flow_sigmas = staticmethod(linear_sigmas)

    def step(self, state: SamplerState, velocity: Tensor, i: int) -> SamplerState:
        data = self.denoised(state, velocity, i)
        level = self.sigmas[i + 1]
        if level == 0:
            return SamplerState(data, (), i + 1)
        assert self.noise is not None
        fresh = self.noise(i, data.shape).to(data)
        return SamplerState((1 - level) * data + level * fresh, (), i + 1)
