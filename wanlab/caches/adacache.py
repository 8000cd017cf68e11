"""AdaCache: how fast the residual changed at the last computed step decides for how long it is reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from wanlab.caches._cache import Cache, Memory
from wanlab.caches._dynamic import ages, check_reuse, each_branch, first_branch
from wanlab.caches._run import Run
from wanlab.caches._size import residual_bytes
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.sites import StepContext, Streams
from wanlab.spec import Part

# Motion regularisation: what motion of ordinary strength measures, the power, and the weight of its change.
_MOTION, _POWER, _GRADIENT = 0.385, 8, 10.0


@dataclass(frozen=True)
class Codebook:
    """Intervals between computed steps by the rate of change, made for a number of steps."""

    num_steps: int
    rows: tuple[tuple[float, int], ...]
    """(rate below which, steps until the next computed one)."""
    otherwise: int
    motion: tuple[int, int]
    """First and last step, counted from 1, in which motion is looked at."""

    def interval(self, rate: float, num_steps: int) -> int:
        """Steps until the next computed one. `rate` is the relative change per step of a run of `num_steps`.

        With more steps than the book's a step changes less and an interval holds more of them, in proportion.
        """
        scale = num_steps / self.num_steps
        found = next((steps for below, steps in self.rows if rate * scale < below), self.otherwise)
        return max(1, round(found * scale))

    def looks(self, step: int, num_steps: int) -> bool:
        """Whether motion counts at a step (from 0)."""
        first, last = self.motion
        return first <= (step + 1) * self.num_steps / num_steps <= last


CODEBOOKS = {
    "fast": Codebook(30, ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2)), 1, (4, 26)),
    "slow": Codebook(30, ((0.08, 3), (0.16, 2)), 1, (4, 26)),
    "long": Codebook(100, ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4)), 3, (10, 90)),
}


@CACHES.register("adacache")
class AdaCache(Cache):
    """Reuse the blocks' residual for as many steps as its rate of change at the last computed step allows.

    Rate: |r - r_before|_1 / |r_before|_1 over the interval that was planned before. The first branch of a step
    decides, by all its samples, and the others follow, but for one that did not run when the first last computed, which
    computes; computed are also the first and the last two steps. One read on the host a computed step. max_interval = 1
    is exact.
    Source: arXiv:2411.02397; AdaCache-DiT/AdaCache 2c6d3ca, stdit3.py and configs/. There each block keeps what its
    attention and its cross attention with feed-forward add, and the rate is that of chosen blocks' temporal attention,
    averaged. Blocks here are of many kinds, so the whole stack's residual is kept (one tensor, and all blocks skipped,
    not their parts) and measured, in which blocks weigh by what they add. Step counts other than a codebook's scale
    its rates and intervals.
    """

    judged = frozenset({"codebook", "max_interval"})
    options: Options

    class Options(Part):
        codebook: Literal["fast", "slow", "long"] = "fast"
        """Intervals by rate: fast (up to 6 of 30 steps), slow (up to 3 of 30) or long (3 to 12 of 100)."""
        max_interval: Annotated[int, Field(ge=1)] | None = None
        """Longest interval between computed steps; None is the codebook's."""
        motion: bool = False
        """Compute more often where frames differ (the paper's motion regularisation); for videos."""

    def check(self, run: Run) -> None:
        check_reuse(self.method, self._forced_steps(run), "Take more steps")
        if self.options.motion and run.model.latent_shape(run.spec.resolve(run.model))[1] == 1:
            raise WanlabError(
                f"{self.method}'s motion compares latent frames, and this spec has one",
                remedy="Set motion to False, or make a video",
            )

    def forced(self, run: Run) -> dict[str, list[bool]]:
        return each_branch(run, self._forced_steps(run))

    def _forced_steps(self, run: Run) -> list[bool]:
        """Which steps are computed whatever they contain: an expert's first two, the run's last two."""
        return [age < 2 or _is_last(i, run.num_steps) for i, age in enumerate(ages(run))]

    def predict(self, run: Run) -> int:
        return residual_bytes(run)

    def around_stack(self, call: Callable[..., Streams], streams: Streams, ctx: StepContext) -> Streams:
        together, memory, outputs = self.together(ctx), self.memory(ctx), self.stack(ctx).outputs
        leads = together.numbers.get("step") != ctx.step
        is_known = bool(memory.tensors) and memory.numbers["at"] >= together.numbers.get("at", 0)  # False: it was away
        reuse = is_known and (self._waits(together, ctx) if leads else not together.numbers["computed"])
        signal = None
        if reuse:
            after = streams.plus({name: memory.tensors[name] for name in outputs})
        else:
            after = call(streams)
            residual = {name: after.tokens[name] - streams.tokens[name] for name in outputs}
            if leads:
                signal = self._plan(together, memory, residual[outputs[0]], streams.grid[0], ctx)
            memory.tensors |= residual
            memory.numbers["at"] = ctx.step
        if leads:
            together.numbers |= {"step": ctx.step, "computed": not reuse}
            together.numbers |= {} if reuse else {"at": ctx.step}
        self.did(ctx, 0.0 if reuse else 1.0, signal)
        return after

    @property
    def own_judged(self) -> frozenset[str]:
        found = super().own_judged
        return found - {"codebook"} if self.options.motion else found  # which then says in which steps motion counts

    def _waits(self, together: Memory, ctx: StepContext) -> bool:
        """Whether the step comes before the next one that is to be computed."""
        if _is_last(ctx.step, ctx.num_steps):
            return False
        gap = ctx.step - together.numbers.get("planned", float("-inf"))
        return self.agree(lambda options: gap < _interval(options, together.numbers, ctx.num_steps))

    def _plan(self, together: Memory, memory: Memory, now: Tensor, frames: int, ctx: StepContext) -> float | None:
        """Note and return the rate of the first branch's residual (B, L, D), which chooses the next computed step."""
        numbers, book, rate = together.numbers, CODEBOOKS[self.options.codebook], None
        if memory.tensors:
            interval = self.agree(lambda options: _interval(options, numbers, ctx.num_steps))
            now, before = first_branch(now, ctx), first_branch(memory.tensors[self.stack(ctx).outputs[0]], ctx)
            measured = [_size(now - before) / _size(before) / interval]
            looks = self.options.motion and book.looks(ctx.step, ctx.num_steps)
            measured += [_motion(now, frames)] if looks else []
            rate, *seen = torch.stack(measured).tolist()
            if self.options.motion:
                gap = interval * book.num_steps / ctx.num_steps
                rate *= self._regularise(numbers, seen[0] if seen else 1.0, gap)
            numbers["rate"] = rate
        numbers["planned"] = ctx.step
        return rate

    def _regularise(self, numbers: dict[str, float], motion: float, gap: float) -> float:
        """The factor of the rate: motion, and how much it changes in one of the codebook's steps."""
        before = numbers.get("motion", 1.0)
        numbers["motion"] = motion
        return motion + abs(_GRADIENT * (motion - before) / gap)


def _interval(options: Any, numbers: Mapping[str, float], num_steps: int) -> int:
    """Steps from the last computed one to the next; 1 before there is a rate, and for one that is NaN."""
    rate = numbers.get("rate", float("nan"))
    found = CODEBOOKS[options.codebook].interval(rate, num_steps) if rate == rate else 1
    return min(found, options.max_interval or found)


def _is_last(step: int, num_steps: int) -> bool:
    return step >= num_steps - 2


def _size(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, 1, dtype=torch.float32)


def _motion(x: Tensor, frames: int) -> Tensor:
    """Difference of neighbouring frames of a residual (B, L, D), against what is ordinary: around 1."""
    one = x.shape[1] // frames
    later, earlier = x[:, one:], x[:, :-one]
    return (_size(later - earlier) / (_size(later) + _size(earlier)) / _MOTION) ** _POWER
