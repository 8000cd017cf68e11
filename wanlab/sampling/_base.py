"""What all samplers share: noise levels, timesteps and the estimate of the data."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from wanlab.errors import WanlabError, shorten
from wanlab.sampling._schedules import NUM_TRAIN_TIMESTEPS, dynamic_mu, dynamic_sigmas, flow_sigmas
from wanlab.sampling._state import SamplerState

Noise = Callable[[int, torch.Size], Tensor]
"""Fresh noise for a step: `noise(step, shape) -> Tensor`, stateless, so that a run forks and resumes."""


class Sampler(abc.ABC):
    """A solver of dx/dsigma = velocity from noise (sigma 1) to data (sigma 0), as pure steps.

    `sigmas` (num_steps + 1,) on the CPU: the noise levels, strictly falling within [0, 1]; `timesteps` (num_steps,):
    what the network is told. Coefficients are computed in `dtype` on the CPU, so a step never waits for the device.
    Latents keep their dtype (float32 in a run) whatever the velocity's: diffusers' Euler rounds them to the latter.
    """

    integer_timesteps = False
    """Whether timesteps are truncated to integers, as diffusers and Wan do for UniPC and DPM++."""
    needs_noise = False
    """Whether `noise` must be given."""
    history_lengths: tuple[int, ...] = (0,)
    """How many tensors a state of this sampler may remember; 0 at the start."""
    reads_ahead: ClassVar[bool] = True
    """Whether step i may read levels after `sigmas[i + 1]`. Runs that agree until there share it where a class says
    False of itself: it is not inherited."""
    fixed_levels: tuple[float, ...] = ()
    """Noise levels that every run of this sampler takes, from the first on; it then has no use for flow_shift."""

    # The schedules that model families choose from: what a model is given through the registry.
    flow_sigmas = staticmethod(flow_sigmas)
    dynamic_sigmas = staticmethod(dynamic_sigmas)
    dynamic_mu = staticmethod(dynamic_mu)

    def __init__(self, sigmas: Tensor, noise: Noise | None = None, *, dtype: torch.dtype = torch.float32) -> None:
        levels = self._adjust(_check_sigmas(sigmas))
        if self.needs_noise and noise is None:
            raise WanlabError(
                f"Sampler {type(self).__name__} adds noise at every step and was given none",
                remedy="Pass noise=lambda step, shape: draw(seed, 'sampler', None, step, shape).",
            )
        self.noise = noise
        self.sigmas = levels.to(dtype)
        if self.integer_timesteps:
            # from float64: float32 moves an exact 667 to 666 (shift 1, 3 steps)
            self.timesteps = (levels[:-1] * NUM_TRAIN_TIMESTEPS).long()
        else:
            self.timesteps = self.sigmas[:-1] * NUM_TRAIN_TIMESTEPS

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    def clock(self, i: int, batch: int) -> tuple[float | Tensor, float | Tensor]:
        """(sigma, timestep) of step `i`: numbers, or (batch, T) tensors where latent frames differ."""
        return float(self.sigmas[i]), self.timesteps[i].item()

    def init(self, latents: Tensor, start: int = 0) -> SamplerState:
        """The state before step `start`; `latents` are at noise level `sigmas[start]`."""
        assert 0 <= start <= self.num_steps, f"start {start} of {self.num_steps} steps"
        return SamplerState(latents, (), start)

    def denoised(self, state: SamplerState, velocity: Tensor, i: int) -> Tensor:
        """The data that `velocity` points to from `state`, which is at step `i`; shaped like the latents."""
        assert velocity.shape == state.latents.shape, f"velocity {velocity.shape} for latents {state.latents.shape}"
        assert state.index == i, f"step {i} asked of a state at {state.index}"
        return state.latents - self.sigmas[i] * velocity.to(state.latents.dtype)

    @abc.abstractmethod
    def step(self, state: SamplerState, velocity: Tensor, i: int) -> SamplerState:
        """The state after step `i`; `state` is left as it was."""

    def _adjust(self, sigmas: Tensor) -> Tensor:
        """Move levels this solver cannot stand."""
        return sigmas


def log_snr(sigmas: Tensor) -> Tensor:
    """log((1 - sigma) / sigma): half the logarithm of the signal-to-noise ratio; infinite at the ends."""
    return torch.log(1 - sigmas) - torch.log(sigmas)


def _check_sigmas(sigmas: Tensor) -> Tensor:
    """Levels as float64 on the CPU; raises WanlabError when they are not strictly falling numbers within [0, 1]."""
    levels = torch.as_tensor(sigmas).detach().to("cpu", torch.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise WanlabError(f"Sigmas of shape {tuple(levels.shape)} make no step", remedy="Give num_steps + 1 numbers.")
    legal = bool((levels >= 0).all() and (levels <= 1).all() and (levels.diff() < 0).all())  # false for NaN
    if not legal:
        raise WanlabError(
            f"Sigmas must fall from at most 1 to at least 0, each below the one before; got {shorten(levels.tolist())}",
            remedy="Leave sampling.sigmas out to get the schedule of num_steps and flow_shift.",
        )
    return levels
