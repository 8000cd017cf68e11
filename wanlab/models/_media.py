"""What a generation shows and plays, and the sizes that a model can make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wanlab.audio import Audio


@dataclass(frozen=True)
class Media:
    """What a generation shows and plays: frames (T, H, W, 3) uint8, T = 1 for an image."""

    frames: np.ndarray
    fps: float
    audio: Audio | None = None


@dataclass(frozen=True)
class Geometry:
    """Legal sizes of a model and how pixels become latents."""

    frame_stride: int
    """Frames a latent frame stands for; the first one stands for one."""
    pixel_stride: int
    """Pixels a latent pixel stands for, along height and width."""
    pixel_multiple: int
    """Height and width are multiples of this."""
    channels: int
    max_pixels: int
    max_frames: int
