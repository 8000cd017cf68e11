"""The fixed schedule of CausVid, for models distilled with it."""

from __future__ import annotations

import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.registry import SAMPLERS
from wanlab.sampling._schedules import NUM_TRAIN_TIMESTEPS
from wanlab.sampling.euler import Euler

_TIMESTEPS = (1000, 934, 862, 756, 603, 410, 250, 140, 74)


def causvid_sigmas(num_steps: int, _shift: float = 1.0) -> Tensor:
    """The first `num_steps` of CausVid's nine noise levels, then 0: (num_steps + 1,) float64; no shift moves them."""
    if not 1 <= num_steps <= len(_TIMESTEPS):
        raise WanlabError(
            f"num_steps is {num_steps}, and causvid has noise levels for {len(_TIMESTEPS)} steps",
            remedy=f"Give num_steps from 1 to {len(_TIMESTEPS)}, or the sampler 'euler' with sigmas of your own.",
        )
    return torch.tensor((*_TIMESTEPS[:num_steps], 0), dtype=torch.float64) / NUM_TRAIN_TIMESTEPS


@SAMPLERS.register("causvid")
class CausVid(Euler):
    """Euler's method at CausVid's noise levels, whatever flow_shift is: the first steps of nine, then straight to 0.

    Explicit sigmas replace the levels. Source: CausVid (arXiv:2412.07772); levels as in WanGP 8681e9f7,
    models/wan/any2video.py.
    """

    integer_timesteps = True
    reads_ahead = False
    fixed_levels = tuple(t / NUM_TRAIN_TIMESTEPS for t in _TIMESTEPS)
    flow_sigmas = staticmethod(causvid_sigmas)
    dynamic_sigmas = staticmethod(causvid_sigmas)
