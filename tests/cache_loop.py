"""What the tests of caches share: a hand-written sampling loop that counts the work of every forward."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from wanlab.caches import Cache
from wanlab.models import Model
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, StepContext

STEPS = 8
Branches = Callable[[int], Sequence[str]]


def both(step: int) -> Sequence[str]:
    return "cond", "uncond"


class Loop:
    """Euler steps with guidance branches one after another; `run` may start and stop at any step."""

    def __init__(self, model: Model, conditions: Conditions = NO_CONDITIONS, **changes: Any) -> None:
        self.model, self.conditions = model, conditions
        self.spec = model.resolve(model.spec(num_steps=STEPS, prompt="a cat", **changes))
        self.levels = model.sigmas(self.spec).tolist()
        self.experts = model.experts(self.spec)
        self.text = model.encode_text(self.spec)["prompt"]
        self.noise = model.initial_noise(self.spec)
        self.ran: dict[tuple[str, int], set[int]] = defaultdict(set)
        """(branch, step) -> the entries of the stack whose linear layers all ran."""
        self.partly: dict[tuple[str, int], set[int]] = defaultdict(set)
        """The same for entries of whose linear layers only some ran."""

    @functools.cached_property
    def plain(self) -> Tensor:
        """What the noise becomes without a cache."""
        return self.run(self.noise)

    def run(self, latents: Tensor, start: int = 0, stop: int = STEPS, branches: Branches = both) -> Tensor:
        for step in range(start, stop):
            total = torch.zeros_like(latents)
            for sign, name in zip((2.0, -1.0, 0.5), branches(step), strict=False):
                total = total + sign * self.forward(latents, self.clock(latents, step, name))
            latents = latents + (self.levels[step + 1] - self.levels[step]) * total
        return latents

    def clock(self, latents: Tensor, step: int, branch: str = "cond") -> StepContext:
        sigma = self.levels[step]
        return StepContext(
            step=step,
            num_steps=STEPS,
            sigma=sigma,
            sigmas=tuple(self.levels),
            timestep=1000 * sigma,
            expert=self.experts[step],
            branch=branch,
            latents=latents,
        )

    def forward(self, latents: Tensor, ctx: StepContext) -> Tensor:
        text = {"cond": lambda v: v, "uncond": lambda v: v.flip(-1), "skip": lambda v: v.roll(3, -1)}[ctx.branch]
        texts = {k: text(v) for k, v in self.text.items()}
        calls: dict[int, set[str]] = defaultdict(set)

        def count(entry: int, name: str) -> Callable[..., None]:
            return lambda *_: calls[entry].add(name)

        stack = self.model.stacks[ctx.expert]
        linears = [(i, name, site.module) for i, e in enumerate(stack) for name, site in e.linears.items()]
        hooks = [module.register_forward_hook(count(i, name)) for i, name, module in linears]
        try:
            self.model.begin(ctx)
            return self.model.velocity(latents, ctx, Branch(ctx.branch, texts, self.conditions, guidance=3.5))
        finally:
            for hook in hooks:
                hook.remove()
            at, whole = (ctx.branch, ctx.step), {i for i, names in calls.items() if len(names) == len(stack[i].linears)}
            self.ran[at], self.partly[at] = whole, set(calls) - whole


class Stop(Exception):
    """Ends a run inside a forward."""


def shares(cache: Cache, branch: str = "cond") -> list[float]:
    """The share of each step's work in a branch, all experts together."""
    found: dict[int, float] = {}
    for key, steps in cache.report().shares.items():
        if key.split("/")[1] == branch:
            found |= steps
    return [found[step] for step in sorted(found)]


def share_of(loop: Loop, ran: Collection[int], expert: str = "transformer") -> float:
    """The share of operations that running these entries of the stack takes."""
    totals = [entry.total for entry in loop.model.workload(loop.spec, expert=expert).entries]
    return sum(totals[i] for i in ran) / sum(totals)
