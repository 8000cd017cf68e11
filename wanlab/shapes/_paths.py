"""Naming a motion from the path, the area and the turning of an object over the frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Array = np.ndarray

# Lengths below are in shares of the picture's side: a shape is about 0.4 wide, a translation 0.5 long.
_STILL, _MOVED = 0.07, 0.16
_MAX_STEP = 0.125  # in one frame; the fastest motion of the world takes 0.065
_MAX_GROWTH_STEP = np.log(1.6)
_GROWN, _SAME_SIZE = np.log(1.9), np.log(1.5)
_TURNED, _UPRIGHT = np.deg2rad(60), np.deg2rad(30)


@dataclass(frozen=True)
class Track:
    """One object over the frames in which it is seen; each (T,) unless said otherwise."""

    frame: Array
    """Frame numbers, ascending."""
    x: Array
    """Shares of the picture's width; y of its height, downwards."""
    y: Array
    log_area: Array
    """NaN where the object is cut by the edge of the picture."""
    angle: Array
    """(N,) radians, unwrapped, over the frames that show it whole."""


def _smooth(values: Array) -> Array:
    """Median of 3, then mean of 3."""
    padded = np.pad(values, 1, mode="edge")
    middle = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    return np.convolve(np.pad(middle, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")


def _legs(values: Array, min_length: float) -> list[float]:
    """Signed lengths of the monotone legs of a path, where turning back by less than `min_length` is no turn."""
    legs: list[float] = []
    start = extreme = values[0]
    for value in values[1:]:
        forward = np.sign(extreme - start)
        if forward == 0 or (value - extreme) * forward >= 0:
            extreme = value
        elif abs(value - extreme) >= min_length:
            legs.append(extreme - start)
            start, extreme = extreme, value
    return [*legs, extreme - start]


def _is_torn(track: Track) -> bool:
    """True where the object jumps or changes its size at once, as no motion of this world does."""
    gap = np.diff(track.frame)
    pace = max(1.0, 32 / (track.frame[-1] - track.frame[0]))  # short clips show the same motion in fewer frames
    jump = np.hypot(np.diff(track.x), np.diff(track.y)) > _MAX_STEP * pace * gap
    seen = np.isfinite(track.log_area)
    leap = np.abs(np.diff(track.log_area[seen])) > _MAX_GROWTH_STEP * pace * np.diff(track.frame[seen])
    return bool(jump.any() or leap.any())


def _winding(x: Array, y: Array) -> tuple[float, float]:
    """Turns (in circles, signed) around the middle of the path's box, and how near the path comes to it, in radii."""
    dx, dy = x - (x.min() + x.max()) / 2, y - (y.min() + y.max()) / 2
    angle = np.unwrap(np.arctan2(dy, dx))
    radius = np.hypot(dx, dy)
    return float((angle[-1] - angle[0]) / (2 * np.pi)), float(radius.min() / radius.max())


def _goes_on(values: Array) -> bool:
    """True where each third of the frames has a real part in the way from the first value to the last."""
    marks = values[np.linspace(0, len(values) - 1, 4).round().astype(int)]
    return bool((np.diff(marks) / (values[-1] - values[0]) > 0.08).all())


def _translation(x: Array, y: Array) -> str | None:
    net = np.array([x[-1] - x[0], y[-1] - y[0]])
    axis = int(np.abs(net).argmax())
    along, across = (x, y) if axis == 0 else (y, x)
    way = abs(float(net[axis]))
    is_straight = np.ptp(across) <= 0.3 * way and np.ptp(along) <= 1.12 * way
    steps = np.diff(along) * np.sign(net[axis])
    if way < _MOVED or not is_straight or -steps[steps < 0].sum() > 0.15 * way:
        return None
    if steps.max() > 0.3 * way or not _goes_on(along):
        return None
    return (("moves left", "moves right"), ("moves up", "moves down"))[axis][int(net[axis] > 0)]


def _bounces(x: Array, y: Array) -> bool:
    """Up and down along one line, with the floor touched on the way: a fall followed by a rise."""
    height = float(np.ptp(y))
    if height < _MOVED or np.ptp(x) > 0.35 * height:
        return False
    legs = [leg for leg in _legs(y, 0.2 * height) if abs(leg) >= 0.5 * height]
    return any(fall > 0 > rise for fall, rise in pairwise(legs))


def _growth(log_area: Array) -> tuple[str | None, bool]:
    """The word for a clear change of size, and whether the size stays the same."""
    seen = log_area[np.isfinite(log_area)]
    if len(seen) < 6:
        return None, False
    smooth = _smooth(seen)
    net, extent = smooth[-1] - smooth[0], np.ptp(smooth)
    if abs(net) >= _GROWN and extent <= 1.15 * abs(net) and _goes_on(smooth):
        return ("grows" if net > 0 else "shrinks"), False
    return None, bool(extent <= _SAME_SIZE)


def name_motion(track: Track) -> str | None:
    """The one motion that explains path, size and turning together; None where none or several do."""
    if len(track.frame) < 6 or _is_torn(track):
        return None
    x, y = _smooth(track.x), _smooth(track.y)
    extent = max(float(np.ptp(x)), float(np.ptp(y)))
    growth, same_size = _growth(track.log_area)
    angle = _smooth(track.angle)
    turn, turn_path = abs(float(angle[-1] - angle[0])), float(np.abs(np.diff(angle)).sum())
    upright = turn < _UPRIGHT
    if growth and upright and extent <= 2 * _STILL:
        return growth
    if not same_size:
        return None
    if extent <= 2 * _STILL and turn >= _TURNED:  # a triangle may turn about another point than its middle
        return "spins" if turn >= 0.7 * turn_path and _goes_on(angle) else None
    if extent <= _STILL:
        return "stays still" if upright and turn_path < 2 * _TURNED else None
    if not upright:
        return None
    turns, nearest = _winding(x, y)
    if abs(turns) >= 0.75 and nearest >= 0.35 and min(np.ptp(x), np.ptp(y)) >= _MOVED:
        return "circles around"
    if _bounces(x, y):
        return "bounces"
    return _translation(x, y)
