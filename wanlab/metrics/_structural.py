"""Structural similarity at one scale and at five, as sums of small matrix products over strips of rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from wanlab.errors import WanlabError
from wanlab.metrics._frames import PEAK, Array, check_pair

_TAPS, _SIGMA = 11, 1.5  # the window of Wang et al. 2004
_ROWS = _COLUMNS = 16  # positions of a product; 8 and 32 are slower at 832 pixels
_MOST_THREADS = 8
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of Wang et al. 2003, finest scale first
_SMALLEST_MS = (_TAPS - 1) * 2 ** (len(_SCALES) - 1) + 1  # 161 pixels, as pytorch-msssim asks


def ssim(a: Array, b: Array) -> float:
    """Structural similarity in [-1, 1]: the mean over frames, channels and positions where an 11 x 11 Gaussian fits.

    Equals the mean over a clip that TeaCache's and VideoSys' scripts give (eval/teacache/common_metrics at commit
    7c10efc), up to their rounding to float32. On one core of an AMD EPYC, four frames of 832 x 480: 22 ms a frame;
    theirs (a 2-D filter of OpenCV 5.0, plane by plane, in float64) 77 ms.
    Raises WanlabError for frames smaller than 11 x 11. Source: Wang et al. 2004, K1 = 0.01, K2 = 0.03, sigma = 1.5.
    """
    return float(ssim_per_frame(a, b).mean())


def ssim_per_frame(a: Array, b: Array) -> Array:
    """SSIM of each frame, (T,) float64. Raises as `ssim`."""
    check_pair(a, b)
    if min(a.shape[1:3]) < _TAPS:
        raise WanlabError(f"SSIM needs frames of at least {_TAPS} x {_TAPS} pixels, got {a.shape[2]} x {a.shape[1]}")
    return _by_frame(_ssim_of_frame, a, b)


def ms_ssim(a: Array, b: Array) -> float:
    """Multi-scale SSIM in [0, 1]: the mean over frames and channels of the product of five scales.

    Contrast and structure count at every scale, luminance at the coarsest; a negative mean of a scale counts 0. Each
    next scale is the mean of 2 x 2 pixels; an odd side first gets a line of zeros, as in pytorch-msssim (commit
    b057b07), whose numbers these are. Raises WanlabError for a side under 161 pixels.
    Source: Wang et al. 2003, "Multiscale structural similarity for image quality assessment".
    """
    check_pair(a, b)
    if not ms_ssim_fits(a):
        raise WanlabError(
            f"MS-SSIM needs frames of at least {_SMALLEST_MS} x {_SMALLEST_MS} pixels, got {a.shape[2]} x {a.shape[1]}",
            remedy="Use ssim for small frames.",
        )
    return float(_by_frame(_ms_ssim_of_frame, a, b).mean())


def ms_ssim_fits(frames: Array) -> bool:
    """Whether frames are large enough for `ms_ssim`."""
    return min(frames.shape[1:3]) >= _SMALLEST_MS


def _by_frame(measure: Callable[[Array, Array], float], a: Array, b: Array) -> Array:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:  # numpy lets go of the interpreter
        return np.array(list(pool.map(measure, a, b)))


def _ssim_of_frame(x: Array, y: Array) -> float:
    """SSIM of one (H, W, 3) uint8 frame, averaged over pixels and channels."""
    return float(np.mean([_similarity(p, q)[0] for p, q in zip(_planes(x), _planes(y), strict=True)]))


def _ms_ssim_of_frame(x: Array, y: Array) -> float:
    return float(np.mean([_ms_ssim_of_plane(p, q) for p, q in zip(_planes(x), _planes(y), strict=True)]))


def _ms_ssim_of_plane(x: Array, y: Array) -> float:
    product = 1.0
    for scale, exponent in enumerate(_SCALES):
        is_last = scale == len(_SCALES) - 1
        whole, structure = _similarity(x, y, with_structure=not is_last)
        product *= max(whole if is_last else structure, 0.0) ** exponent
        if not is_last:
            x, y = _halved(x), _halved(y)
    return product


def _planes(frame: Array) -> Array:
    """(3, H, W), contiguous."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1))


def _halved(plane: Array) -> Array:
    """Means of 2 x 2 pixels; zeros go before the first row or column of an odd side and count."""
    height, width = plane.shape
    padded = np.pad(plane.astype(np.float64), ((height % 2, 0), (width % 2, 0)))
    return padded.reshape(padded.shape[0] // 2, 2, -1, 2).mean((1, 3))


def _similarity(x: Array, y: Array, with_structure: bool = False) -> tuple[float, float]:
    """Means of SSIM and, if asked for (else 0), of its contrast and structure factor, over positions of two planes.

    Strips of rows stay in the cache of the processor.
    """
    height, width = x.shape[0] - _TAPS + 1, x.shape[1] - _TAPS + 1
    whole = structure = 0.0
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height) + _TAPS - 1
        for moments in _moments(x[top:bottom], y[top:bottom]):
            sums = _sums(moments, with_structure)
            whole, structure = whole + sums[0], structure + sums[1]
    return whole / (height * width), structure / (height * width)


def _moments(x: Array, y: Array) -> list[Array]:
    """Windowed means of x, y, x^2 + y^2 and xy where the whole window fits in (h, w): pieces (4, ...) of all positions.

    One product with the band of taps a direction: twice the multiplications of a sweep, in a fraction of its time.
    """
    rows, columns = x.shape[0] - _TAPS + 1, x.shape[1] - _TAPS + 1
    maps = np.empty((4, *x.shape))
    maps[0], maps[1] = x, y
    np.multiply(maps[0], maps[0], out=maps[2])
    maps[2] += maps[1] * maps[1]
    np.multiply(maps[0], maps[1], out=maps[3])
    down = np.matmul(_band(rows).T, maps).reshape(4 * rows, -1)
    num, rest = divmod(columns, _COLUMNS)
    pieces = []
    if num:
        line, step = down.strides
        shape, strides = (num, 4 * rows, _COLUMNS + _TAPS - 1), (_COLUMNS * step, line, step)
        windows = np.lib.stride_tricks.as_strided(down, shape, strides, writeable=False)
        pieces.append((windows @ _band(_COLUMNS)).reshape(num, 4, rows, _COLUMNS).swapaxes(0, 1))
    if rest:
        pieces.append((down[:, num * _COLUMNS :] @ _band(rest)).reshape(4, rows, rest))
    return pieces


def _sums(moments: Array, with_structure: bool) -> tuple[float, float]:
    """The sums of SSIM and of its contrast and structure factor over positions."""
    mean_x, mean_y, squares, product = moments
    both, product_of_means = mean_x * mean_x, mean_x * mean_y
    both += mean_y * mean_y
    above = 2 * (product - product_of_means)
    above += _C2
    below = squares - both
    below += _C2
    structure = float((above / below).sum()) if with_structure else 0.0
    above *= 2 * product_of_means + _C1
    below *= both + _C1
    above /= below
    return float(above.sum()), structure


@lru_cache
def _band(num: int) -> Array:
    """(num + 10, num): each column holds the Gaussian window, one entry below the last column's."""
    window = np.exp(-((np.arange(_TAPS) - _TAPS // 2) ** 2) / (2 * _SIGMA**2))
    window /= window.sum()
    band = np.zeros((num + _TAPS - 1, num))
    for i in range(num):
        band[i : i + _TAPS, i] = window
    return band
