"""SeaCache: reuse while the latents, filtered to what is signal at their noise level, change little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from wanlab.caches._cache import Cache, Memory
from wanlab.caches._dynamic import Threshold, ages, check_reuse, each_branch, first_branch
from wanlab.caches._run import Run
from wanlab.caches._size import latent_bytes, stream_bytes
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.sites import StepContext, Streams
from wanlab.spec import Part


@dataclass(frozen=True)
class Look:
    """What a step's latents show: the filtered ones, and their change since the step before."""

    indicator: Tensor | None
    """None for the branches that follow the first one."""
    distance: float
    """Infinite where there is nothing to compare with, or nobody asked."""


@CACHES.register("seacache")
class SeaCache(Cache):
    """Reuse the blocks' residual while the filtered latents' relative L1 changes add up to less than `threshold`.

    The filter is Wiener's for a signal of power 1 / f^power_exp in noise of the step's sigma, along time, height and
    width; a sample is compared with itself and samples are averaged. All branches of a step see the same latents: one
    read on the host a step. A branch that was left out for a step starts anew. threshold = 0 is exact.
    Source: arXiv:2602.18993; equal to diffusers 0.42.1's SeaCache on WanPipeline, but for latents, which are filtered
    in float32 here before the network's dtype rounds them.
    """

    judged = frozenset({"threshold", "warmup_steps", "final_steps", "max_consecutive"})
    options: Options

    class Options(Part):
        threshold: Threshold = 0.25
        """Change that may add up before a step is computed."""
        residual_order: Literal[0, 1] = 1
        """0 reuses the last residual, 1 extrapolates from the last two."""
        warmup_steps: Annotated[int, Field(ge=0)] = 1
        """First steps of the run that are computed; diffusers' retention_steps."""
        final_steps: Annotated[int, Field(ge=0)] = 1
        """Last steps of the run that are computed; diffusers' cache_end_steps."""
        max_consecutive: Annotated[int, Field(ge=0)] = 2
        """Steps that may be reused one after another; 0 is no limit."""
        power_exp: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
        """How fast the power of a clean signal falls with frequency."""

    def check(self, run: Run) -> None:
        check_reuse(self.method, self._forced_steps(run), "Take more steps, or fewer warmup_steps and final_steps")

    def forced(self, run: Run) -> dict[str, list[bool]]:
        return each_branch(run, self._forced_steps(run))

    def _forced_steps(self, run: Run) -> list[bool]:
        """Which steps are computed whatever they contain."""
        return [age == 0 or _is_forced(self.options, i, run.num_steps) for i, age in enumerate(ages(run))]

    def predict(self, run: Run) -> int:
        """For each expert a float32 latent; for each branch as many residuals as the order needs and it has steps."""
        steps = Counter((expert, branch) for _, expert, branch in run.forwards)
        residuals = sum((b.count("+") + 1) * min(n, 1 + self.options.residual_order) for (_, b), n in steps.items())
        return len(set(run.experts)) * latent_bytes(run) + residuals * stream_bytes(run)

    def around_stack(self, call: Callable[..., Streams], streams: Streams, ctx: StepContext) -> Streams:
        memory, look = self.memory(ctx), self._look(ctx)
        numbers, outputs = memory.numbers, self.stack(ctx).outputs
        if numbers.get("step") != ctx.step - 1:  # the branch was left out since, or is new
            memory.tensors.clear()
            numbers.clear()
        reached = numbers.get("sum", 0.0) + look.distance
        reuse = bool(memory.tensors) and self.agree(lambda options: self._allows(options, memory, ctx, reached))
        if reuse:
            after = streams.plus({name: self._residual(memory, name, ctx.step) for name in outputs})
            numbers |= {"sum": reached, "reused": numbers["reused"] + 1}
        else:
            after = call(streams)
            self._keep(memory, {name: after.tokens[name] - streams.tokens[name] for name in outputs}, ctx.step)
            numbers |= {"sum": 0.0, "reused": 0}
        numbers["step"] = ctx.step
        self._note(look, ctx)
        self.did(ctx, 0.0 if reuse else 1.0, reached if reached < float("inf") else None)
        return after

    def _allows(self, options: Any, memory: Memory, ctx: StepContext, reached: float) -> bool:
        """Whether options let the residual be reused."""
        is_spent = options.max_consecutive and memory.numbers["reused"] >= options.max_consecutive
        is_due = _is_forced(options, ctx.step, ctx.num_steps) or is_spent
        return bool(not is_due and reached < options.threshold)

    def _look(self, ctx: StepContext) -> Look:
        """The step's change; the first branch of a step measures it."""
        together = self.together(ctx)
        if together.numbers.get("step") == ctx.step:
            return Look(None, together.numbers["distance"])
        if ctx.latents is None:
            raise WanlabError(f"{self.method} looks at the latents, and this step's clock has none", remedy="Give them")
        latents = first_branch(ctx.latents, ctx)
        indicator = sea_filter(latents, float(ctx.sigma), self.options.power_exp)
        before = together.tensors.get("indicator")
        is_next = together.numbers.get("step") == ctx.step - 1
        forced = before is not None and is_next and self.agree(lambda o: _is_forced(o, ctx.step, ctx.num_steps))
        if before is None or not is_next or forced:
            return Look(indicator, float("inf"))
        over = tuple(range(1, latents.ndim))
        moved = (indicator - before).abs().mean(over) / (before.abs().mean(over) + 1e-16)
        return Look(indicator, float(moved.mean()))

    def _note(self, look: Look, ctx: StepContext) -> None:
        if look.indicator is not None:
            together = self.together(ctx)
            together.tensors["indicator"] = look.indicator
            together.numbers |= {"step": ctx.step, "distance": look.distance}

    def _keep(self, memory: Memory, residual: dict[str, Tensor], step: int) -> None:
        for name, value in residual.items():
            if self.options.residual_order and f"last/{name}" in memory.tensors:
                memory.tensors[f"older/{name}"] = memory.tensors[f"last/{name}"]
            memory.tensors[f"last/{name}"] = value
        if "last" in memory.numbers:
            memory.numbers["older"] = memory.numbers["last"]
        memory.numbers["last"] = step

    def _residual(self, memory: Memory, name: str, step: int) -> Tensor:
        last, older = memory.tensors[f"last/{name}"], memory.tensors.get(f"older/{name}")
        if older is None:
            return last
        at, before = memory.numbers["last"], memory.numbers["older"]
        return last + (last - older) * ((step - at) / (at - before))


def _is_forced(options: Any, step: int, num_steps: int) -> bool:
    return bool(step < options.warmup_steps or step >= num_steps - options.final_steps)


def sea_filter(latents: Tensor, sigma: float, power_exp: float = 3.0) -> Tensor:
    """Latents (B, C, T, H, W) through a filter for signal in noise of `sigma` (0 to 1), of mean gain 1; float32.

    The gain is a product of one for each axis: (1 - sigma) P / ((1 - sigma)^2 P + sigma^2), P = 1 / |f|^power_exp.
    """
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    gain = torch.ones((), device=latents.device)
    for dim in (-3, -2, -1):
        length = latents.shape[dim]
        power = 1 / (torch.fft.fftfreq(length, device=latents.device).abs() ** power_exp + 1e-16)
        axis = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2 + 1e-16)
        gain = gain * axis.reshape(-1, *[1] * (-1 - dim))
    spectrum = torch.fft.fftn(latents.float(), dim=(-3, -2, -1))
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=(-3, -2, -1)).real.contiguous()
