"""Frames of one video that take the steps of a sampler at different times."""

from __future__ import annotations

import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.sampling._base import Sampler
from wanlab.sampling._state import SamplerState


class Staggered(Sampler):
    """A sampler whose latent frames are at different steps of another one; as pure, and run by the same loop.

    `plan` (rows, T) on the CPU: which step of `inner` each frame takes in each row: -1 while it waits, still noise;
    `inner.num_steps` when it is clean. A row is a step of this sampler. Frames of a row that are at the same step make
    it together; the state holds the history of all of them, zeros where there is none yet.
    Source: diffusion forcing as in SkyReels-V2 (arXiv:2504.13074).
    """

    def __init__(self, inner: Sampler, plan: Tensor) -> None:
        if inner.needs_noise:
            raise WanlabError(
                f"Sampler {type(inner).__name__} adds noise at every step, and frames that step apart have none yet",
                remedy="Use unipc, dpmpp_2m or euler, or ar_step=0.",
            )
        self.inner = inner
        self.plan = plan
        self.noise = None
        self.integer_timesteps = inner.integer_timesteps
        self.history_lengths = tuple({0, max(inner.history_lengths)})
        steps = plan.clamp(min=0)
        self.levels = inner.sigmas[steps]
        """(rows, T): noise level of each frame before each row."""
        self.sigmas = torch.cat([self.levels.amax(1), self.levels.new_zeros(1)])
        self.timesteps = torch.cat([inner.timesteps, inner.timesteps.new_zeros(1)])[steps]

    def clock(self, i: int, batch: int) -> tuple[Tensor, Tensor]:
        return self.levels[i].expand(batch, -1), self.timesteps[i].expand(batch, -1)

    def denoised(self, state: SamplerState, velocity: Tensor, i: int) -> Tensor:
        assert velocity.shape == state.latents.shape, f"velocity {velocity.shape} for latents {state.latents.shape}"
        levels = self.levels[i].to(state.latents)[:, None, None]
        return state.latents - levels * velocity.to(state.latents.dtype)

    def step(self, state: SamplerState, velocity: Tensor, i: int) -> SamplerState:
        latents = state.latents.clone()
        num_remembered = max(self.history_lengths)
        history = [h.clone() for h in state.history] or [torch.zeros_like(latents) for _ in range(num_remembered)]
        for step in self.plan[i].unique().tolist():
            if not 0 <= step < self.inner.num_steps:
                continue
            frames = self.plan[i] == step
            lengths = self.inner.history_lengths
            known = tuple(h[:, :, frames] for h in history[: lengths[min(step, len(lengths) - 1)]])
            after = self.inner.step(SamplerState(latents[:, :, frames], known, step), velocity[:, :, frames], step)
            latents[:, :, frames] = after.latents
            for whole, part in zip(history, after.history, strict=False):
                whole[:, :, frames] = part
        return SamplerState(latents, tuple(history), i + 1)
