"""Distances between frames of two clips, level by level, and between neighbouring frames of one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wanlab.errors import WanlabError

PEAK = 255.0
EQUAL_FRAME = 100.0  # dB counted for a frame without any error, as VideoSys' common_metrics does

Array = np.ndarray[Any, Any]


def psnr(a: Array, b: Array) -> float:
    """Peak signal to noise ratio in dB from one mean squared error over the whole clip; inf for equal clips."""
    return frame_distances(a, b).clip_psnr


def psnr_per_frame(a: Array, b: Array) -> Array:
    """PSNR of each frame in dB, (T,) float64; a frame without error counts 100 dB, so that the mean stays finite.

    Source: `calculate_psnr` of VideoSys' common_metrics_on_video_quality.
    """
    return frame_distances(a, b).finite_psnr


@dataclass(frozen=True, eq=False)
class FrameDistances:
    """How far one clip is from another, frame by frame; each is (T,) float64 and exact but for the last bits."""

    mse: Array
    """Mean squared error in 8-bit levels squared, over pixels and channels."""
    mean_abs_diff: Array
    """8-bit levels, over pixels and channels."""
    max_abs_diff: Array
    """8-bit levels, of any pixel and channel."""

    @property
    def psnr(self) -> Array:
        """dB; inf for an equal frame."""
        with np.errstate(divide="ignore"):
            return np.asarray(10 * np.log10(PEAK**2 / self.mse))

    @property
    def finite_psnr(self) -> Array:
        """dB; 100 for an equal frame."""
        return np.where(self.mse > 0, self.psnr, EQUAL_FRAME)

    @property
    def clip_psnr(self) -> float:
        """dB, from the mean of all errors; inf for equal clips."""
        mse = float(self.mse.mean())
        return float("inf") if mse == 0 else 10 * float(np.log10(PEAK**2 / mse))


def frame_distances(a: Array, b: Array) -> FrameDistances:
    """Distances of each frame of `b` to the frame of `a` at its time; one frame at a time is in memory."""
    check_pair(a, b)
    levels = np.arange(256.0)
    counts = np.stack([np.bincount(abs_diff(x, y).ravel(), minlength=256) for x, y in zip(a, b, strict=True)])
    shares = counts / a[0].size
    return FrameDistances(shares @ levels**2, shares @ levels, 255.0 - np.argmax(counts[:, ::-1] > 0, axis=1))


def max_abs_diff(a: Array, b: Array) -> int:
    """The largest difference of any pixel, in 8-bit levels; 0 for equal clips."""
    return int(frame_distances(a, b).max_abs_diff.max())


def abs_diff(a: Array, b: Array) -> Array:
    """|a - b| of uint8 arrays, in uint8, without the wrap-around of a plain difference."""
    return np.maximum(a, b) - np.minimum(a, b)


def flicker(frames: Array) -> float:
    """Mean absolute difference between neighbouring frames in 8-bit levels; 0 for a still clip and for an image.

    Raises WanlabError for what is no (T, H, W, 3) uint8.
    """
    check_pair(frames, frames)
    if len(frames) < 2:
        return 0.0
    return float(np.mean([np.mean(np.abs(y.astype(np.int16) - x)) for x, y in pairwise(frames)]))


def check_pair(a: Array, b: Array) -> None:
    """Raise WanlabError unless both are (T, H, W, 3) uint8 of one size, T at least 1."""
    for frames in (a, b):
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
            kind = getattr(frames, "dtype", type(frames).__name__)
            raise WanlabError(f"Frames are uint8 arrays, got {kind}", remedy="Give Result.frames, or decode first.")
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or not a.size:
        raise WanlabError(
            f"Two clips of the same (frames, height, width, 3) are needed, got {tuple(a.shape)} and {tuple(b.shape)}",
            remedy="Generate both with the same width, height and num_frames.",
        )
