"""Latents as small pictures by a linear map, for a look while a clip is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def look(latents: Tensor, maps: Mapping[str, Any]) -> np.ndarray:
    """(T, h, w, 3) uint8 of latents (1, C, T, h, w).

    maps: `factors` (C, 3) and `bias` (3,) from latents to colours in [-1, 1], and `first`, another such pair, where the
    first latent frame has a map of its own.
    """
    rgb = torch.cat([_colours(latents[0, :, :1], maps.get("first", maps)), _colours(latents[0, :, 1:], maps)])
    array: np.ndarray = ((rgb + 1) * 127.5).clamp_(0, 255).round_().to(torch.uint8).cpu().numpy()
    return array


def _colours(latents: Tensor, linear: Mapping[str, Any]) -> Tensor:
    """Colours (T, h, w, 3) of latents (C, T, h, w)."""
    factors, bias = (torch.tensor(linear[k], dtype=torch.float32, device=latents.device) for k in ("factors", "bias"))
    return torch.einsum("cthw,cr->thwr", latents.float(), factors) + bias
