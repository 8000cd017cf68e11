"""DBCache: first-block caching with more first blocks, last blocks that always run, and limits on reuse."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from wanlab.caches._cache import Memory
from wanlab.caches._dynamic import Threshold, ages, check_reuse, each_branch
from wanlab.caches._run import Run
from wanlab.caches._size import stream_bytes
from wanlab.caches._split import Split
from wanlab.caches.fixed import Mask
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.sites import StepContext
from wanlab.sites.stack import BESIDE
from wanlab.spec import Part


@CACHES.register("dbcache")
class DBCache(Split):
    """Run the first and last blocks, and the middle unless the first ones' residual changed by less than a threshold.

    In this order a step is computed: in the warm-up; where `mask` says so; after `max_cached_steps` reused ones; after
    `max_continuous_cached_steps` in a row; once the measured changes add up to `max_accumulated_diff`; and for a
    relative L1 change (since the branch's last computed step) of `threshold` or more. One read on the host a forward.
    threshold = 0 is exact but for a static mask, 1 and more reuse without measuring.
    Source: vipshop/cache-dit 1.5.3, cache_contexts/cache_manager.py `can_cache` and its defaults. Like there, each
    expert counts steps of its own; unlike there, the mask is of the whole run, and a Taylor slope needs two computed
    steps, not four steps.
    """

    judged = frozenset(
        {
            "threshold",
            "warmup_steps",
            "warmup_interval",
            "max_cached_steps",
            "max_continuous_cached_steps",
            "max_accumulated_diff",
            "mask",
            "mask_policy",
        }
    )
    options: Options

    class Options(Part):
        threshold: Threshold = 0.08
        """Relative change below which the middle is reused; cache-dit's residual_diff_threshold."""
        num_first: Annotated[int, Field(ge=1)] = 8
        """Blocks that run first and judge; cache-dit's Fn_compute_blocks."""
        num_last: Annotated[int, Field(ge=0)] = 0
        """Blocks that run on what was reused; cache-dit's Bn_compute_blocks."""
        warmup_steps: Annotated[int, Field(ge=0)] = 8
        """First steps of each expert that are computed; without effect where a mask is given."""
        warmup_interval: Annotated[int, Field(ge=1)] = 1
        """Of the warm-up, every which step is computed; the others may be reused."""
        max_cached_steps: Annotated[int, Field(ge=0)] | None = None
        """Steps that a branch may reuse in all; None is no limit."""
        max_continuous_cached_steps: Annotated[int, Field(ge=0)] | None = None
        """Steps that a branch may reuse one after another; None is no limit."""
        max_accumulated_diff: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
        """Sum of measured changes from which on all is computed; None is no limit."""
        mask: Mask | None = None
        """One entry for each step that runs, True computes; at False the policy decides."""
        mask_policy: Literal["dynamic", "static"] = "dynamic"
        """At a step that the mask leaves open: dynamic applies the rules, static reuses."""
        calibrator: Literal["none", "taylorseer"] = "none"
        """How the residual is carried on: as it was, or along the slope between the last two computed steps."""
        cfg_diff_compute_separate: bool = True
        """Whether each guidance branch measures for itself, or takes the change that the step's first one measured."""

        @model_validator(mode="after")
        def _check_mask(self) -> Self:
            if self.mask is not None and not self.mask[0]:
                raise WanlabError("mask starts with False", remedy="There is nothing to reuse at the first step")
            return self

    def __init__(self, options: Part | None = None) -> None:
        super().__init__(options)
        self.num_first, self.num_last = self.options.num_first, self.options.num_last

    def check(self, run: Run) -> None:
        super().check(run)
        self._check_length(run.num_steps)
        check_reuse(
            self.method, self._forced_steps(run), "Take more steps, fewer warmup_steps, or a mask with False in it"
        )

    def forced(self, run: Run) -> dict[str, list[bool]]:
        return each_branch(run, self._forced_steps(run))

    def _forced_steps(self, run: Run) -> list[bool]:
        """Which steps are computed whatever they contain."""
        return [age == 0 or _is_forced(self.options, i, age) for i, age in enumerate(ages(run))]

    def predict(self, run: Run) -> int:
        steps = Counter((expert, branch) for _, expert, branch in run.forwards)
        found = 0
        for (_, branch), number in steps.items():
            kept = 1 + (self.options.calibrator == "taylorseer" and number > 1)
            one = stream_bytes(run, run.model.outputs[:1]) + kept * stream_bytes(run, self._kept(run))
            found += (branch.count("+") + 1) * one
        return found

    def _kept(self, run: Run) -> tuple[str, ...]:
        """Streams that the middle changes; where no block follows, those that the head reads."""
        if not self.num_last:
            return tuple(run.model.outputs)
        work = run.model.workload(run.spec.resolve(run.model))
        kinds = [entry.kind for entry in work.entries]
        main = [sum(kind not in BESIDE for kind in kinds[:i]) for i in range(len(kinds) + 1)]
        readers = [main[i] for i, kind in enumerate(kinds) if kind == "hint"]
        # In a network with hints only those change streams beside the outputs, and a hint stays with its reader.
        others = not readers or any(self.num_first <= i < main[-1] - self.num_last for i in readers)
        return tuple(name for name in work.changed if name in run.model.outputs or others)

    def reuses(self, added: Tensor, ctx: StepContext) -> tuple[bool, float | None]:
        self._check_length(ctx.num_steps)
        age = ctx.step - int(self.together(ctx).numbers["start"])
        signal = functools.cache(lambda: self._signal(added, ctx))  # measured at most once, whoever asks
        reuse, measured = self.agree(lambda options: self._rule(options, ctx, age, signal))
        if measured is not None:
            self.together(ctx).numbers.update({"step": ctx.step, "diff": measured})
        return reuse, measured

    def _rule(self, options: Any, ctx: StepContext, age: int, signal: Callable[[], float]) -> tuple[bool, float | None]:
        """Whether to reuse under some options, and what was measured for that."""
        if _is_forced(options, ctx.step, age):
            return False, None
        if options.mask is not None and options.mask_policy == "static":
            return True, None
        if _is_spent(options, self.memory(ctx), ctx.step) or not options.threshold:
            return False, None
        if options.threshold >= 1:
            return True, None
        return signal() < options.threshold, signal()

    def keep(self, memory: Memory, residual: dict[str, Tensor], ctx: StepContext) -> None:
        self.together(ctx).numbers.setdefault("start", ctx.step)
        if self.options.calibrator == "taylorseer":
            before = super().recall(memory, ctx)
            gap = ctx.step - memory.numbers.get("computed", ctx.step)
            memory.tensors |= {f"slope/{name}": (x - before[name]) / gap for name, x in residual.items() if before}
        memory.numbers["computed"] = ctx.step
        super().keep(memory, residual, ctx)

    def recall(self, memory: Memory, ctx: StepContext) -> dict[str, Tensor]:
        gap = ctx.step - memory.numbers["computed"]
        found = super().recall(memory, ctx)
        for name, x in found.items():
            slope = memory.tensors.get(f"slope/{name}")
            found[name] = x if slope is None else x + gap * slope
        return found

    def _signal(self, added: Tensor, ctx: StepContext) -> float:
        """The change of what the first blocks added, by this branch or by the step's first one."""
        told = self.together(ctx).numbers
        if not self.options.cfg_diff_compute_separate and told.get("step") == ctx.step:
            return told["diff"]
        return self.measure(added, self.memory(ctx))

    def _check_length(self, num_steps: int) -> None:
        mask = self.options.mask
        if mask is not None and len(mask) != num_steps:
            raise WanlabError(
                f"The cache's mask has {len(mask)} entries for {num_steps} steps",
                remedy=f"Give one entry for each step that runs: {num_steps}",
            )


def _is_forced(options: Any, step: int, age: int) -> bool:
    """Whether a step is computed whatever it contains; `age` counts the expert's own steps."""
    if options.mask is not None:
        return bool(options.mask[step])
    return bool(age < options.warmup_steps and age % options.warmup_interval == 0)


def _is_spent(options: Any, memory: Memory, step: int) -> bool:
    """Whether one of the limits on reuse is reached."""
    reused = [i for i, share in memory.shares.items() if share < 1]
    row = 0
    while step - 1 - row in reused:
        row += 1
    limits = (
        (len(reused), options.max_cached_steps),
        (row, options.max_continuous_cached_steps),
        (sum(memory.signals.values()), options.max_accumulated_diff),
    )
    return any(limit is not None and count >= limit for count, limit in limits)
