"""What each reuse of a cache cost: the forward that was left out is computed too, from the same latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wanlab import caches
from wanlab.errors import WanlabError, unknown
from wanlab.pipeline import checked, full_spec
from wanlab.sites import Branch, Handle, Stack, StepContext, Streams
from wanlab.spec import GenerationSpec
from wanlab.stages import denoise, encode_conditions, encode_text, held
from wanlab.watch import Interrupts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = np.ndarray[Any, Any]
AGAINST = ("trajectory",)
_NONE = math.nan


@dataclass(frozen=True)
class Forward:
    """One forward of the run; the errors are NaN where everything was computed."""

    step: int
    expert: str
    branch: str
    window: int | None
    share: float
    """Of the blocks' work that was done, 0 to 1."""
    signal: float
    """What the cache held against its threshold; NaN where it has none."""
    l1: float
    """mean |v - true| / mean |true| of the velocity."""
    l2: float
    """|v - true| / |true| of the velocity."""
    cosine: float
    """Between the velocity and the true one."""
    residual: float
    """`l1` of what the blocks added to the tokens that are read after them; NaN where the stack was not entered."""


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """What `counterfactual` returns: `.rows`, `.error`, `.signal`, `.frame`, `.figure()`, and the run's own latents."""

    spec: GenerationSpec
    rows: tuple[Forward, ...]
    """In the order of the run."""
    latents: Tensor
    """(B, C, T, H, W) of the cached run, as `denoise` gives them."""
    report: caches.CacheReport

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """Columns of the arrays."""
        return tuple(dict.fromkeys(row.branch for row in self.rows))

    @property
    def error(self) -> Array:
        """Relative L1 error of the velocity, (steps, branches) float64; NaN where nothing was reused."""
        return self.array("l1")

    @property
    def signal(self) -> Array:
        """The cache's own signal, (steps, branches) float64; NaN where there was none."""
        return self.array("signal")

    def array(self, what: str) -> Array:
        """A column of `rows` as (steps, branches) float64; raises WanlabError for one that is not there."""
        numbers = ("share", "signal", "l1", "l2", "cosine", "residual")
        if what not in numbers:
            raise unknown("measure of a counterfactual", what, numbers)
        found = np.full((1 + max(row.step for row in self.rows), len(self.branches)), math.nan)
        for row in self.rows:
            found[row.step, self.branches.index(row.branch)] = getattr(row, what)
        return found

    @property
    def frame(self) -> DataFrame:
        """`rows` as a table."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    def figure(self) -> Figure:
        """The true error over the steps, and against the cache's signal where it has one."""
        from wanlab.figures import Picture

        figure = Picture(figsize=(9, 3.4), layout="constrained")
        over, against = figure.subplots(1, 2)
        for i, branch in enumerate(self.branches):
            steps, error = np.arange(len(self.error)), self.error[:, i]
            over.plot(steps, error, "o-", label=branch, markersize=4)
            against.plot(self.signal[:, i], error, "o", label=branch, markersize=4)
        over.set(xlabel="step", ylabel="true error of the velocity (relative L1)", title=f"{self.report.method}: reuse")
        against.set(xlabel="the cache's signal", ylabel="true error", title="signal and truth")
        if np.isnan(self.signal).all():
            against.text(0.5, 0.5, "decided without a signal", ha="center", transform=against.transAxes)
        over.legend()
        return figure

    def __repr__(self) -> str:
        worst = max((row.l1 for row in self.rows if not math.isnan(row.l1)), default=0.0)
        return (
            f"Counterfactual({self.report.method}, {self.report.reused} of {len(self.rows)} forwards reused something, "
            f"worst error {worst:.3g})"
        )


def counterfactual(model: Any, spec: GenerationSpec, *, against: str = "trajectory") -> Counterfactual:
    """Run a spec with its cache and measure, at every forward that reused something, what the reuse changed.

    against="trajectory": the truth is the network's own answer to the latents that the cached run is at, so errors do
    not add up from step to step. The run itself is bit-equal to a plain cached one. It costs the forwards that the
    cache saved, in the memory of a run without cache beside the cache's state, and four waits for the device in each.
    What is attached to the model besides runs in those forwards too.
    Raises WanlabError for a spec without a cache, and as `generate` does. Detaches on any way out.
    """
    if against not in AGAINST:
        raise unknown("truth to measure against", against, AGAINST)
    spec = full_spec(model, spec)
    if spec.cache.method == "none":
        raise WanlabError(
            "This spec has no cache, so nothing is reused", remedy='Give one: spec.with_(cache="easycache")'
        )
    checked(model, spec)
    with Interrupts() as interrupts, held(model, spec, interrupts):
        with interrupts.let_through():
            text, conditions = encode_text(model, spec), encode_conditions(model, spec)
        with caches.attach(model, spec) as cache:
            assert cache is not None, "a method other than none"
            recorder = _Recorder(cache)
            with recorder.attach(model), interrupts.let_through():
                latents = denoise(model, spec.with_(cache="none"), text, conditions)
            return Counterfactual(spec, tuple(recorder.rows), latents, cache.report())


class _Recorder:
    """Around the forwards, outside the cache."""

    def __init__(self, cache: caches.Cache) -> None:
        self.rows: list[Forward] = []
        self._cache = cache
        self._residual: dict[str, Tensor] = {}

    def attach(self, model: Any) -> Handle:
        handles: list[Handle] = []
        handle = Handle.join(handles)
        try:
            for stack in model.stacks.values():
                handles.append(stack.site.wrap(self._stack_of(stack), "recorder"))
                handles.append(stack.forward.wrap(self._around_forward, "recorder"))
        except BaseException:
            handle.remove()
            raise
        return handle

    def _stack_of(self, stack: Stack) -> Callable[..., Streams]:
        def around(call: Callable[..., Streams], streams: Streams, **span: Any) -> Streams:
            after = call(streams, **span)
            self._residual = {name: after.tokens[name] - streams.tokens[name] for name in stack.outputs}
            return after

        return around

    def _around_forward(self, call: Callable[..., Tensor], latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        velocity, residual = self._run(call, latents, ctx, branch)
        memory = self._cache.memory(ctx)
        share, errors = memory.shares[ctx.step], {"l1": _NONE, "l2": _NONE, "cosine": _NONE, "residual": _NONE}
        if share < 1:
            with self._cache.paused():
                truth, true_residual = self._run(call, latents, ctx, branch)
            errors = _errors(velocity, truth) | {"residual": _distance(residual, true_residual)}
        signal = memory.signals.get(ctx.step, _NONE)
        self.rows.append(Forward(ctx.step, ctx.expert, ctx.branch, ctx.window, share, signal, **errors))
        return velocity

    def _run(self, call: Callable[..., Tensor], *args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The velocity and what the blocks added, nothing where the stack was not entered."""
        self._residual = {}
        velocity = call(*args)
        residual, self._residual = self._residual, {}
        return velocity, residual


def _errors(found: Tensor, truth: Tensor) -> dict[str, float]:
    a, b = found.float(), truth.float()
    return {
        "l1": float((a - b).abs().mean() / b.abs().mean()),
        "l2": float((a - b).norm() / b.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)),
    }


def _distance(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """Relative L1 over all streams together; NaN where one of the two was not seen."""
    if not found or not truth:
        return _NONE
    apart = sum(float((found[name].float() - value.float()).abs().sum()) for name, value in truth.items())
    return apart / sum(float(value.float().abs().sum()) for value in truth.values())
