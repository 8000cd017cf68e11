"""One picture sequence that holds all clips of a comparison in a grid, so that players which draw from it are in step.

Each clip has a cell, and so has the difference of each comparable clip to the first: taken before encoding, since that
of two decoded clips would be the codec's noise. The frame's number is in the picture too, as sixteen black or white
blocks below the grid (the highest bit first): what is on the screen tells by itself which frame it is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from wanlab import metrics, video
from wanlab.study.side_by_side import Comparison

MOST_BYTES = 6_000_000
_FRAME_PIXELS = 8_000_000
_ALL_PIXELS = 288_000_000  # of all frames: some 6 s of one core
_SIDE = 4096  # pixels; more is refused by hardware decoders
_BLOCK = 16  # pixels of a macroblock: cells start at one, so that the codec mixes no two
_BITS = 16
_SMALL = 512  # pixels that small clips are enlarged to
_CRF = 12
# Differences are stored as 255 sqrt(d / 255): a level of difference is 16 of the codec, 255 levels are 255.
_COMPANDED = np.round(np.sqrt(np.arange(256) * 255.0)).astype(np.uint8)

Frames = np.ndarray[Any, Any]
Cell = tuple[int, int, int, int]  # left, top, width, height in the master's pixels


@dataclass(frozen=True)
class Master:
    """The encoded grid: where each clip is, where its difference to the first is (None without one), and the bytes."""

    mime: str
    data: bytes
    num_frames: int
    scale: float
    """Pixels of the master for each of a clip's: 2 or 4 for small clips, which 4:2:0 would smear, below 1 for large."""
    cells: list[Cell]
    differences: list[Cell | None]
    code: Cell
    """The blocks of the frame's number."""


def encode_master(comparison: Comparison) -> Master:
    """Encode all clips of a comparison; a single picture becomes a PNG, which is exact, where it is not too large."""
    clips = [r.frames for r in comparison.results]
    comparable = [i for i, distances in enumerate(comparison.per_frame) if distances is not None]
    num_frames = max(map(len, clips))
    shapes = [c.shape[1:3] for c in clips] + [clips[i].shape[1:3] for i in comparable]
    scale = _scale(shapes, num_frames)
    cells, code, size = _grid([_scaled(shape, scale) for shape in shapes])
    pictures = (
        _picture([*_shown(clips, t), *_differences(clips, comparable, t)], cells, code, size, t)
        for t in range(num_frames)
    )
    mime, data = _encoded(pictures, num_frames, comparison.fps)
    differences = dict(zip(comparable, cells[len(clips) :], strict=True))
    return Master(
        mime, data, num_frames, scale, cells[: len(clips)], [differences.get(i) for i in range(len(clips))], code
    )


def _encoded(pictures: Iterator[Frames], num_frames: int, fps: float) -> tuple[str, bytes]:
    if num_frames > 1:
        return "video/mp4", video.screen_video(pictures, num_frames, fps, crf=_CRF, most_bytes=MOST_BYTES)
    picture, file = next(pictures), io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=2)
    if file.tell() <= MOST_BYTES:
        return "image/png", file.getvalue()
    return "video/mp4", video.screen_video([picture], 1, fps, crf=_CRF, most_bytes=MOST_BYTES)


def _scale(shapes: Sequence[tuple[int, int]], num_frames: int) -> float:
    largest = max(max(shape) for shape in shapes)
    for times in (4, 2):
        _, _, (height, width) = _grid([_scaled(shape, times) for shape in shapes])
        if largest * times <= _SMALL and _fits(height, width, num_frames) == 1:
            return times
    _, _, (height, width) = _grid([_scaled(shape, 1) for shape in shapes])
    return _fits(height, width, num_frames)


def _fits(height: int, width: int, num_frames: int) -> float:
    """How much smaller a grid must be; 1 where it fits. Slightly too much, as cells are rounded up to blocks."""
    area = height * width
    most = min(math.sqrt(_FRAME_PIXELS / area), math.sqrt(_ALL_PIXELS / area / num_frames), _SIDE / max(height, width))
    return 1 if most >= 1 else most * 0.98


def _scaled(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _grid(sizes: Sequence[tuple[int, int]]) -> tuple[list[Cell], Cell, tuple[int, int]]:
    """Cells for pictures of these (height, width), the place of the number, and the (height, width) of all."""
    high, wide = (math.ceil(max(size[axis] for size in sizes) / _BLOCK) * _BLOCK for axis in (0, 1))
    columns = min(range(1, len(sizes) + 1), key=lambda n: n * wide + math.ceil(len(sizes) / n) * high)
    places = [(i % columns * wide, i // columns * high) for i in range(len(sizes))]
    cells = [(x, y, size[1], size[0]) for (x, y), size in zip(places, sizes, strict=True)]
    below = math.ceil(len(sizes) / columns) * high
    return cells, (0, below, _BITS * _BLOCK, _BLOCK), (below + _BLOCK, max(columns * wide, _BITS * _BLOCK))


def _shown(clips: Sequence[Frames], t: int) -> list[Frames]:
    return [clip[min(t, len(clip) - 1)] for clip in clips]


def _differences(clips: Sequence[Frames], comparable: Sequence[int], t: int) -> list[Frames]:
    return [_COMPANDED[metrics.abs_diff(clips[0][t], clips[i][t])] for i in comparable]


def _picture(
    pictures: Sequence[Frames], cells: Sequence[Cell], code: Cell, size: tuple[int, int], number: int
) -> Frames:
    """One frame of the master. The last row and column of a picture go on to the end of its last block."""
    canvas = np.zeros((*size, 3), np.uint8)
    for picture, (x, y, width, height) in zip(pictures, cells, strict=True):
        resized = _resized(picture, height, width)
        padded = np.pad(resized, ((0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)), mode="edge")
        canvas[y : y + padded.shape[0], x : x + padded.shape[1]] = padded
    for bit in range(_BITS):
        if number >> (_BITS - 1 - bit) & 1:
            canvas[code[1] : code[1] + _BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 255
    return canvas


def _resized(picture: Frames, height: int, width: int) -> Frames:
    """Enlarged a whole number of times by repeating pixels, or made smaller by averaging them."""
    if (height, width) == picture.shape[:2]:
        return picture
    if height > picture.shape[0] and width > picture.shape[1]:
        return picture.repeat(height // picture.shape[0], 0).repeat(width // picture.shape[1], 1)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
