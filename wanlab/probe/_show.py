"""Pictures of a trace: heat maps of blocks against steps, videos of what a token is looked at from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from wanlab import inline
from wanlab.errors import WanlabError, unknown
from wanlab.probe._keep import as_array
from wanlab.probe._measure import NORMS, labels
from wanlab.probe._trace import Series, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCH = 0.22  # of a row
_COLOURS = "inferno"


class Clip(np.ndarray):
    """Frames (T, H, W, 3) uint8 that a notebook plays."""

    fps: float
    title: str

    def __array_finalize__(self, source: object) -> None:
        self.fps = getattr(source, "fps", 16.0)
        self.title = getattr(source, "title", "")

    def _repr_html_(self) -> str | None:
        is_clip = self.ndim == 4 and self.shape[-1] == 3 and self.dtype == np.uint8
        return inline.player(np.asarray(self), self.fps, self.title) if is_clip else None

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"Clip({self.title!r}, {self.shape})" if self.title else super().__repr__()


def heat_map(trace: Trace, pattern: str, branch: str | None, label: Any) -> Figure:
    """See `Trace.heat_map`."""
    from wanlab.figures import Picture

    found = trace.matching(pattern)
    if len(quantities := {s.quantity for s in found}) > 1:
        raise WanlabError(f"{pattern!r} means several quantities", choices=sorted(quantities))
    last = max(s.run for s in found)
    found = [s for s in found if s.run == last]
    branches = list(dict.fromkeys(s.branch for s in found))
    if branch is not None and branch not in branches:
        raise unknown("branch in this trace", branch, branches)
    shown = branches if branch is None else [branch]
    rows = {s: _row(trace, s, found) for s in found}
    places = list(dict.fromkeys(rows.values()))
    columns = sorted({(-1 if s.window is None else s.window, step) for s in found for step in trace.data[s]})
    figure = Picture(figsize=(4.5 * len(shown) + 1, max(2.0, _INCH * len(places) + 1)), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    pictures = [
        _picture(trace, {s: row for s, row in rows.items() if s.branch == name}, (places, columns), label)
        for name in shown
    ]
    finite = np.concatenate([p[np.isfinite(p)] for p in pictures])
    low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
    for panel, picture, name in zip(panels, pictures, shown, strict=True):
        image = panel.imshow(picture, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.set_xticks(*_ticks([str(step) for _, step in columns]))
    panels[0].set_yticks(*_ticks(places, most=60))
    figure.colorbar(image, ax=panels, label=f"{found[0].quantity}{'' if label is None else f' ({label})'}")
    return figure


def _ticks(names: list[str], most: int = 12) -> tuple[list[int], list[str]]:
    every = -(-len(names) // most)
    return list(range(0, len(names), every)), names[::every]


def _row(trace: Trace, series: Series, found: list[Series]) -> str:
    """The name of a series' row: its site, with expert and stream where there are several."""
    expert = f"{series.where.expert}." if len(trace.experts) > 1 else ""
    stream = f" {series.stream}" if len({s.stream for s in found}) > 1 else ""
    return f"{expert}{series.where.site}{stream}"


def _picture(
    trace: Trace, rows: dict[Series, str], axes: tuple[list[str], list[tuple[int, int]]], label: Any
) -> np.ndarray:
    """Numbers (rows, columns), NaN where nothing was recorded."""
    names, columns = axes
    picture = np.full((len(names), len(columns)), np.nan)
    for series, name in rows.items():
        window = -1 if series.window is None else series.window
        for step, value in trace.data[series].items():
            number = _number(series, as_array(value), trace.tokens, label)
            picture[names.index(name), columns.index((window, step))] = number
    return picture


def _number(series: Series, value: np.ndarray, tokens: tuple[int, ...], label: Any) -> float:
    """One number for a value."""
    axes = labels(series.quantity, value.shape, series.where.role, tokens)
    known = next(iter(axes.values()), ())
    if label is not None:
        if label not in known:
            raise unknown(f"label of {series.quantity}", label, map(str, known))
        return float(value[known.index(label)].mean())
    return float(value[0] if series.quantity in NORMS else value.mean())


def token_video(
    trace: Trace,
    site: str,
    chosen: tuple[int, ...],
    steps: Collection[int] | None,
    branch: str,
    over: np.ndarray | None,
) -> Clip:
    """See `Trace.token_video`; `chosen` are positions of tokens, whose maps are summed."""
    maps = [m for s in trace.matching(f"{site}.text_map") if s.branch == branch for m in _maps(trace, s, chosen, steps)]
    if not maps:
        raise WanlabError(f"No map of {site!r} was kept for branch {branch!r} at these steps", remedy="Choose others")
    frames = _coloured(_enlarged(np.mean(maps, 0), trace.stride), over).view(Clip)
    frames.fps = trace.fps
    return frames


def _maps(trace: Trace, series: Series, chosen: tuple[int, ...], steps: Collection[int] | None) -> list[np.ndarray]:
    """Sums of the chosen tokens' maps (T, H, W), one for each step."""
    found = []
    for step, value in trace.data[series].items():
        if steps is not None and step not in steps:
            continue
        maps = as_array(value)
        known = trace.tokens or tuple(range(len(maps)))
        if wrong := [token for token in chosen if token not in known]:
            raise WanlabError(f"The map of token {wrong[0]} was not kept", choices=known[:40])
        found.append(sum(maps[known.index(token)] for token in chosen))
    return found


def _enlarged(maps: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """Maps (T, H, W) of tokens at the video's size: latent frame 0 is one frame, each later one `stride[0]` of them."""
    num_frames, pixels = stride
    size = (maps.shape[1] * pixels, maps.shape[2] * pixels)
    large = functional.interpolate(torch.from_numpy(maps)[:, None].float(), size=size, mode="bilinear")[:, 0].numpy()
    repeats = [1] + [num_frames] * (len(large) - 1)
    return np.repeat(large, repeats, axis=0)


def _coloured(maps: np.ndarray, over: np.ndarray | None) -> np.ndarray:
    """Maps (T, H, W) as colours, from the least to the most of the clip; half of `over` under them."""
    from matplotlib import colormaps

    spread = float(maps.max() - maps.min())
    unit = (maps - maps.min()) / spread if spread > 0 else np.zeros_like(maps)
    colours = colormaps[_COLOURS](unit)[..., :3]
    if over is not None:
        if not isinstance(over, np.ndarray):
            raise WanlabError(f"over takes frames, got {type(over).__name__}", remedy="Give Result.frames")
        if over.shape != colours.shape:
            raise WanlabError(f"The frames to lay it over are {over.shape}, and the map is {colours.shape}")
        colours = 0.5 * colours + 0.5 * over / 255
    return (colours * 255).round().astype(np.uint8)
