"""What a recorder leaves: numbers by place, step and branch, as arrays, data frames, heat maps and videos."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.probe._keep import Value, as_array
from wanlab.probe._measure import labels
from wanlab.probe._names import Where, calls, missing
from wanlab.probe._words import word as positions_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from wanlab.probe._show import Clip

_MOST = 20_000  # values that wait on the device before they are brought to the CPU in the middle of a run


@dataclass(frozen=True)
class Series:
    """What has one value a step: a quantity of one stream at one place, in one guidance branch of one run."""

    where: Where
    quantity: str
    stream: str
    branch: str = "cond"
    window: int | None = None
    run: int = 0

    @property
    def name(self) -> str:
        """As `names` lists it, with its expert."""
        return f"{self.where.expert}.{self.where.site}.{self.quantity}"


@dataclass(frozen=True)
class Pending:
    """Numbers of one call on the device, and what they become on the CPU."""

    series: Series
    """Of each of them, but for its quantity and branch."""
    branches: list[str]
    step: int
    numbers: Tensor
    finish: Callable[[np.ndarray], dict[str, np.ndarray]]
    """Values by quantity, (branches, ...)."""


class Named(np.ndarray):
    """An array that knows its axes: `axes` maps each axis's name, in order, to the labels along it.

    What is cut from it has no axes, and what is computed from it is a plain array.
    """

    axes: dict[str, tuple[Any, ...]]

    def __array_finalize__(self, source: object) -> None:
        self.axes = {}

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    @classmethod
    def of(cls, values: np.ndarray, axes: dict[str, tuple[Any, ...]]) -> Named:
        """`values` with axes; their labels are as many as the values along them."""
        assert values.shape == tuple(map(len, axes.values())), (values.shape, axes)
        named = values.view(cls)
        named.axes = axes
        return named

    def __repr__(self) -> str:
        if not self.axes:
            return repr(np.asarray(self))
        return f"Named({' x '.join(f'{len(v)} {k}' for k, v in self.axes.items())}, {self.dtype})"


@dataclass(eq=False)
class Trace:
    """What was recorded, readable while the recording goes on.

    `names` is what was asked for. A name here is a pattern as in `record`: one that several sites, branches, experts,
    windows or runs match gives all of them. Numbers are float32; missing ones (a forward that a cache skipped, the
    first of a run for what compares with the one before) are NaN.
    """

    model: str
    experts: tuple[str, ...]
    recorded: tuple[tuple[Where, tuple[str, ...]], ...]
    pieces: tuple[str, ...] = ()
    """The prompt's tokens, if the recorder was told the prompt."""
    tokens: tuple[int, ...] = ()
    """Positions of the text tokens whose maps were kept; empty is all."""
    stride: tuple[int, int] = (1, 1)
    """Frames of a latent frame, and pixels of a token's side."""
    fps: float = 16.0
    """Of the model's usual videos."""
    stopped: str = ""
    """Why tensors of the end are missing; empty if none are."""
    state_bytes: int = 0
    """The most that was held on the device for the next step."""
    steps: set[int] = field(default_factory=set)
    """Those that ran, whether or not anything was recorded in them."""
    data: dict[Series, dict[int, Value]] = field(default_factory=dict)
    """Values by step."""
    _pending: list[Pending] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, model: Any, recorded: Iterable[tuple[Where, list[str]]], prompt: str | None) -> Trace:
        """An empty trace of a model."""
        return cls(
            model.id,
            tuple(model.experts_present),
            tuple((where, tuple(wanted)) for where, wanted in recorded),
            pieces=() if prompt is None else tuple(model.pieces(prompt)),
            stride=(model.geometry.frame_stride, model.geometry.pixel_multiple),
            fps=float(model.default_spec.size.fps or 16.0),
        )

    @property
    def names(self) -> list[str]:
        """What was asked for, site by site; of several experts each name starts with its own."""
        several = len(self.experts) > 1
        return [
            f"{where.expert}.{where.site}.{q}" if several else f"{where.site}.{q}"
            for where, wanted in self.recorded
            for q in wanted
        ]

    # Filling it

    def add(self, pending: Pending) -> None:
        """Take numbers that may still be computed on the device; nothing waits for them here."""
        with self._lock:
            self._pending.append(pending)
            is_full = len(self._pending) >= _MOST
        if is_full:
            self.flush()

    def put(self, series: Series, step: int, value: Value) -> None:
        """Take a value that is on the CPU or on disk."""
        self.data.setdefault(series, {})[step] = value

    def flush(self) -> None:
        """Bring the numbers to the CPU, in one copy; waits for the device."""
        with self._lock:
            pending, self._pending = self._pending, []
            if not pending:
                return
            flat = torch.cat([one.numbers.flatten() for one in pending]).cpu().numpy()
            start = 0
            for one in pending:
                stop = start + one.numbers.numel()
                found = one.finish(flat[start:stop].reshape(one.numbers.shape))
                start = stop
                for quantity, values in found.items():
                    for branch, value in zip(one.branches, parts(values), strict=True):
                        series = replace(one.series, quantity=quantity, branch=branch)
                        self.data.setdefault(series, {})[one.step] = value

    # Reading it

    def matching(self, pattern: str) -> list[Series]:
        """The series that a pattern means, in the order of the blocks. Raises WanlabError where there are none."""
        self.flush()
        order = {where: i for i, (where, _) in enumerate(self.recorded)}
        found = sorted(
            (series for series in self.data if calls(series.where, series.quantity, pattern)),
            key=lambda s: (s.run, -1 if s.window is None else s.window, order[s.where]),
        )
        if found:
            return found
        if any(calls(where, q, pattern) for where, wanted in self.recorded for q in wanted):
            raise WanlabError(
                f"Nothing was recorded of {pattern!r} yet",
                remedy=self.stopped or "Generate while recording; change, cosine and ratio start at the second step",
            )
        forms = {f"{form}.{q}" for where, wanted in self.recorded for form in where.forms for q in wanted}
        raise missing(pattern, forms, "name in this trace")

    def array(self, pattern: str) -> Named:
        """Everything that a pattern means as one array, with NaN where nothing was recorded.

        Axes: step, block, branch, then the quantity's own (norm, head, distance, token, ...). Where there are several:
        run, expert and window before them, stream after. Raises WanlabError for patterns of several quantities and
        for values of different shapes.
        """
        series = self.matching(pattern)
        if len(quantities := {s.quantity for s in series}) > 1:
            raise WanlabError(f"{pattern!r} means several quantities", choices=sorted(quantities))
        first = series[0]
        values = {(s, step): as_array(value) for s in series for step, value in self.data[s].items()}
        if len(shapes := {value.shape for value in values.values()}) > 1:
            raise WanlabError(f"Values of {pattern!r} have different shapes: {sorted(shapes)}", remedy="Name fewer")
        outer = self._axes(series)
        shape = next(iter(shapes))
        inner = labels(first.quantity, shape, first.where.role, self.tokens)
        filled = np.full((*map(len, outer.values()), *shape), np.nan, dtype=np.float32)
        places = {axis: {label: i for i, label in enumerate(found)} for axis, found in outer.items()}
        for (one, step), value in values.items():
            filled[tuple(places[axis][coordinate(one, step, axis)] for axis in outer)] = value
        return Named.of(filled, {**outer, **inner})

    def _axes(self, series: Sequence[Series]) -> dict[str, tuple[Any, ...]]:
        """Labels along step, block and branch, and along whatever else differs."""
        found: dict[str, tuple[Any, ...]] = {}
        for axis in ("run", "expert", "window", "step", "block", "branch", "stream"):
            if axis == "step":  # those of the whole trace, so that arrays of several quantities fit together
                found[axis] = tuple(sorted(self.steps))
                continue
            seen = tuple(dict.fromkeys(coordinate(s, 0, axis) for s in series))
            if axis in ("block", "branch") or len(seen) > 1:
                found[axis] = seen
        return found

    @property
    def frame(self) -> DataFrame:
        """All numbers as one table, a row each: what names the series, step, `label` within the quantity, `value`.

        Kept tensors and maps are left out.
        """
        import pandas

        self.flush()
        rows = []
        for series, steps in self.data.items():
            where, window = series.where, -1 if series.window is None else series.window
            start = (series.run, where.expert, window, where.site, where.role, series.quantity)
            for step, value in steps.items():
                if not isinstance(value, np.ndarray):
                    continue
                axes = labels(series.quantity, value.shape, where.role, self.tokens)
                for label, number in zip(next(iter(axes.values()), ("",)), value.reshape(-1), strict=True):
                    rows.append((*start, series.stream, series.branch, step, label, float(number)))
        columns = "run expert window site role quantity stream branch step label value".split()
        return pandas.DataFrame(rows, columns=columns)

    def heat_map(self, pattern: str, branch: str | None = None, label: Any = None) -> Figure:
        """A picture of blocks against steps, one for each branch (or of `branch`), of the last run.

        Of a quantity with several numbers: that of `label` (such as "rms" or a head), else the first norm, or the mean
        over heads, distances and tokens.
        """
        from wanlab.probe._show import heat_map

        return heat_map(self, pattern, branch, label)

    def token_video(
        self,
        site: str,
        *,
        word: str | None = None,
        token: int | None = None,
        steps: Collection[int] | None = None,
        branch: str = "cond",
        over: np.ndarray | None = None,
    ) -> Clip:
        """Where a text token is looked from: frames (T, H, W, 3) uint8 that play in a notebook.

        `site` is an attention whose text_map was recorded, e.g. "blocks.5.cross"; a pattern is their mean. Choose one
        of `word` ("red": the sum over its tokens; the recorder must have been told the prompt) and `token` (a
        position). `steps`: mean of these, default all. `over`: frames of the same size to lay the map over. Bright is
        the most of the clip, dark the least. Raises WanlabError for what was not recorded.
        """
        from wanlab.probe._show import token_video

        if (token is None) == (word is None):
            raise WanlabError("One token or one word has a video", remedy="Give token=3 or word='red'")
        chosen = (token,) if token is not None else positions_of(str(word), self.pieces)
        frames = token_video(self, site, chosen, steps, branch, over)
        frames.title = f"{f'token {token}' if word is None else word}, {site}"
        return frames

    def save(self, folder: Path | str) -> Path:
        """Write trace.json (schema 1), values.safetensors and the kept tensors; `open_trace` reads them."""
        from wanlab.probe._files import save

        return save(self, Path(folder))

    def __repr__(self) -> str:
        self.flush()
        places = len({series.where for series in self.data})
        stopped = f", {self.stopped}" if self.stopped else ""
        return f"Trace({self.model!r}, {len(self.names)} names, {places} places, {len(self.steps)} steps{stopped})"


def parts(values: np.ndarray) -> list[np.ndarray]:
    """What lies along the first axis; arrays without axes where iterating would give numbers."""
    return [values[i, ...] for i in range(len(values))]


def coordinate(series: Series, step: int, axis: str) -> Any:
    """Where a value lies along an axis."""
    if axis == "step":
        return step
    return {
        "run": series.run,
        "expert": series.where.expert,
        "window": series.window,
        "block": series.where.site,
        "branch": series.branch,
        "stream": series.stream,
    }[axis]
