"""Wan's rotary position tables, with RIFLEx for clips longer than the model was trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wanlab.errors import WanlabError

RIFLEX_FREQUENCY = 6
"""Which temporal frequency of Wan, counted from 1, repeats first when a clip grows; as in WanGP 8681e9f7."""
_SHARE = 0.9  # of a period that the clip may fill; the authors' margin against repetition in the last frames
_SECONDS = 6  # "auto" is on for clips longer than this


def riflex_length(mode: str, num_frames: int, fps: float, latent_frames: int) -> int | None:
    """The latent frames that RIFLEx stretches for, None where it is off; "auto" is on beyond 6 seconds and a frame."""
    on = mode == "on" or (mode == "auto" and num_frames > _SECONDS * fps + 1)
    return latent_frames if on else None


def temporal_frequencies(dim: int, theta: float = 10000.0, riflex: int | None = None) -> Tensor:
    """Angles per latent frame (dim // 2,), float64 on the CPU, falling.

    With `riflex`, a number of latent frames, frequency 6 becomes 0.9 * 2 pi / riflex: the clip fills 0.9 of its period.
    Wan's own has a period of 51 frames, so this slows it from 46 latent frames (181 frames) on and quickens it before,
    in WanGP too. Raises WanlabError where there is no such frequency.
    Source: RIFLEx (arXiv:2502.15894), equation 8 and thu-ml/RIFLEx 18e0bc34.
    """
    frequencies = _frequencies(dim, theta)
    if riflex is None:
        return frequencies
    if len(frequencies) < RIFLEX_FREQUENCY:
        raise WanlabError(
            f"RIFLEx slows temporal frequency {RIFLEX_FREQUENCY}, and this model has {len(frequencies)}",
            remedy="Set riflex to 'off'.",
        )
    frequencies[RIFLEX_FREQUENCY - 1] = _SHARE * 2 * math.pi / riflex
    return frequencies


def rope_tables(
    head_dim: int,
    grid: tuple[int, int, int],
    *,
    theta: float = 10000.0,
    riflex: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """cos and sin (1, T * H * W, 1, head_dim), float32 on `device`, of a grid (T, H, W) of tokens.

    Without `riflex` bit-equal to diffusers 0.42.1's WanRotaryPosEmbed: angles in float64 on the CPU, each number twice.
    """
    plane = 2 * (head_dim // 6)  # of height and of width; time has the rest
    frequencies = (
        temporal_frequencies(head_dim - 2 * plane, theta, riflex),
        _frequencies(plane, theta),
        _frequencies(plane, theta),
    )
    angles = [torch.outer(torch.arange(n), f) for n, f in zip(grid, frequencies, strict=True)]
    return _spread([a.cos() for a in angles], grid, device), _spread([a.sin() for a in angles], grid, device)


def _frequencies(dim: int, theta: float) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))


def _spread(tables: list[Tensor], grid: tuple[int, int, int], device: torch.device | str) -> Tensor:
    """One table (n, dim // 2) for each axis as (1, T * H * W, 1, head_dim), each number twice in a row."""
    shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    parts = [
        table.repeat_interleave(2, dim=1).float().to(device).view(*shape, 2 * table.shape[1]).expand(*grid, -1)
        for table, shape in zip(tables, shapes, strict=True)
    ]
    return torch.cat(parts, dim=-1).reshape(1, math.prod(grid), 1, -1)
