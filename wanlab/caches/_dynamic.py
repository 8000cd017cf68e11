"""What methods that look at tensors share: measures of change, what a run is sure to compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from wanlab.caches._run import Run
from wanlab.errors import WanlabError
from wanlab.sites import StepContext

Threshold = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""What a relative change is held against; 0 computes everything."""


def first_branch(x: Tensor, ctx: StepContext) -> Tensor:
    """Of a tensor (B, ...) of a forward, the samples of its first guidance branch: all, unless branches are batched."""
    return x.chunk(ctx.branch.count("+") + 1)[0]


def mean_abs(x: Tensor) -> Tensor:
    """Mean magnitude over all samples, summed in float32 whatever `x` is; stays on the device."""
    return x.abs().mean(dtype=torch.float32)


def change(now: Tensor, before: Tensor) -> Tensor:
    """Relative L1 change over all samples, on the device; NaN where nothing was there before."""
    return mean_abs(now - before) / mean_abs(before)


def ages(run: Run) -> list[int]:
    """Of each step, how many steps its expert has run before it."""
    seen: dict[str, int] = {}
    found = []
    for expert in run.experts:
        found.append(seen.get(expert, 0))
        seen[expert] = found[-1] + 1
    return found


def each_branch(run: Run, steps: Sequence[bool]) -> dict[str, list[bool]]:
    """What holds for every branch at each step, as `Cache.forced` tells it."""
    return run.by_branch(steps[step] for step, _, _ in run.forwards)


def check_reuse(method: str, forced: Sequence[bool], remedy: str) -> None:
    """Raise WanlabError where every step is computed whatever the content, so that the cache could reuse nothing."""
    if all(forced):
        raise WanlabError(
            f"{method} computes each of these {len(forced)} steps whatever they contain: it would reuse nothing",
            remedy=remedy,
        )
