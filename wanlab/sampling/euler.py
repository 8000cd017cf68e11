"""Euler's method."""

from __future__ import annotations

from torch import Tensor

from wanlab.registry import SAMPLERS
from wanlab.sampling._base import Sampler
from wanlab.sampling._state import SamplerState


@SAMPLERS.register("euler")
class Euler(Sampler):
    """First order: x + (sigma_next - sigma) * velocity.

    Source: same arithmetic as diffusers 0.42.1's FlowMatchEulerDiscreteScheduler.
    """

    reads_ahead = False

    def step(self, state: SamplerState, velocity: Tensor, i: int) -> SamplerState:
        assert state.index == i, f"step {i} asked of a state at {state.index}"
        slope = velocity.to(state.latents.dtype)
        return SamplerState(state.latents + (self.sigmas[i + 1] - self.sigmas[i]) * slope, (), i + 1)
