"""A cache's plan as a picture: which forwards compute, before a run or after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wanlab import caches, models
from wanlab.caches.fixed import Fixed
from wanlab.details import in_words
from wanlab.errors import WanlabError, shorten
from wanlab.result import Result
from wanlab.spec import GenerationSpec, Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNDECIDED = -1.0
"""What a step decides only when it runs."""
_AGAIN = "Generate it again from its spec, or give the spec: show_plan(result.spec)"
_COLOURS = {"decided at run time": "#e8c26a", "reused": "#dfe4ea", "computed": "#2f5d8a"}


@dataclass
class Strips:
    """What is drawn: a row for each branch, a column for each step."""

    run: caches.Run
    shares: dict[str, NDArray[np.float64]]
    """Branch -> (num_steps,): share of the blocks that computes, NaN where it does not run, UNDECIDED."""
    signals: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Branch -> (num_steps,): what was held against the threshold, NaN where nothing was."""

    @property
    def speedup(self) -> float:
        """Forwards over the sum of shares, what is undecided reused: at most that if there is any."""
        done = total = 0.0
        for name, row in self.shares.items():
            ran, weight = row[~np.isnan(row)], name.count("+") + 1
            total += weight * len(ran)
            done += weight * float(ran.clip(0).sum())
        return total / done if done else 1.0

    @property
    def is_open(self) -> bool:
        """Whether something is decided only at run time."""
        return any(bool((row == UNDECIDED).any()) for row in self.shares.values())


def show_plan(spec: GenerationSpec | Result, model: Any = None) -> Figure:
    """Steps by branches as strips of computed and reused forwards, noise levels above, the ideal speed-up in the title.

    Of a spec the plan, before anything runs: of a method that decides as it runs, what is certain. Of a result what
    happened, with the signal against the threshold where the method has one. `model` saves looking for the spec's;
    no network is loaded. Raises WanlabError for a cache that does not fit the run.
    """
    strips = plan_strips(spec, model)
    return _draw(strips, spec.spec if isinstance(spec, Result) else spec, isinstance(spec, Result))


def plan_strips(what: GenerationSpec | Result, model: Any = None) -> Strips:
    """What `show_plan` draws, as numbers."""
    if not isinstance(what, GenerationSpec | Result):
        raise WanlabError(f"{shorten(what, 60)} has no plan", remedy="Give a spec or a result")
    spec = what.spec if isinstance(what, Result) else what
    model = model or _model_of(spec)
    run = caches.Run.of(model, spec.resolve(model))
    return _of_result(run, what) if isinstance(what, Result) else _of_spec(run)


def _model_of(spec: GenerationSpec) -> Any:
    """The spec's model, its networks unread; without its weights where they are not here."""
    try:
        return models.load(spec, device="cpu")
    except WanlabError:
        return models.describe(spec)


def _rows(run: caches.Run) -> dict[str, NDArray[np.float64]]:
    """A row for every name that forwards have, 1 where it runs and NaN elsewhere."""
    rows: dict[str, NDArray[np.float64]] = {}
    for step, _, name in run.forwards:
        rows.setdefault(name, np.full(run.num_steps, math.nan))[step] = 1
    return rows


def _of_spec(run: caches.Run) -> Strips:
    rows, cache = _rows(run), caches.prepared(run.model, run.spec)
    if cache is None:
        return Strips(run, rows)
    if (shares := cache.schedule(run)) is not None:
        for (step, _, name), share in zip(run.forwards, shares, strict=True):
            rows[name][step] = share
        return Strips(run, rows)
    planned = (
        {n: cache.options.branch_masks.get(n, cache.options.mask) for n in rows} if isinstance(cache, Fixed) else None
    )
    known = planned or cache.forced(run) or {}
    begins = run.begins if cache.level != "part" else ()  # what single modules gave outlives a change of blocks
    for step, _, name in run.forwards:
        first, certain = (step, name) in begins, known.get(name)
        if not first and not (certain is not None and certain[step]):
            rows[name][step] = UNDECIDED if planned is None else 0
    return Strips(run, rows)


def _of_result(run: caches.Run, result: Result) -> Strips:
    rows, found = _rows(run), result.ran.get("cache")
    if found is None:
        return Strips(run, rows)
    shares = found.get("shares", found.get("hit_map"))  # runs made before there were shares tell the hit map alone
    if shares is None:
        raise WanlabError("The run's record does not say in which steps its cache reused something", remedy=_AGAIN)
    signals = {name: np.full(run.num_steps, math.nan) for name in rows}
    for target, table in ((rows, shares), (signals, found.get("signals", {}))):
        for path, steps in table.items():
            name = path.split("/")[1]
            row = target.setdefault(name, np.full(run.num_steps, math.nan))
            for step, value in steps.items():
                row[int(step)] = value
    return Strips(run, rows, {name: row for name, row in signals.items() if not np.isnan(row).all()})


def _draw(strips: Strips, spec: GenerationSpec, has_run: bool) -> Figure:
    from wanlab.figures import Picture

    num_rows, lower = len(strips.shares), bool(strips.signals)
    heights = [0.35 * num_rows + 0.1, *([1.6] if lower else [])]
    figure = Picture(figsize=(8, 1.7 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    _draw_strips(axes[0], strips)
    if lower:
        _draw_signals(axes[1], strips, spec)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(_title(strips, spec, has_run), fontsize="medium")
    return figure


def _title(strips: Strips, spec: GenerationSpec, has_run: bool) -> str:
    limit = "at most " if strips.is_open else ""
    shown = in_words(_changed(spec.cache.bind())) if spec.cache.method != "none" else ""
    what = f"{spec.model}, {spec.cache.method}" + (f" ({shown})" if shown else "")
    return f"{what}\n{'as it ran' if has_run else 'plan'}: ideal speed-up {limit}{strips.speedup:.2f}x"


def _changed(options: Part) -> dict[str, Any]:
    """The options that say what this run is: numbers and words that are not the method's own, and the threshold."""
    fields = type(options).model_fields
    values = {name: getattr(options, name) for name in fields}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float | str) and (name == "threshold" or value != fields[name].default)
    }


def _draw_strips(axes: Axes, strips: Strips) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Patch

    run, rows = strips.run, np.stack(list(strips.shares.values()))
    colours = LinearSegmentedColormap.from_list("share", [_COLOURS["reused"], _COLOURS["computed"]])
    colours = colours.with_extremes(under=_COLOURS["decided at run time"], bad="white")
    axes.imshow(rows, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(rows)), list(strips.shares))
    axes.set_xticks(np.arange(run.num_steps + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    shown = np.unique(np.linspace(0, run.num_steps - 1, min(run.num_steps, 9)).round().astype(int))
    levels = axes.secondary_xaxis("top")
    levels.set_xticks(shown, [f"{run.sigmas[i]:.2f}" for i in shown])
    second = "" if run.split_step is None else f"; {run.experts[-1]} from step {run.split_step}"
    levels.set_xlabel(f"noise level{second}")
    if run.split_step is not None:
        axes.axvline(run.split_step - 0.5, color="black", linewidth=1.5)
    present = {"reused": (rows == 0).any(), "computed": (rows > 0).any(), "decided at run time": strips.is_open}
    patches = [Patch(color=_COLOURS[name], label=name) for name, there in present.items() if there]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")


def _draw_signals(axes: Axes, strips: Strips, spec: GenerationSpec) -> None:
    for name, row in strips.signals.items():
        axes.plot(row, "o-", markersize=3, linewidth=1, label=name)
    threshold = getattr(spec.cache.bind(), "threshold", None)
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set_ylabel("signal")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
