"""Distances between two clips of decoded frames, with no weights to download.

Papers disagree on what "PSNR of a video" is, so both forms are here under their own names. Frames are (T, H, W, 3)
uint8, as `Result.frames`; a single image is T = 1.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wanlab.errors import WanlabError

_PEAK = 255.0
_TAPS, _SIGMA = 11, 1.5  # the window of Wang et al. 2004
_STRIP = 16  # rows at a time; 8 and 32 are slower by a fifth at 832 pixels
_MOST_THREADS = 8
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
            return np.asarray(10 * np.log10(_PEAK**2 / self.mse))

    @property
    def finite_psnr(self) -> Array:
        """dB; 100 for an equal frame."""
        return np.where(self.mse > 0, self.psnr, EQUAL_FRAME)

    @property
    def clip_psnr(self) -> float:
        """dB, from the mean of all errors; inf for equal clips."""
        mse = float(self.mse.mean())
        return float("inf") if mse == 0 else 10 * float(np.log10(_PEAK**2 / mse))


def frame_distances(a: Array, b: Array) -> FrameDistances:
    """Distances of each frame of `b` to the frame of `a` at its time; one frame at a time is in memory."""
    _check(a, b)
    levels = np.arange(256.0)
    counts = np.stack([np.bincount(abs_diff(x, y).ravel(), minlength=256) for x, y in zip(a, b, strict=True)])
    shares = counts / a[0].size
    return FrameDistances(shares @ levels**2, shares @ levels, 255.0 - np.argmax(counts[:, ::-1] > 0, axis=1))


def ssim(a: Array, b: Array) -> float:
    """Structural similarity in [-1, 1]: the mean over frames, channels and positions where an 11 x 11 Gaussian fits.

    Raises WanlabError for frames smaller than 11 x 11. Source: Wang et al. 2004, K1 = 0.01, K2 = 0.03, sigma = 1.5.
    """
    _check(a, b)
    if min(a.shape[1:3]) < _TAPS:
        raise WanlabError(f"SSIM needs frames of at least {_TAPS} x {_TAPS} pixels, got {a.shape[2]} x {a.shape[1]}")
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:  # numpy lets go of the interpreter
        return float(np.mean(list(pool.map(_ssim_of_frame, a, b))))


def max_abs_diff(a: Array, b: Array) -> int:
    """The largest difference of any pixel, in 8-bit levels; 0 for equal clips."""
    return int(frame_distances(a, b).max_abs_diff.max())


def abs_diff(a: Array, b: Array) -> Array:
    """|a - b| of uint8 arrays, in uint8, without the wrap-around of a plain difference."""
    return np.maximum(a, b) - np.minimum(a, b)


def flicker(frames: Array) -> float:
    """Mean absolute difference between neighbouring frames in 8-bit levels; 0 for a still clip and for an image."""
    if len(frames) < 2:
        return 0.0
    return float(np.mean([np.mean(np.abs(y.astype(np.int16) - x)) for x, y in pairwise(frames)]))


def _check(a: Array, b: Array) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise WanlabError(
            f"Two clips of the same (frames, height, width, 3) are needed, got {tuple(a.shape)} and {tuple(b.shape)}",
            remedy="Generate both with the same width, height and num_frames.",
        )


def _ssim_of_frame(x: Array, y: Array) -> float:
    """SSIM of one (H, W, 3) uint8 frame, averaged over pixels and channels; in strips, which stay in the cache."""
    height, width = x.shape[0] - _TAPS + 1, x.shape[1] - _TAPS + 1
    planes = [np.ascontiguousarray(frame.transpose(2, 0, 1)) for frame in (x, y)]
    total = 0.0
    for channel in zip(*planes, strict=True):
        for top in range(0, height, _STRIP):
            bottom = min(top + _STRIP, height) + _TAPS - 1
            total += _ssim_sum(*(plane[top:bottom].astype(np.float64) for plane in channel))
    return total / (3 * height * width)


def _ssim_sum(x: Array, y: Array) -> float:
    """The sum of SSIM over the positions of (h, w) where the whole window fits."""
    mean_x, mean_y, squares, product = _sweep(_sweep(np.stack([x, y, x * x + y * y, x * y]), 1), 2)
    both, product_of_means = mean_x**2 + mean_y**2, mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    top = (2 * product_of_means + c1) * (2 * (product - product_of_means) + c2)
    return float((top / ((both + c1) * (squares - both + c2))).sum())


def _sweep(maps: Array, axis: int) -> Array:
    """The Gaussian window along one axis, where it fits; it is symmetric, so its ends share their multiplication."""
    length = maps.shape[axis] - _TAPS + 1
    window = np.exp(-((np.arange(_TAPS) - _TAPS // 2) ** 2) / (2 * _SIGMA**2))
    window /= window.sum()
    shifted = [_part(maps, axis, i, length) for i in range(_TAPS)]
    out = shifted[_TAPS // 2] * window[_TAPS // 2]
    pair = np.empty_like(out)
    for i in range(_TAPS // 2):
        np.add(shifted[i], shifted[-1 - i], out=pair)
        pair *= window[i]
        out += pair
    return out


def _part(maps: Array, axis: int, start: int, length: int) -> Array:
    """A view of `length` entries along an axis."""
    return maps[(slice(None),) * axis + (slice(start, start + length),)]
