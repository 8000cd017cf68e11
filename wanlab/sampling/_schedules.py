"""Noise schedules of rectified flows.

All return (num_steps + 1,) float64 on the CPU, falling from noise (1) to data (0). float64, because UniPC and DPM++
truncate sigma * 1000 to an integer, and an exact 667 would be 666 in float32; samplers round to float32 themselves.
numpy does the arithmetic, as in diffusers, for the same last bits.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from wanlab.errors import WanlabError

NUM_TRAIN_TIMESTEPS = 1000  # what Wan, Flux and every flow model of diffusers was trained with
_LOWEST = 1 / NUM_TRAIN_TIMESTEPS


def flow_sigmas(num_steps: int, flow_shift: float) -> Tensor:
    """Noise levels of a shifted rectified flow; flow_shift=1 is linear, more spends steps on high noise.

    Returns (num_steps + 1,) float64. Wan's schedule, and ours for every sampler, so that samplers can be compared.
    Source: the resolution shift of SD3 (arXiv:2403.03206); same numbers as diffusers' UniPC with `flow_shift`, except
    that ours starts at 1, which the UniPC sampler moves to 1 - 1e-6.
    """
    _check(num_steps, flow_shift)
    return _closed(_shift(np.linspace(1, _LOWEST, num_steps + 1)[:-1], flow_shift))


def linear_sigmas(num_steps: int, flow_shift: float) -> Tensor:
    """Equal steps from 1 to 0, shifted: the levels that few-step models are distilled at.

    Returns (num_steps + 1,) float64; 4 steps at flow_shift 1 are 1, .75, .5, .25, 0. `flow_sigmas` ends its grid at
    1/1000 before the shift and is up to a thousandth higher.
    """
    _check(num_steps, flow_shift)
    return _closed(_shift(np.linspace(1, 0, num_steps + 1)[:-1], flow_shift))


def euler_sigmas(num_steps: int, flow_shift: float) -> Tensor:
    """What diffusers' FlowMatchEuler and FlowMatchLCM run by default: the lowest level is shifted twice.

    Returns (num_steps + 1,) float64. For parity with pipelines that use those; 6 steps at shift 3 end .432, .009, 0.
    Source: diffusers 0.42.1, FlowMatchEulerDiscreteScheduler.set_timesteps.
    """
    _check(num_steps, flow_shift)
    lowest = float(_shift(np.array([_LOWEST], dtype=np.float32), flow_shift)[0])
    linear = np.linspace(NUM_TRAIN_TIMESTEPS, lowest * NUM_TRAIN_TIMESTEPS, num_steps) / NUM_TRAIN_TIMESTEPS
    return _closed(_shift(linear, flow_shift))


def dpmpp_sigmas(num_steps: int, flow_shift: float) -> Tensor:
    """What diffusers' DPMSolverMultistep runs by default with `use_flow_sigmas`: starts a little below 1.

    Returns (num_steps + 1,) float64. Source: diffusers 0.42.1, DPMSolverMultistepScheduler.set_timesteps.
    """
    _check(num_steps, flow_shift)
    linear = 1.0 - np.linspace(1, _LOWEST, num_steps + 1)
    return _closed(np.flip(_shift(linear, flow_shift))[:-1].copy())


def dynamic_sigmas(num_steps: int, mu: float) -> Tensor:
    """Flux's schedule: levels 1, ..., 1/num_steps shifted by exp(mu).

    Returns (num_steps + 1,) float64 holding float32 numbers, as FluxPipeline computes them.
    Source: diffusers 0.42.1, FluxPipeline and FlowMatchEulerDiscreteScheduler with `use_dynamic_shifting`.
    """
    _check(num_steps, 1.0)
    linear = np.linspace(1.0, 1 / num_steps, num_steps).astype(np.float32)
    return _closed(math.exp(mu) / (math.exp(mu) + (1 / linear - 1)))


def dynamic_mu(
    num_tokens: int, tokens: tuple[int, int] = (256, 4096), shifts: tuple[float, float] = (0.5, 1.15)
) -> float:
    """Flux's shift for an image of `num_tokens`, on the line through (tokens, shifts). Source: FluxPipeline."""
    slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0])
    return num_tokens * slope + (shifts[0] - slope * tokens[0])


def _shift(sigmas: np.ndarray, flow_shift: float) -> np.ndarray:
    return flow_shift * sigmas / (1 + (flow_shift - 1) * sigmas)


def _closed(sigmas: np.ndarray) -> Tensor:
    """The levels followed by 0."""
    return torch.from_numpy(np.append(sigmas.astype(np.float64), 0.0))


def _check(num_steps: int, flow_shift: float) -> None:
    if num_steps < 1:
        raise WanlabError(f"num_steps is {num_steps}; a schedule has at least one step")
    if not (0 < flow_shift < math.inf):
        raise WanlabError(f"flow_shift is {flow_shift}; it must be a positive number", remedy="1 leaves it linear.")
