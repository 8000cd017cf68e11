"""The trade-off between two columns as a picture (SVG) that needs no script: points, the front, a link to each run."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from wanlab.inline import ellipsis
from wanlab.reports._columns import DISTANCES, Column, Entry, is_number

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 68, 16, 26, 50
COLOURS = 8
_COST = ("denoise_seconds", "forwards", "ideal_speedup", "seconds", "peak_mb")
_GAIN = (*(c.name for c in DISTANCES), "ideal_speedup")
_TICKS = 6
_FINITE = 0.9  # of the frame, where something is infinite


@dataclass(frozen=True)
class Plot:
    """Which columns a plot has; `colour` may be None."""

    x: Column
    y: Column
    colour: Column | None


def choose(columns: Sequence[Column], entries: Sequence[Entry]) -> Plot | None:
    """Cost against quality where there are such columns; None where no two columns of numbers vary."""
    axes = {c.name: c for c in columns if c.is_number and len({e.values.get(c.name) for e in entries} - {None}) > 1}
    measured = [name for name, c in axes.items() if not c.is_setting]
    x = next((name for name in (*_COST, *measured, *axes) if name in axes), None)
    own = [name for name in measured if name not in (*_COST, "skipped_forwards", "state_mb", *_GAIN)]
    own.sort(key=lambda name: axes[name].better != "high" or "speedup" in name)  # quality first, else as it was logged
    y = next((name for name in (*_GAIN[:-1], *own, *_GAIN[-1:], *measured, *axes) if name in axes and name != x), None)
    if x is None or y is None:
        return None
    plot = Plot(axes[x], axes[y], next((c for c in columns if _colours(c, entries)), None))
    return plot if len(_points(plot, entries)) > 1 else None


def front(points: Sequence[tuple[float, float]], low_x: bool, low_y: bool) -> list[int]:
    """Indices of the points that no other one beats in both, from the best x on; of equal points the first.

    >>> front([(1, 10), (2, 20), (3, 15), (3, 30)], low_x=True, low_y=False)
    [0, 1, 3]
    """
    keys = [(x if low_x else -x, y if low_y else -y) for x, y in points]
    best, found = math.inf, []
    for i in sorted(range(len(keys)), key=lambda i: keys[i]):
        if keys[i][1] < best or not found:
            best = keys[i][1]
            found.append(i)
    return found


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about six; steps are 1, 2 or 5 times a power of ten."""
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def svg(plot: Plot, entries: Sequence[Entry]) -> str:
    """The picture; each point links to "#run-<number>" and says on hover what it is."""
    points = _points(plot, entries)
    frame = _Frame.around([(x, y) for _, x, y in points])
    on_front = front([(x, y) for _, x, y in points], plot.x.better == "low", plot.y.better == "low")
    line = " ".join(f"{frame.x(points[i][1]):.1f},{frame.y(points[i][2]):.1f}" for i in on_front)
    marks = "".join(_mark(plot, frame, points[i], i in on_front, palette(plot, entries)) for i in range(len(points)))
    name = html.escape(f"{plot.y.head} against {plot.x.head}, {len(points)} runs")
    return (
        f'<svg id="plot-svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{_axes(plot, frame)}'
        f'<polyline class="front" points="{line}"/>{marks}</svg>'
    )


def palette(plot: Plot, entries: Sequence[Entry]) -> dict[str, int]:
    """The number of the colour of each value, as text, in the order of appearance."""
    if plot.colour is None:
        return {}
    found = dict.fromkeys(plot.colour.text(e.values.get(plot.colour.name)) for e in entries)
    return {text: i % COLOURS for i, text in enumerate(found)}


def _colours(column: Column, entries: Sequence[Entry]) -> bool:
    texts = {column.text(e.values.get(column.name)) for e in entries}
    return column.is_setting and column.name not in ("seed", "prompt") and 1 < len(texts) <= COLOURS


def _points(plot: Plot, entries: Sequence[Entry]) -> list[tuple[Entry, float, float]]:
    pairs = [(e, e.values.get(plot.x.name), e.values.get(plot.y.name)) for e in entries]
    return [(e, float(x), float(y)) for e, x, y in pairs if is_number(x) and is_number(y)]


@dataclass(frozen=True)
class _Scale:
    """From numbers to a share of the frame; what is infinite lies on its edge, apart from the others."""

    low: float
    high: float
    has_infinite: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> _Scale:
        """The range of the finite values with some room at both ends; that of none is around 0."""
        finite = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(finite), max(finite)
        room = (high - low) * 0.07 or abs(high) * 0.1 or 1.0
        return cls(max(low - room, 0.0) if low >= 0 else low - room, high + room, math.inf in values)

    def share(self, value: float) -> float:
        if value == math.inf:
            return 1.0
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) * (_FINITE if self.has_infinite else 1.0)

    def marks(self) -> list[tuple[float, str]]:
        """Values with a line across the frame, and what is written beside it."""
        found = [(value, f"{value:.6g}") for value in ticks(self.low, self.high)]
        return found + ([(math.inf, "∞")] if self.has_infinite else [])


@dataclass(frozen=True)
class _Frame:
    """From numbers to pixels."""

    across: _Scale
    up: _Scale

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> _Frame:
        return cls(_Scale.of([x for x, _ in points]), _Scale.of([y for _, y in points]))

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * self.across.share(value)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.up.share(value)


def _axes(plot: Plot, frame: _Frame) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, text in frame.across.marks():
        x = f"{frame.x(value):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
    for value, text in frame.up.marks():
        y = f"{frame.y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{frame.y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    x_head, y_head = _heading(plot.x), _heading(plot.y)
    parts.append(f'<text class="axis" x="{right}" y="{HEIGHT - 8}" text-anchor="end">{x_head}</text>')
    parts.append(f'<text class="axis" x="{LEFT}" y="15">{y_head}</text>')
    return "".join(parts)


def _heading(column: Column) -> str:
    wish = {"low": " · less is better", "high": " · more is better", "": ""}[column.better]
    return html.escape(ellipsis(column.head, 60) + wish)


def _mark(plot: Plot, frame: _Frame, point: tuple[Entry, float, float], is_best: bool, colours: dict[str, int]) -> str:
    entry, x, y = point
    colour = colours.get(plot.colour.text(entry.values.get(plot.colour.name)), 0) if plot.colour else 0
    says = (
        f"{entry.label}: {plot.x.title} {plot.x.text(x)} {plot.x.unit}, {plot.y.title} {plot.y.text(y)} {plot.y.unit}"
    )
    kind = "point best" if is_best else "point"
    return (
        f'<a href="#run-{entry.number}" data-row="{entry.number - 1}"><circle class="{kind} c{colour}" '
        f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{6 if is_best else 5}"/>'
        f"<title>{html.escape(says.strip())}</title></a>"
    )
