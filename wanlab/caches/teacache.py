"""TeaCache: how much the timestep's embedding moves tells how much the blocks' output does.

Source: arXiv:2411.19108; ali-vilab/TeaCache 7c10efc4 (Apache-2.0), TeaCache4Wan2.1/teacache_generate.py:519-568 and
869-978, TeaCache4FLUX/teacache_flux.py:103-122.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from wanlab.caches._cache import Cache
from wanlab.caches._dynamic import change
from wanlab.caches._run import Run
from wanlab.caches._size import residual_bytes
from wanlab.caches._static import Floats, MadeFor, Mask, Span, Static, joined, search, settings, unused, whole
from wanlab.errors import WanlabError
from wanlab.registry import CACHES, SAMPLERS
from wanlab.sites import StepContext, Streams
from wanlab.spec import Part

Polynomial = Annotated[tuple[float, ...], Field(min_length=1, max_length=10)]
_WARM = {False: 1, True: 5}  # first steps that compute: plain, and with ret_steps


def plan(
    embeddings: Any,
    coefficients: ArrayLike,
    threshold: float,
    num_steps: int,
    ret_steps: bool = False,
    num_branches: int = 2,
) -> list[bool]:
    """Which forwards compute: num_branches * num_steps values, branches interleaved, True = computed.

    embeddings: (num_steps, D) time embeddings, e, or e0 with ret_steps; numpy or torch, whose relative L1 changes are
    taken in float64 (the script takes them in float32: only a sum within rounding of the threshold could differ).
    coefficients: of a polynomial of that change, highest power first, not made positive where it is negative. A forward
    is reused while their sum since the last computed one stays below `threshold`. The first step computes and the last;
    with ret_steps the first five and not the last. Raises WanlabError for shapes that do not fit.
    """
    masks = plan_many(
        embeddings=embeddings,
        coefficients=coefficients,
        threshold=threshold,
        num_steps=num_steps,
        ret_steps=ret_steps,
        num_branches=num_branches,
    )
    return [bool(x) for x in masks[0]]


def plan_many(
    *,
    embeddings: Any,
    coefficients: ArrayLike,
    threshold: ArrayLike,
    num_steps: int,
    ret_steps: bool = False,
    num_branches: int = 2,
) -> Mask:
    """`plan` for N thresholds (N,) at once: (N, num_branches * num_steps)."""
    (limit,) = settings(threshold=threshold)
    num_steps, num_branches = whole("num_steps", num_steps, 1), whole("num_branches", num_branches, 1)
    steps = increments(changes(embeddings, num_steps), coefficients)
    masks = walk(steps, forced_steps(num_steps, ret_steps), limit)
    return np.repeat(masks, num_branches, axis=1)  # all branches are told the same timestep


def changes(embeddings: Any, num_steps: int) -> Floats:
    """Relative L1 change of each step's embedding from the one before, (num_steps,) float64; 0 for the first."""
    given = embeddings.detach().cpu().double().numpy() if isinstance(embeddings, Tensor) else embeddings
    rows = np.asarray(given, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != num_steps:
        raise WanlabError(f"embeddings of shape {rows.shape} for {num_steps} steps", remedy="Give (num_steps, D)")
    size = np.abs(rows[:-1]).mean(1)
    if not bool(np.isfinite(rows).all()) or bool((size == 0).any()):
        raise WanlabError("embeddings hold NaN, infinity or a row of zeros", remedy="Give the network's own")
    return np.concatenate([[0.0], np.abs(np.diff(rows, axis=0)).mean(1) / size])


def increments(changed: Floats, coefficients: ArrayLike) -> Floats:
    """The polynomial of each change, in Horner's order as np.poly1d has it."""
    powers = np.asarray(coefficients, dtype=np.float64)
    if powers.ndim != 1 or powers.size == 0 or not bool(np.isfinite(powers).all()):
        raise WanlabError(f"coefficients of shape {powers.shape}", remedy="Give a list, highest power first")
    return np.asarray(np.polyval(powers, changed))


def forced_steps(num_steps: int, ret_steps: bool) -> Mask:
    """(num_steps,): steps that compute whatever the threshold."""
    steps = np.arange(num_steps)
    return (steps < _WARM[ret_steps]) | (~np.bool_(ret_steps) & (steps == num_steps - 1))


def walk(steps: Floats, forced: Mask, threshold: Floats) -> Mask:
    """The rule for N thresholds: (N, num_steps), True = computed."""
    total = np.zeros(len(threshold))
    computed = np.ones((len(threshold), len(steps)), bool)
    for step, value in enumerate(steps.tolist()):
        if forced[step]:
            total[:] = 0
            continue
        total = total + value
        computed[:, step] = ~(total < threshold)
        total[computed[:, step]] = 0
    return computed


def smart_threshold(
    embeddings: Any, coefficients: ArrayLike, num_steps: int, speedup: float, *, start_step: int = 0
) -> float:
    """The threshold that WanGP finds for a wanted speed-up; it takes the polynomial's absolute value.

    Steps up to and with `start_step` compute, and the last one.
    """
    return _search(np.abs(increments(changes(embeddings, num_steps), coefficients)), speedup, start_step)


def _search(steps: Floats, speedup: float, start_step: int) -> float:
    forced = _smart_forced(len(steps), start_step)

    def count(thresholds: Floats) -> NDArray[np.int64]:
        return walk(steps, forced, thresholds).sum(1)

    return search(count, len(steps), speedup)


def _smart_forced(num_steps: int, start_step: int) -> Mask:
    steps = np.arange(num_steps)
    return (steps <= start_step) | (steps == num_steps - 1)


@CACHES.register("teacache")
class TeaCache(Static):
    """Reuse the residual while a polynomial of the time embedding's change, summed up, stays below `threshold`.

    threshold=0 is exact where the polynomial is not negative. The definition's constants "teacache" hold the
    polynomials. Where the network's signal is the timestep alone (Wan) the plan is made before the run, for each expert
    from its own embedding as if its steps were a run; where it depends on content (Flux: the first block's modulated
    input) each step decides, with one wait for the device. With `speedup` the threshold is searched as WanGP does.
    """

    judged = frozenset({"threshold"})  # where content decides
    key = "teacache"
    given = "coefficients"
    options: Options

    class Options(Part):
        """Published thresholds: 0.05 to 0.08 for Wan 2.1 1.3B, 0.14 to 0.2 for 14B, 0.25 to 0.8 for Flux."""

        threshold: NonNegativeFloat = 0.08
        """Change that may add up before a step computes again."""
        ret_steps: bool = False
        """Compute the first five steps, not the last, and look at the embedding's projection: other polynomials."""
        speedup: float | None = Field(None, ge=1.5, le=2.5)
        """The speed-up wanted, WanGP's way: threshold and ret_steps then have no use."""
        start_percent: float = Field(0.0, ge=0, le=100)
        """With `speedup`: percent of the steps, from the first on, that all compute."""
        coefficients: Polynomial | dict[str, Polynomial] | None = None
        """Highest power first; of two experts one each, by their names. None is the definition's."""
        made_for: MadeFor | None = None
        """What `coefficients` were measured with."""
        strict: bool = False
        """Raise where constants were measured with other settings, instead of warning."""

        @model_validator(mode="after")
        def _check_use(self) -> Self:
            unused(self, ("threshold", "ret_steps") if self.speedup is not None else ("start_percent",))
            unused(self, () if self.coefficients is not None else ("made_for",))
            return self

    def __init__(self, options: Part | None = None) -> None:
        super().__init__(options)
        self._run: Run | None = None
        self._model: Any = None

    @classmethod
    def unfit(cls, model: Any) -> str:
        return "" if model.cache_signal else "Its family does not say what TeaCache's signal is"

    # Where the signal is the timestep

    def masks(self, run: Run) -> dict[str, Mask]:
        steps = {expert: self._increments(run, expert) for expert in dict.fromkeys(run.experts)}
        return self._masks(run, steps, self._threshold(run, steps))

    def most(self, run: Run) -> dict[str, Mask]:
        return self._masks(run, {}, np.inf)

    def _masks(self, run: Run, steps: Mapping[str, Floats], threshold: float) -> dict[str, Mask]:
        def one(span: Span, column: int) -> Mask:
            own = run.steps_of(span.expert)
            forced = self._forced(run, span.expert)
            forced[span.steps.start - own[0]] = True
            found = np.ones(run.num_steps, bool)
            found[own] = walk(steps.get(span.expert, np.zeros(len(own))), forced, np.array([threshold]))[0]
            return found

        return joined(run, one, 1)

    def _forced(self, run: Run, expert: str) -> Mask:
        """(steps of the expert,)"""
        if self.options.speedup is None:
            return forced_steps(len(run.steps_of(expert)), self.options.ret_steps)
        return _smart_forced(run.num_steps, self._start(run))[run.steps_of(expert)]

    def _increments(self, run: Run, expert: str) -> Floats:
        own = run.steps_of(expert)
        timesteps = step_timesteps(run)[own]
        rows = run.model.time_embeddings(timesteps, expert, projected=self.options.ret_steps)
        found = increments(changes(rows, len(own)), self._polynomials(run)[expert])
        return found if self.options.speedup is None else np.abs(found)

    def _threshold(self, run: Run, steps: Mapping[str, Floats]) -> float:
        if self.options.speedup is None:
            return self.options.threshold
        return _search(
            np.concatenate([steps[e] for e in dict.fromkeys(run.experts)]), self.options.speedup, self._start(run)
        )

    def _start(self, run: Run) -> int:
        return int(self.options.start_percent * run.num_steps / 100)

    def _polynomials(self, run: Run) -> dict[str, Sequence[float]]:
        """One for each expert of the run. Raises WanlabError where one lacks."""
        found: Any = self.options.coefficients
        if found is None:
            entry, name = self.entry(run), "ret_coefficients" if self.options.ret_steps else "coefficients"
            if entry.get(name) is None:
                raise WanlabError(f"No {name} are known for {run.model.id}", remedy="Change ret_steps, or calibrate")
            found = entry[name]
        experts = tuple(dict.fromkeys(run.experts))
        if isinstance(found, Mapping):
            if lacking := [e for e in experts if e not in found]:
                raise WanlabError(f"TeaCache has no coefficients for {lacking[0]}", choices=sorted(found))
            return {e: found[e] for e in experts}
        if len(experts) > 1:
            raise WanlabError(
                f"TeaCache needs a polynomial for each expert, and one is given for {', '.join(experts)}",
                remedy='Give coefficients={"transformer": [...], "transformer_2": [...]}',
            )
        return {experts[0]: found}

    # Where it is content

    def check(self, run: Run) -> None:
        if run.model.cache_signal == "content":
            self._check_content(run)
        super().check(run)
        self._polynomials(run)

    def _check_content(self, run: Run) -> None:
        for name in ("speedup", "ret_steps"):
            if getattr(self.options, name):
                raise WanlabError(
                    f"TeaCache's {name} needs a signal known before the run; that of {run.model.id} depends on content",
                    remedy=f"Leave {name} out and give a threshold",
                )

    def prepare(self, run: Run) -> Cache:
        if run.model.cache_signal != "content":
            return super().prepare(run)
        self._run = run
        return self

    def predict(self, run: Run) -> int:
        """The residual, and where content decides the signal of the step before too."""
        return residual_bytes(run) * (2 if run.model.cache_signal == "content" else 1)

    def bind(self, model: Any) -> None:
        super().bind(model)
        self._model = model

    def signal(self, streams: Streams, ctx: StepContext) -> None:
        memory = self.memory(ctx)
        now = self._model.modulated_input(streams, ctx.expert)
        before = memory.tensors.get("signal")
        memory.tensors["signal"] = now
        memory.numbers["change"] = 0.0
        if before is not None:
            memory.numbers["change"] = float(change(now, before))

    def decide(self, ctx: StepContext) -> bool:
        run, memory = cast(Run, self._run), self.memory(ctx)
        own = run.steps_of(ctx.expert)
        first = ctx.step - 1 not in memory.shares or "sum" not in memory.numbers  # new, away since, or forgotten
        if first or self._forced(run, ctx.expert)[ctx.step - own[0]]:
            memory.numbers["sum"] = 0.0
            return True
        step = increments(np.array([memory.numbers["change"]]), self._polynomials(run)[ctx.expert])
        memory.numbers["sum"] = total = memory.numbers["sum"] + float(step[0])
        memory.signals[ctx.step] = total
        if self.agree(lambda options: total < options.threshold):
            return False
        memory.numbers["sum"] = 0.0
        return True


def step_timesteps(run: Run) -> Tensor:
    """What the network is told at each step, (num_steps,) float32."""
    sampler = SAMPLERS.get(run.spec.sampling.sampler)(run.model.sigmas(run.spec), _no_noise)
    return cast(Tensor, torch.as_tensor([sampler.clock(i, 1)[1] for i in range(run.num_steps)], dtype=torch.float32))


def _no_noise(step: int, shape: torch.Size) -> Tensor:
    raise AssertionError("only the sampler's clock is read")
