"""Results next to each other: which settings differ, how far apart the pictures are, one video that shows all."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wanlab import metrics
from wanlab.errors import WanlabError, shorten
from wanlab.result import Result, player

_COLUMNS = 4  # clips in a row of the composited video
_STRIP = 18  # pixels of the label above a clip
_GAP = 4


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` returns: `.rows`, `.labels`, `.frames`; shows itself in a notebook as one video and one table.

    The first result is the one the others are measured against. Nothing in the display needs JavaScript, so it survives
    saving, mailing and reopening the notebook.
    """

    results: tuple[Result, ...]

    @cached_property
    def labels(self) -> list[str]:
        """For each result, the settings in which it differs from the first; the first shows its own values of them."""
        diffs = [self.results[0].spec.diff(r.spec) for r in self.results]
        names = sorted({name for diff in diffs for name in diff})
        first = {name: diff[name][0] for diff in diffs for name in diff}
        own = [{name: diff[name][1] if name in diff else first[name] for name in names} for diff in diffs]
        return [", ".join(f"{name}={shorten(v, 40)}" for name, v in values.items()) or "same spec" for values in own]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict a result: label, spec id, PSNR (clip; mean over frames), SSIM, largest difference, seconds, skipped.

        Distances to the first result are None for the first itself and where the sizes differ.
        """
        return [self._row(i, result) for i, result in enumerate(self.results)]

    def _row(self, index: int, result: Result) -> dict[str, Any]:
        first = self.results[0]
        distances: dict[str, Any] = dict.fromkeys(("psnr", "psnr_frames", "ssim", "max_abs_diff"))
        if index and result.frames.shape == first.frames.shape:
            distances = {
                "psnr": metrics.psnr(first.frames, result.frames),
                "psnr_frames": float(metrics.psnr_per_frame(first.frames, result.frames).mean()),
                "ssim": metrics.ssim(first.frames, result.frames),
                "max_abs_diff": metrics.max_abs_diff(first.frames, result.frames),
            }
        return {
            "label": self.labels[index],
            "spec_id": result.spec.id,
            **distances,
            "flicker": metrics.flicker(result.frames),
            "seconds": result.seconds.get("total"),
            "denoise_seconds": result.seconds.get("denoise"),
            "skipped_forwards": result.skipped_forwards,
        }

    @cached_property
    def frames(self) -> np.ndarray[Any, Any]:
        """(T, H, W, 3) uint8 of all clips in a grid, each under its label; a shorter clip holds its last frame."""
        return composite([r.frames for r in self.results], self.labels)

    def _repr_html_(self) -> str:
        video = player(self.frames, self.results[0].fps, "comparison")
        return f"<div>{video}{_table(self.rows)}</div>"

    def __repr__(self) -> str:
        return f"Comparison({len(self.results)} results: {'; '.join(shorten(label, 60) for label in self.labels)})"


def compare(*results: Result) -> Comparison:
    """Put results side by side; the first is the reference. Raises WanlabError for fewer than two."""
    if len(results) < 2 or not all(isinstance(r, Result) for r in results):
        raise WanlabError(
            f"compare takes two results or more, got {shorten([type(r).__name__ for r in results])}",
            remedy="compare(generate(model, ...), generate(model, ...))",
        )
    return Comparison(tuple(results))


def composite(clips: Sequence[np.ndarray[Any, Any]], labels: Sequence[str]) -> np.ndarray[Any, Any]:
    """Clips of (T, H, W, 3) in rows of up to four, labelled; a cell is as large as the largest clip; even sizes."""
    columns = min(len(clips), _COLUMNS)
    rows = math.ceil(len(clips) / columns)
    height = max(c.shape[1] for c in clips) + _STRIP
    width = max(c.shape[2] for c in clips)
    length = max(len(c) for c in clips)
    size = (rows * (height + _GAP), columns * (width + _GAP))
    canvas = np.full((length, size[0] + size[0] % 2, size[1] + size[1] % 2, 3), 24, np.uint8)
    for i, (clip, label) in enumerate(zip(clips, labels, strict=True)):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        held = clip[np.minimum(np.arange(length), len(clip) - 1)]
        canvas[:, top : top + _STRIP, left : left + width] = _label(label, width)
        canvas[:, top + _STRIP : top + _STRIP + clip.shape[1], left : left + clip.shape[2]] = held
    return canvas


def _label(text: str, width: int) -> np.ndarray[Any, Any]:
    """A strip (18, width, 3) with `text`, cut at the right edge."""
    strip = Image.new("RGB", (width, _STRIP), (24, 24, 24))
    ImageDraw.Draw(strip).text((2, 2), text, fill=(235, 235, 235), font=ImageFont.load_default(11))
    return np.asarray(strip)


_HEADS = {
    "label": "settings",
    "psnr": "PSNR, clip (dB)",
    "psnr_frames": "PSNR, frame mean (dB)",
    "ssim": "SSIM",
    "max_abs_diff": "largest difference",
    "flicker": "flicker",
    "denoise_seconds": "denoise (s)",
    "seconds": "total (s)",
    "skipped_forwards": "skipped forwards",
}
_DIGITS = {"psnr": 2, "psnr_frames": 2, "ssim": 4, "flicker": 2, "denoise_seconds": 2, "seconds": 2}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in _HEADS.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(name, row[name]))}</td>" for name in _HEADS) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if value == math.inf:
        return "equal"
    return f"{value:.{_DIGITS[name]}f}" if name in _DIGITS else str(value)
