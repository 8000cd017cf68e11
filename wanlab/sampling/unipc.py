"""UniPC, the sampler that Wan ships with."""

from __future__ import annotations

import torch
from torch import Tensor

from wanlab.registry import SAMPLERS
from wanlab.sampling._base import Noise, Sampler, log_snr
from wanlab.sampling._state import SamplerState

_NUDGE = 1e-6  # log_snr(1) is infinite; diffusers starts this far below


@SAMPLERS.register("unipc")
class UniPC(Sampler):
    """Predictor and corrector of order 2, B2(h) form, one network call a step; first and last prediction are order 1.

    Source: UniPC (arXiv:2302.04867); same arithmetic as diffusers 0.42.1's UniPCMultistepScheduler with solver_order 2,
    "bh2", flow prediction and flow sigmas, which is Wan's own solver.
    History, after the first step: the latents before the last prediction, then the data estimates of one or two steps.
    """

    integer_timesteps = True
    reads_ahead = False
    history_lengths = (0, 2, 3)

    def __init__(self, sigmas: Tensor, noise: Noise | None = None, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(sigmas, noise, dtype=dtype)
        self._log_snr = log_snr(self.sigmas)

    def step(self, state: SamplerState, velocity: Tensor, i: int) -> SamplerState:
        data = self.denoised(state, velocity, i)
        latents = self._correct(state, data, i) if state.history else state.latents
        seen = (data, *state.history[1:2])
        return SamplerState(self._predict(latents, seen, i), (latents, *seen), i + 1)

    def _predict(self, latents: Tensor, seen: tuple[Tensor, ...], i: int) -> Tensor:
        """Latents at level i + 1 from those at level i and the data estimates `seen`, newest first."""
        base, pull, h = self._first_order(latents, seen[0], i)
        if len(seen) == 1 or i == self.num_steps - 1:
            return base
        ratio = (self._log_snr[i - 1] - self._log_snr[i]) / h
        return base - pull * (0.5 * ((seen[1] - seen[0]) / ratio))

    def _correct(self, state: SamplerState, data: Tensor, i: int) -> Tensor:
        """Latents at level i once more, from those at level i - 1, now that the data estimate at level i is known."""
        before, *seen = state.history
        base, pull, h = self._first_order(before, seen[0], i - 1)
        if len(seen) == 1:
            return base - pull * (0.5 * (data - seen[0]))
        ratio = (self._log_snr[i - 2] - self._log_snr[i - 1]) / h
        weights = _corrector_weights(h, ratio)
        return base - pull * (weights[0] * ((seen[1] - seen[0]) / ratio) + weights[1] * (data - seen[0]))

    def _first_order(self, latents: Tensor, data: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """The exact step from level i to i + 1 if the data estimate were constant, its factor of `data`, and h."""
        h = self._log_snr[i + 1] - self._log_snr[i]
        pull = (1 - self.sigmas[i + 1]) * torch.expm1(-h)
        return self.sigmas[i + 1] / self.sigmas[i] * latents - pull * data, pull, h

    def _adjust(self, sigmas: Tensor) -> Tensor:
        if abs(float(sigmas[0]) - 1) >= _NUDGE:
            return sigmas
        return torch.cat([sigmas[:1] - _NUDGE, sigmas[1:]])


def _corrector_weights(h: Tensor, ratio: Tensor) -> Tensor:
    """Weights (2,) of the older and the newest difference in the order 2 corrector, B2(h) form."""
    scale = torch.expm1(-h)
    phi_2 = scale / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    ones = torch.ones_like(ratio)
    matrix = torch.stack([torch.stack([ones, ones]), torch.stack([ratio, ones])])
    return torch.linalg.solve(matrix, torch.stack([phi_2 / scale, phi_3 * 2 / scale]))
