"""Samplers as pure steps, noise schedules, stateless draws and the one sampling loop.

One file a sampler (`wanlab.registry.SAMPLERS`). The names below load on first use: listing samplers needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanlab.registry import lazy

if TYPE_CHECKING:
    from wanlab.sampling._base import Noise, Sampler
    from wanlab.sampling._draw import draw
    from wanlab.sampling._loop import Memory, OnStep, Remembering, Velocity, sample
    from wanlab.sampling._saved import load_state, save_state
    from wanlab.sampling._schedules import (
        dpmpp_sigmas,
        dynamic_mu,
        dynamic_sigmas,
        euler_sigmas,
        flow_sigmas,
        linear_sigmas,
    )
    from wanlab.sampling._state import SamplerState

_HOME = {
    "Noise": "_base",
    "Sampler": "_base",
    "draw": "_draw",
    "Memory": "_loop",
    "OnStep": "_loop",
    "Remembering": "_loop",
    "Velocity": "_loop",
    "sample": "_loop",
    "dpmpp_sigmas": "_schedules",
    "dynamic_mu": "_schedules",
    "dynamic_sigmas": "_schedules",
    "euler_sigmas": "_schedules",
    "flow_sigmas": "_schedules",
    "linear_sigmas": "_schedules",
    "SamplerState": "_state",
    "load_state": "_saved",
    "save_state": "_saved",
}
__all__ = [
    "Memory",
    "Noise",
    "OnStep",
    "Remembering",
    "Sampler",
    "SamplerState",
    "Velocity",
    "dpmpp_sigmas",
    "draw",
    "dynamic_mu",
    "dynamic_sigmas",
    "euler_sigmas",
    "flow_sigmas",
    "linear_sigmas",
    "load_state",
    "sample",
    "save_state",
]
__getattr__ = lazy(__name__, _HOME)
