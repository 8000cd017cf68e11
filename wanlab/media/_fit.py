"""Pictures of one shape brought to another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError, shorten, unknown
from wanlab.video import Frames

How = Literal["crop", "pad", "stretch"]


def fit(frames: Frames, height: int, width: int, how: How = "crop", pad: int | tuple[int, int, int] = 0) -> Frames:
    """Frames (T, H, W, 3) or a picture (H, W, 3), uint8, at (height, width); the same array if it has that size.

    crop: as large as covers it, the middle kept. pad: as large as fits in, centred on `pad` (a grey or an RGB colour).
    stretch: each side by itself, whatever happens to the shapes. Resampled by Pillow's Lanczos filter, frame by frame.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim not in (3, 4):
        raise WanlabError(f"Frames are {shorten(frames, 40)}", remedy="Give uint8, (T, H, W, 3) or (H, W, 3)")
    from PIL import Image

    resample = Image.Resampling.LANCZOS
    return _fitted(frames, 3, (height, width), how, pad, lambda a, s, b: Image.fromarray(a).resize(s, resample, b))


def fit_mask(
    mask: NDArray[np.float32], height: int, width: int, how: How = "crop", pad: float = 0.0
) -> NDArray[np.float32]:
    """A mask (H, W) or masks (T, H, W), float32 from 0 to 1, as `fit` does it with pictures of the same shape.

    Resampled linearly, over areas where it shrinks, which stays between 0 and 1; no edge is moved to a whole pixel.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.float32 or mask.ndim not in (2, 3):
        raise WanlabError(f"A mask is {shorten(mask, 40)}", remedy="Give float32, (T, H, W) or (H, W)")
    from PIL import Image

    linear = Image.Resampling.BILINEAR
    fitted = _fitted(mask, 2, (height, width), how, pad, lambda a, s, b: Image.fromarray(a).resize(s, linear, b))
    return fitted if fitted is mask else np.clip(fitted, 0, 1)


def _fitted(
    array: NDArray[Any], ndim: int, size: tuple[int, int], how: str, pad: Any, resize: Callable[..., Any]
) -> NDArray[Any]:
    """The last `ndim` axes are a picture; an axis before them is time."""
    if how not in get_args(How):
        raise unknown("way to fit", how, get_args(How))
    if min(size) < 1:
        raise WanlabError(f"A size of {size[1]}x{size[0]} pixels", remedy="Give 1 or more")
    if array.ndim > ndim:
        if array.shape[1:3] == size:
            return array
        out = np.empty((len(array), *size, *array.shape[3:]), array.dtype)
        for i, picture in enumerate(array):
            out[i] = _fitted(picture, ndim, size, how, pad, resize)
        return out
    if array.shape[:2] == size:
        return array
    box, (top, left, height, width) = _boxes(array.shape[:2], size, how)
    picture = np.asarray(resize(np.ascontiguousarray(array), (width, height), box))
    if (height, width) == size:
        return picture
    out = np.empty((*size, *array.shape[2:]), array.dtype)
    out[:] = pad
    out[top : top + height, left : left + width] = picture
    return out


def _boxes(
    have: tuple[int, int], want: tuple[int, int], how: str
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """The part of the source that is used (left, top, right, bottom), and where it goes (top, left, height, width)."""
    (h, w), (height, width) = have, want
    if how == "crop":
        scale = max(height / h, width / w)
        used_h, used_w = min(h, height / scale), min(w, width / scale)
        top, left = (h - used_h) / 2, (w - used_w) / 2
        return (left, top, left + used_w, top + used_h), (0, 0, height, width)
    if how == "pad":
        scale = min(height / h, width / w)
        inner = max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))
        return (0, 0, w, h), ((height - inner[0]) // 2, (width - inner[1]) // 2, *inner)
    return (0, 0, w, h), (0, 0, height, width)
