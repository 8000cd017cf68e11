"""Finding the objects of a clip: background, object pixels, connected pieces; no learned weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from wanlab.shapes.renderer import backgrounds
from wanlab.shapes.vocabulary import BACKGROUNDS

Array = np.ndarray

MIN_CONTRAST = 42.0
"""Euclidean RGB distance from the background, 0-441, from which a pixel may be an object; the palettes keep 97."""
_BORDER = 4 / 96  # width of the frame's edge that shows the background, as a share of the side
_CORNER = 26 / 96  # the second object's centre lies left of and above this
_MAX_MISFIT = 28.0  # median distance (0-255) of the edge to a named background
_MIN_AREA, _MAX_AREA = 45 / 96**2, 0.45  # of the picture
_MAX_EXTRA = 0.15  # a second piece larger than this share of the main one makes a frame bad


@dataclass(frozen=True)
class Objects:
    """What is seen in T frames; masks are (T, H, W), numbers are per frame."""

    main: Array
    """bool, the largest piece."""
    is_valid: Array
    """(T,) bool: exactly one piece of a plausible size."""
    is_whole: Array
    """(T,) bool: valid, not cut by the frame's edge or by the second object."""
    alpha: Array
    """float32 in [0, 1], softness of the main object's edge."""
    corner: Array | None
    """(H, W) bool: the small second object, None where there is none."""


@cache
def _named_backgrounds(height: int, width: int) -> Array:
    """(7, H, W, 3) float32, 0-255."""
    size = max(height, width)
    images = backgrounds(torch.arange(len(BACKGROUNDS)), size)[:, :, 0].permute(0, 2, 3, 1).numpy() * 255
    rows, columns = np.arange(height) * size // height, np.arange(width) * size // width
    return np.ascontiguousarray(images[:, rows][:, :, columns].astype(np.float32))


def holds_throughout(claims: Array, min_share: float) -> bool:
    """True where at least `min_share` of the frames claim it, and more than half of each third of the clip."""
    thirds = [third for third in np.array_split(claims, 3) if len(third)]
    return bool(claims.mean() >= min_share and all(third.mean() > 0.5 for third in thirds))


def _edge(height: int, width: int) -> Array:
    """(H, W) bool: the frame's edge, without the top left corner."""
    border = max(2, round(_BORDER * min(height, width)))
    edge = np.ones((height, width), bool)
    edge[border:-border, border:-border] = False
    edge[: int(_CORNER * height), : int(_CORNER * width)] = False
    return edge


def find_background(frames: Array) -> tuple[str | None, Array]:
    """Name of the background, None where no name fits, and (T, H, W, 3) float32 of what is behind the objects.

    Follows small shifts of colour per frame, and of the texture per pixel.
    """
    named = _named_backgrounds(*frames.shape[1:3])
    edge = _edge(*frames.shape[1:3])
    seen = frames[:, edge]
    misfits = np.stack([np.median(np.abs(seen - image[edge]).mean(-1), axis=1) for image in named])
    best = int(np.argmin(np.median(misfits, axis=1)))
    shift = np.median(seen - named[best][edge], axis=1).clip(-40, 40)
    canvas = named[best] + shift[:, None, None, :]
    residual = frames - canvas
    is_canvas = (np.abs(residual).max(-1, keepdims=True) < MIN_CONTRAST / 2).astype(np.float32)
    texture = (residual * is_canvas).sum(0) / (is_canvas.sum(0) + 2)
    is_named = (misfits.argmin(0) == best) & (misfits[best] <= _MAX_MISFIT)
    return (list(BACKGROUNDS)[best] if holds_throughout(is_named, 0.85) else None), canvas + texture


def _spread(mask: Array, wanted: bool) -> Array:
    """3x3 dilation of the pixels that equal `wanted`, over the last two axes."""
    padded = np.pad(mask == wanted, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    rows = padded[..., :-2, :] | padded[..., 1:-1, :] | padded[..., 2:, :]
    return rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]


def dilate(mask: Array) -> Array:
    """Grow by one pixel, diagonals included."""
    return _spread(mask, True)


def erode(mask: Array) -> Array:
    """Shrink by one pixel, diagonals included."""
    return ~_spread(mask, False)


@dataclass(frozen=True)
class Pieces:
    """Connected pieces of (T, H, W) masks, as horizontal runs; a piece never spans frames."""

    shape: tuple[int, int, int]
    starts: Array
    ends: Array
    labels: Array
    """(R,) piece of every run; starts and ends count in the flat, padded mask."""

    def areas(self) -> Array:
        return np.bincount(self.labels, weights=self.ends - self.starts).astype(int)

    def frames(self) -> Array:
        _, height, width = self.shape
        owner = np.zeros(int(self.labels.max(initial=-1)) + 1, int)
        owner[self.labels] = self.starts // ((height + 1) * (width + 1))
        return owner

    def mask(self, chosen: Array) -> Array:
        num_frames, height, width = self.shape
        is_run = np.isin(self.labels, chosen)
        steps = np.zeros(num_frames * (height + 1) * (width + 1) + 1, np.int8)
        steps[self.starts[is_run]] += 1
        steps[self.ends[is_run]] -= 1
        filled = steps[:-1].cumsum(dtype=np.int8).astype(bool)
        return filled.reshape(num_frames, height + 1, width + 1)[:, :height, :width]


def pieces(masks: Array) -> Pieces:
    """Connected pieces (side by side, not diagonal) of (T, H, W) bool masks, by runs and union-find."""
    num_frames, height, width = masks.shape
    row = width + 1
    flat = np.pad(masks, ((0, 0), (0, 1), (0, 1))).ravel().astype(np.int8)
    steps = np.diff(flat, prepend=0)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    first = np.searchsorted(ends, starts + row, side="right")
    last = np.searchsorted(starts, ends + row, side="left")
    counts = (last - first).clip(0)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.repeat(first - counts.cumsum() + counts, counts) + np.arange(counts.sum())
    parent = list(range(len(starts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in zip(above.tolist(), below.tolist(), strict=True):
        ra, rb = root(a), root(b)
        parent[max(ra, rb)] = min(ra, rb)
    roots = np.array([root(i) for i in range(len(starts))], int)
    labels = np.unique(roots, return_inverse=True)[1] if len(roots) else roots
    return Pieces((num_frames, height, width), starts, ends, labels)


def _largest(masks: Array) -> tuple[Array, Array, Array]:
    """Per frame: mask of the largest piece, its area, the area of the next."""
    found = pieces(masks)
    areas, frames = found.areas(), found.frames()
    best, area, extra = [], np.zeros(len(masks), int), np.zeros(len(masks), int)
    for t in range(len(masks)):
        of_frame = np.flatnonzero(frames == t)
        order = of_frame[np.argsort(-areas[of_frame])]
        if len(order):
            best.append(order[0])
            area[t] = areas[order[0]]
            extra[t] = areas[order[1]] if len(order) > 1 else 0
    return found.mask(np.array(best, int)), area, extra


def _find_corner(contrast: Array) -> Array | None:
    """(H, W) bool of the small object that stands in the top left corner for most of the clip."""
    lasting = (contrast > MIN_CONTRAST).mean(0) > 0.6
    height, width = lasting.shape
    found = pieces(lasting[None])
    for label, area in enumerate(found.areas()):
        mask = found.mask(np.array([label]))[0]
        rows, columns = np.nonzero(mask)
        is_corner = rows.mean() < _CORNER * height and columns.mean() < _CORNER * width
        if is_corner and 0.5 * _MIN_AREA < area / lasting.size < 0.06:
            return mask
    return None


def find_objects(frames: Array, canvas: Array) -> Objects | None:
    """Separate the main object and the small one from the background; None where nothing stands out.

    frames, canvas: (T, H, W, 3) float32, 0-255.
    """
    contrast = np.sqrt(np.square(frames - canvas).sum(-1))
    corner = _find_corner(contrast)
    near_corner = dilate(dilate(corner)) if corner is not None else np.zeros(contrast.shape[1:], bool)
    candidates, _, _ = _largest((contrast > MIN_CONTRAST) & ~near_corner)
    core = erode(candidates)
    if core.sum() < _MIN_AREA * core[0].size:
        return None
    colour = np.median(frames[core], axis=0)
    half = 0.5 * np.sqrt(np.square(colour - canvas).sum(-1)).clip(2 * MIN_CONTRAST / 1.5)
    main, area, extra = _largest((contrast > half) & ~near_corner)
    share = area / main[0].size
    is_valid = (share > _MIN_AREA) & (share < _MAX_AREA) & (extra < np.maximum(_MAX_EXTRA * area, 0.4 * _MIN_AREA))
    wide = dilate(main)
    edge = np.ones(main.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    is_cut = (wide & (edge | near_corner)).any((1, 2))
    alpha = ((contrast / (2 * half) - 0.5) * 2 + 0.5).clip(0, 1) * (wide & ~near_corner)
    return Objects(main, is_valid, is_valid & ~is_cut, alpha, corner)
