"""DPM-Solver++ (2M)."""

from __future__ import annotations

import torch
from torch import Tensor

from wanlab.registry import SAMPLERS
from wanlab.sampling._base import Noise, Sampler, log_snr
from wanlab.sampling._state import SamplerState


@SAMPLERS.register("dpmpp_2m")
class DPMpp2M(Sampler):
    """Second order, multistep, midpoint form; the first and the last step are first order.

    Source: DPM-Solver++ (arXiv:2211.01095); same arithmetic as diffusers 0.42.1's DPMSolverMultistepScheduler with
    `algorithm_type="dpmsolver++", prediction_type="flow_prediction"`. History: the data estimate of the step before.
    """

    integer_timesteps = True
    reads_ahead = False
    history_lengths = (0, 1)

    def __init__(self, sigmas: Tensor, noise: Noise | None = None, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(sigmas, noise, dtype=dtype)
        self._log_snr = log_snr(self.sigmas)

    def step(self, state: SamplerState, velocity: Tensor, i: int) -> SamplerState:
        data = self.denoised(state, velocity, i)
        h = self._log_snr[i + 1] - self._log_snr[i]
        pull = (1 - self.sigmas[i + 1]) * (torch.exp(-h) - 1.0)
        latents = (self.sigmas[i + 1] / self.sigmas[i]) * state.latents - pull * data
        if state.history and i < self.num_steps - 1:
            ratio = (self._log_snr[i] - self._log_snr[i - 1]) / h
            latents = latents - 0.5 * pull * ((1.0 / ratio) * (data - state.history[0]))
        return SamplerState(latents, (data,), i + 1)
