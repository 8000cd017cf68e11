"""Normalized attention guidance, the arithmetic: for the attention processors of models."""

from __future__ import annotations

import torch
from torch import Tensor

Number = float | Tensor


def normalized_guidance(z_pos: Tensor, z_neg: Tensor, scale: Number, tau: Number, alpha: Number) -> Tensor:
    """The attention output that is away from the negative prompt's, shaped (..., D) like both outputs.

    g = scale * z_pos - (scale - 1) * z_neg, shortened to tau times the L1 norm of z_pos over the last axis where it is
    longer; alpha * g + (1 - alpha) * z_pos. Numbers that are 0-dim tensors change without recompiling. In the dtype of
    the inputs, norms in float32 at least.
    Source: NAG (arXiv:2505.21179).
    """
    extrapolated = z_pos + (scale - 1) * (z_pos - z_neg)  # less rounding in bfloat16 than a difference of multiples
    longest = tau * _l1(z_pos)
    shortened = extrapolated * (longest / _l1(extrapolated).clamp_min(1e-12)).clamp(max=1).to(z_pos.dtype)
    return alpha * shortened + (1 - alpha) * z_pos


def _l1(x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, ord=1, dim=-1, keepdim=True, dtype=dtype)
