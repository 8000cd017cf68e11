"""Naming shapes by their polar maps, whatever their size and rotation, and following how far they turn."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from wanlab.shapes._objects import holds_throughout
from wanlab.shapes.captions import Scenes
from wanlab.shapes.renderer import render
from wanlab.shapes.vocabulary import BACKGROUNDS, MOTIONS, SHAPES

Array = np.ndarray

_ANGLES, _RADII = 72, 24
_REACH = 2.3  # of the map, in root-mean-square radii of the object
SYMMETRY = {"triangle": 3, "square": 4, "cross": 4, "star": 5}
"""Number of turns within a circle that leave a shape as it is; round ones have none."""
_MIN_LIKENESS = 0.86
"""Drawn shapes reach 0.98, blurred and bent ones 0.88, random blobs 0.7-0.9."""
_MIN_LEAD = 0.045
"""Over the next shape; drawn ones lead by 0.13, blurred and bent ones by 0.07, random blobs by 0.03."""
_MIN_VOTES = 0.7


def centroids(alpha: Array) -> tuple[Array, Array, Array]:
    """Centre x, y in pixels and area of (T, H, W) masks, each (T,)."""
    _, height, width = alpha.shape
    area = alpha.sum((1, 2)) + 1e-6
    x = alpha.sum(1) @ (np.arange(width) + 0.5) / area
    y = alpha.sum(2) @ (np.arange(height) + 0.5) / area
    return x, y, area


def polar_maps(alpha: Array) -> Array:
    """(T, radii, angles) float32: the masks around their centroids, scaled by their root-mean-square radius."""
    _, height, width = alpha.shape
    x, y, area = centroids(alpha)
    grid_x, grid_y = np.arange(width) + 0.5, np.arange(height) + 0.5
    spread_x = (alpha.sum(1) * np.square(grid_x - x[:, None])).sum(1)
    spread_y = (alpha.sum(2) * np.square(grid_y - y[:, None])).sum(1)
    scale = np.sqrt((spread_x + spread_y) / area)[:, None, None]
    radius = ((np.arange(_RADII) + 0.5) * (_REACH / _RADII))[None, :, None] * scale
    angle = (np.arange(_ANGLES) * (2 * np.pi / _ANGLES))[None, None]
    px = x[:, None, None] + radius * np.cos(angle)
    py = y[:, None, None] + radius * np.sin(angle)
    where = torch.from_numpy(np.stack([px * (2 / width) - 1, py * (2 / height) - 1], -1).astype(np.float32))
    image = torch.from_numpy(alpha.astype(np.float32))[:, None]
    return torch.nn.functional.grid_sample(image, where, align_corners=False)[:, 0].numpy()


@cache
def _templates() -> tuple[Array, Array]:
    """Conjugate spectra over the angle, (6, radii, frequencies), and energies, (6,), of the six shapes as drawn."""
    num = len(SHAPES)
    index = torch.full((num,), 0)
    still = torch.full((num,), MOTIONS.index("stays still"))
    black = torch.full((num,), list(BACKGROUNDS).index("black"))
    scenes = Scenes(index, torch.arange(num), still, black, index, index, index, torch.full((num, 6), 0.5))
    maps = polar_maps(render(scenes, num_frames=1, size=192).coverage[:, 0].numpy())
    return np.conj(np.fft.rfft(maps, axis=-1)), _energy(maps)


def _energy(maps: Array) -> Array:
    return (np.square(maps).sum(-1) * _ring_areas()).sum(-1)


def _ring_areas() -> Array:
    return np.arange(_RADII) + 0.5


def likenesses(maps: Array) -> Array:
    """(T, 6): soft intersection over union of every frame with every shape at its best rotation."""
    spectra, energies = _templates()
    products = np.einsum("r,trf,srf->tsf", _ring_areas(), np.fft.rfft(maps, axis=-1), spectra)
    overlap = np.fft.irfft(products, n=_ANGLES, axis=-1).max(-1)
    return overlap / (_energy(maps)[:, None] + energies - overlap)


def name_shape(maps: Array, min_likeness: float = _MIN_LIKENESS, min_lead: float = _MIN_LEAD) -> str | None:
    """The one shape that most frames agree on, in each third of the clip; None where they do not or it is a blob."""
    if not len(maps):
        return None
    scores = likenesses(maps)
    votes = scores.argmax(1)
    winner = int(np.bincount(votes, minlength=len(SHAPES)).argmax())
    if not holds_throughout(votes == winner, _MIN_VOTES):
        return None
    mean = scores.mean(0)
    lead = mean[winner] - np.delete(mean, winner).max()
    return SHAPES[winner] if mean[winner] >= min_likeness and lead >= min_lead else None


def turning(maps: Array, shape: str | None) -> Array:
    """(T,) radians: how far the object is turned, unwrapped over the frames; zero for round or unknown shapes."""
    if shape not in SYMMETRY:
        return np.zeros(len(maps))
    order = SYMMETRY[shape]
    wave = np.exp(-1j * order * np.arange(_ANGLES) * (2 * np.pi / _ANGLES))
    return np.unwrap(np.angle((maps * np.square(_ring_areas())[:, None]).sum(1) @ wave)) / order
