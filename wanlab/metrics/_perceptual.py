"""Measures of pictures by packages that carry all they need: FLIP and SSIMULACRA2."""

from __future__ import annotations

import io

import numpy as np

from wanlab.errors import WanlabError
from wanlab.metrics._extra import extra
from wanlab.metrics._frames import Array, check_pair

_SMALLEST_SSIMULACRA2 = 8  # pixels of a side; below, the package has no scale left to look at


def flip(reference: Array, other: Array, *, pixels_per_degree: float = 67.02064514160156) -> float:
    """NVIDIA's FLIP of a clip, 0 (equal) to 1: the mean over pixels, then over frames; lower is closer.

    The difference seen when one flips between two pictures, at 67 pixels a degree by default (a 0.7 m wide 4K display
    seen from 0.7 m). Raises as `flip_per_frame`. Source: Andersson et al. 2020, LDR-FLIP of flip-evaluator 1.7.
    """
    return float(flip_per_frame(reference, other, pixels_per_degree=pixels_per_degree).mean())


def flip_per_frame(reference: Array, other: Array, *, pixels_per_degree: float = 67.02064514160156) -> Array:
    """FLIP of each frame, (T,) float64. Raises WanlabError for a missing package and pixels_per_degree of 0 or less."""
    check_pair(reference, other)
    if not 0 < pixels_per_degree < float("inf"):
        raise WanlabError(f"pixels_per_degree = {pixels_per_degree!r}", remedy="Give a number above 0, such as 67.")
    package = extra("flip_evaluator", "FLIP")
    given, scale = {"ppd": float(pixels_per_degree)}, np.float32(255)
    pairs = zip(reference, other, strict=True)
    return np.array([package.evaluate(x / scale, y / scale, "LDR", True, False, True, given)[1] for x, y in pairs])


def ssimulacra2(reference: Array, other: Array) -> float:
    """SSIMULACRA2 of a clip: the mean over frames; 100 is equal, 90 hardly visible, below 0 is strong distortion.

    Up to six scales from full size to 1/32. Frames with a side under about 225 pixels have fewer, as in the reference
    code, so that their scores compare with those of the same size only. About half a second a frame of 832 x 480.
    Raises as `ssimulacra2_per_frame`. Source: Cloudinary's SSIMULACRA 2.1 in the package ssimulacra2 0.3.
    """
    return float(ssimulacra2_per_frame(reference, other).mean())


def ssimulacra2_per_frame(reference: Array, other: Array) -> Array:
    """SSIMULACRA2 of each frame, (T,) float64. Raises WanlabError for a missing package and a side under 8 pixels."""
    check_pair(reference, other)
    height, width = reference.shape[1:3]
    if min(height, width) < _SMALLEST_SSIMULACRA2:
        raise WanlabError(
            f"SSIMULACRA2 needs frames of at least {_SMALLEST_SSIMULACRA2} x {_SMALLEST_SSIMULACRA2} pixels, "
            f"got {width} x {height}"
        )
    measure = extra("ssimulacra2", "SSIMULACRA2").compute_ssimulacra2
    pairs = zip(reference, other, strict=True)
    return np.array([float(measure(_bitmap(x), _bitmap(y))) for x, y in pairs])


def _bitmap(frame: Array) -> io.BytesIO:
    """A frame as an uncompressed picture file, which is what the package reads."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="BMP")
    file.seek(0)
    return file
