"""Results next to each other: which settings differ, how far apart the pictures are, one video that shows all."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wanlab import metrics, video
from wanlab.details import in_words, telling
from wanlab.errors import WanlabError, shorten
from wanlab.inline import enlargement, player
from wanlab.result import Result
from wanlab.study._sheet import sheet

if TYPE_CHECKING:
    import pandas

_COLUMNS = 4  # clips in a row of the composited video
_LINES = 3  # of a label above a clip; the table shows all of it
_LINE = 19  # pixels
_FONT = 15  # pixels
_PAD = 4
_GAP = 4
_DARK, _LIGHT = (24, 24, 24), (235, 235, 235)
_PAGE = 960  # pixels in width of all clips in a page
_WORD = 12  # characters of a word in the table's heads before it may break


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` returns: `.rows`, `.labels`, `.sheet`, `.frames`, `.per_frame`, `.save("x.mp4")`.

    The first result is the one the others are measured against. In a notebook it shows itself as one video and one
    table. Nothing in them needs JavaScript, so they survive saving, mailing and reopening the notebook.
    """

    results: tuple[Result, ...]
    names: tuple[str, ...] = ()
    """Labels that were given; empty makes them of the settings."""

    @cached_property
    def settings(self) -> list[dict[str, Any]]:
        """For each result, its values of the settings in which any differs from the first: dotted name -> value.

        An option that all methods here have at their own default is left out.
        """
        diffs = [self.results[0].spec.diff(r.spec) for r in self.results]
        names = telling({name for diff in diffs for name in diff}, [r.spec for r in self.results])
        first = {name: diff[name][0] for diff in diffs for name in diff}
        return [{name: diff[name][1] if name in diff else first[name] for name in names} for diff in diffs]

    @cached_property
    def labels(self) -> list[str]:
        """For each result, the settings in which it differs from the first; the first shows its own values of them.

        An option that the result's method lacks, or that is empty, is left out. Labels that were given are kept.
        """
        return list(self.names) or [in_words(values) or "same spec" for values in self.settings]

    @cached_property
    def sheet(self) -> pandas.DataFrame:
        """A pandas DataFrame, one row a result: settings that differ, distances to the first, seconds, what was saved.

        Computed on first use, which takes a second or more for long clips (VMAF, MS-SSIM); units and meanings are in
        `sheet.attrs`, and so is why a measure has no number, such as a package of `wanlab[metrics]` that is missing.
        """
        return sheet(self.results, self.labels, self.settings, self.rows)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict a result: label, spec id, PSNR (clip; mean over frames), SSIM, largest difference, seconds, skipped.

        Distances to the first result are None for the first itself and where the sizes differ.
        """
        return [self._row(i, result) for i, result in enumerate(self.results)]

    def _row(self, index: int, result: Result) -> dict[str, Any]:
        distances: dict[str, Any] = dict.fromkeys(("psnr", "psnr_frames", "ssim", "max_abs_diff"))
        if (found := self.per_frame[index]) is not None:
            distances = {
                "psnr": found.clip_psnr,
                "psnr_frames": float(found.finite_psnr.mean()),
                "ssim": metrics.ssim(self.results[0].frames, result.frames),
                "max_abs_diff": int(found.max_abs_diff.max()),
            }
        return {
            "label": self.labels[index],
            "spec_id": result.spec.id,
            **distances,
            "flicker": metrics.flicker(result.frames),
            "seconds": result.seconds.get("total"),
            "denoise_seconds": result.seconds.get("denoise"),
            "skipped_forwards": (result.ran.get("cache") or {}).get("reused"),
        }

    @cached_property
    def frames(self) -> np.ndarray[Any, Any]:
        """(T, H, W, 3) uint8 of all clips in a grid, each under its label; a shorter clip holds its last frame."""
        return composite([r.frames for r in self.results], self.labels)

    @cached_property
    def per_frame(self) -> list[metrics.FrameDistances | None]:
        """For each result, PSNR and differences to the first, frame by frame; None as in `rows`."""
        first = self.results[0]
        return [
            metrics.frame_distances(first.frames, r.frames) if i and r.frames.shape == first.frames.shape else None
            for i, r in enumerate(self.results)
        ]

    @property
    def fps(self) -> float:
        """Frames per second of the first result; all are shown at it, frame beside frame."""
        return self.results[0].fps

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all clips with their labels as one video, "x.mp4", or images as one "x.png"; complete or not at all.

        Raises WanlabError for another ending, for clips as "x.png", for a full disk and where it cannot be written.
        """
        if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
            raise WanlabError(f"{shorten(path)} is no path", remedy='Give a file, such as "side_by_side.mp4".')
        path = Path(path)
        if path.suffix == ".png" and len(self.frames) == 1:
            return video.write_image(path, self.frames[0])
        if path.suffix != ".mp4":
            choices = [".mp4", ".png"] if len(self.frames) == 1 else [".mp4"]
            raise WanlabError(f"Cannot save a comparison of this length as {path.name!r}", choices=choices)
        return video.write_video(path, self.frames, self.fps)

    def _video_html(self) -> str:
        """The clips as one video for a page's width: large ones are made smaller before labels are written on them."""
        columns = min(len(self.results), _COLUMNS)
        width, height = (max(r.frames.shape[axis] for r in self.results) for axis in (2, 1))
        factor = min(_PAGE / columns / width, _PAGE / columns / height)
        if factor >= 1:
            return player(self.frames, self.fps, "comparison")
        clips = [_smaller(r.frames, factor) for r in self.results]
        return player(composite(clips, self.labels), self.fps, "comparison")

    def _table_html(self) -> str:
        return _table(self.rows)

    def _repr_html_(self) -> str:
        return f"<div>{self._video_html()}{self._table_html()}</div>"

    def __repr__(self) -> str:
        return f"Comparison({len(self.results)} results: {'; '.join(shorten(label, 60) for label in self.labels)})"


def compare(*results: Result, labels: Sequence[str] | None = None) -> Comparison:
    """Put results side by side; the first is the reference.

    labels: one a result, where specs do not tell what differs, such as an edit; by default the settings that differ.
    Raises WanlabError for fewer than two results, and for labels of another number.
    """
    if len(results) < 2 or not all(isinstance(r, Result) for r in results):
        raise WanlabError(
            f"compare takes two results or more, got {shorten([type(r).__name__ for r in results])}",
            remedy="compare(generate(model, ...), generate(model, ...))",
        )
    names = () if labels is None else tuple(labels)
    if labels is not None and (isinstance(labels, str) or len(names) != len(results) or not all(names)):
        raise WanlabError(f"labels = {shorten(labels)} for {len(results)} results", remedy="Give one text a result")
    return Comparison(tuple(results), names)


def composite(clips: Sequence[np.ndarray[Any, Any]], labels: Sequence[str]) -> np.ndarray[Any, Any]:
    """Clips of (T, H, W, 3) in rows of up to four, labelled; a cell is as large as the largest clip; even sizes.

    Small clips are enlarged a whole number of times, all by the same, so that their labels fit and sizes compare.
    """
    times = enlargement(max(c.shape[1] for c in clips), max(c.shape[2] for c in clips))
    width = max(c.shape[2] for c in clips) * times
    strips = _strips(labels, width)
    top = strips[0].shape[0]
    height = max(c.shape[1] for c in clips) * times + top
    columns = min(len(clips), _COLUMNS)
    length = max(len(c) for c in clips)
    size = (math.ceil(len(clips) / columns) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    canvas = np.full((length, size[0] + size[0] % 2, size[1] + size[1] % 2, 3), _DARK, np.uint8)
    for i, (clip, strip) in enumerate(zip(clips, strips, strict=True)):
        row, column = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        held = clip[np.minimum(np.arange(length), len(clip) - 1)].repeat(times, 1).repeat(times, 2)
        canvas[:, row : row + top, column : column + width] = strip
        canvas[:, row + top : row + top + held.shape[1], column : column + held.shape[2]] = held
    return canvas


def _smaller(clip: np.ndarray[Any, Any], factor: float) -> np.ndarray[Any, Any]:
    size = (max(1, round(clip.shape[2] * factor)), max(1, round(clip.shape[1] * factor)))
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in clip])


def _strips(labels: Sequence[str], width: int) -> list[np.ndarray[Any, Any]]:
    """A strip (height, width, 3) for each label, all as high as the longest label needs, at most three lines."""
    font = ImageFont.load_default(_FONT)
    wrapped = [_wrap(label, width - 2 * _PAD, font) for label in labels]
    height = max(map(len, wrapped)) * _LINE + _PAD
    strips = []
    for lines in wrapped:
        strip = Image.new("RGB", (width, height), _DARK)
        draw = ImageDraw.Draw(strip)
        for i, line in enumerate(lines):
            draw.text((_PAD, _PAD // 2 + i * _LINE), line, fill=_LIGHT, font=font)
        strips.append(np.asarray(strip))
    return strips


def _wrap(text: str, width: int, font: Any) -> list[str]:
    """`text` in at most three lines of at most `width` pixels, broken at spaces where it can be; "…" where cut."""
    lines, rest = [], text.strip()
    while rest and len(lines) < _LINES:
        fits = next((n for n in range(1, len(rest) + 1) if font.getlength(rest[:n]) > width), len(rest) + 1) - 1
        if fits < len(rest):
            space = rest.rfind(" ", 0, fits + 1)
            fits = space if space > 0 else max(fits, 1)
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[-1] = f"{last}…"
    return lines or [""]


_LEFT = ' style="text-align:left;min-width:10em"'
_HEAD = ' style="vertical-align:bottom"'


@dataclass(frozen=True)
class _Measure:
    """A line of the table: its name in `rows`, its title, unit, how it is written and what it means."""

    name: str
    title: str
    form: str
    unit: str
    meaning: str


_MEASURES = (
    _Measure("psnr", "PSNR, clip", ".1f", "dB", "to the first clip, one error over all frames; higher is closer"),
    _Measure("psnr_frames", "PSNR, frame mean", ".1f", "dB", "the same, frame by frame, then averaged"),
    _Measure("ssim", "SSIM", ".3f", "", "structural similarity to the first clip; 1 is equal"),
    _Measure("max_abs_diff", "largest difference", "d", "of 255", "of any pixel from the first clip"),
    _Measure("flicker", "flicker", ".2f", "of 255", "mean change from frame to frame, motion included; 0 is still"),
    _Measure("denoise_seconds", "denoising", ".2f", "s", "time in the network and the sampler"),
    _Measure("seconds", "total", ".2f", "s", "all stages; the first use of a model includes loading it"),
    _Measure("skipped_forwards", "skipped forwards", "d", "", "of the network, left out by a cache"),
)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """A column a result, a line a measure; lines that no result has a value for are left out."""
    heads = "".join(f"<th{_HEAD}>{_breakable(row['label'])}</th>" for row in rows)
    body = "".join(_line(line, rows) for line in _MEASURES if any(row[line.name] is not None for row in rows))
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _line(line: _Measure, rows: Sequence[dict[str, Any]]) -> str:
    cells = "".join(f"<td>{html.escape(_cell(line, row[line.name]))}</td>" for row in rows)
    return f"<tr><th{_LEFT}>{html.escape(line.title)}<br>{_small(line.meaning)}</th>{cells}</tr>"


def _breakable(text: str) -> str:
    """`text` as HTML that may go on in the next line after "_" and within long words, such as a cache's mask."""
    pieces = re.findall(rf"[^\s_]{{1,{_WORD}}}_?|_|\s+", text)
    return "".join(html.escape(p) + "<wbr>" * (p.endswith("_") or len(p) == _WORD) for p in pieces)


def _small(text: str) -> str:
    return f'<small style="font-weight:normal;opacity:0.8">{html.escape(text)}</small>'


def _cell(line: _Measure, value: Any) -> str:
    if value is None:
        return "–"
    is_equal = value == math.inf or (line.name == "psnr_frames" and value >= metrics.EQUAL_FRAME)
    return "equal" if is_equal else f"{value:{line.form}} {line.unit}".rstrip()
