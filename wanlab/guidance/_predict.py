"""Run the branches of a step, one after another or as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from wanlab.errors import WanlabError
from wanlab.guidance._rule import Rule, Text
from wanlab.sites import Branch, Conditions, StepContext


class Predictor(Protocol):
    """What `predict` needs of a model."""

    def begin(self, ctx: StepContext) -> None: ...

    def velocity(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor: ...


def predict(
    model: Predictor, rule: Rule, latents: Tensor, ctx: StepContext, text: Text, conditions: Conditions
) -> Tensor:
    """The guided velocity of a step, shaped like `latents` (B, C, T, H, W); text of batch 1 is shared.

    `model.begin` announces every branch. With the spec's `batch_branches` the branches run as one batch, which the
    clock calls "cond+uncond"; it takes the memory of both at once and is equal up to rounding. Raises WanlabError for
    branches that cannot share a batch.
    """
    ctx = replace(ctx, latents=latents)
    branches = rule.branches(ctx, text, conditions)
    if rule.guidance.batch_branches and len(branches) > 1:
        predictions = _together(model, latents, ctx, branches)
    else:
        predictions = {branch.name: _alone(model, latents, ctx, branch) for branch in branches}
    return rule.combine(predictions, ctx)


def _alone(model: Predictor, latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
    ctx = replace(ctx, branch=branch.name, latents=latents)
    model.begin(ctx)
    return model.velocity(latents, ctx, branch)


def _together(model: Predictor, latents: Tensor, ctx: StepContext, branches: list[Branch]) -> dict[str, Tensor]:
    joined = _join_branches(branches, len(latents))
    tiled = torch.cat([latents] * len(branches))
    ctx = replace(ctx, sigma=_tile(ctx.sigma, len(branches)), timestep=_tile(ctx.timestep, len(branches)))
    velocity = _alone(model, tiled, ctx, joined)
    return dict(zip((b.name for b in branches), velocity.chunk(len(branches)), strict=True))


def _tile(value: float | Tensor, times: int) -> float | Tensor:
    """A number as it is; one per sample, (B,) or (B, T), repeated for every branch."""
    return torch.cat([value] * times) if isinstance(value, Tensor) and value.ndim else value


def _join_branches(branches: list[Branch], batch: int) -> Branch:
    first = branches[0]
    for other in branches[1:]:
        if (other.skip_blocks, other.guidance, other.nag) != (first.skip_blocks, first.guidance, first.nag):
            differ = "the blocks they skip, embedded guidance or normalized attention guidance"
            raise _apart(f"they differ in {differ} ({first.name}, {other.name})")
    text = _join([b.text for b in branches], batch)
    joined = {f.name: _join([getattr(b.conditions, f.name) for b in branches], batch) for f in fields(Conditions)}
    return replace(first, name="+".join(b.name for b in branches), text=text, conditions=Conditions(**joined))


def _join(values: list[Any], batch: int) -> Any:
    """The values of all branches as one: tensors (1 or `batch`, ...) along the batch, mappings by key."""
    first = values[0]
    if all(value is None for value in values):
        return None
    if isinstance(first, tuple) and any(isinstance(item, Tensor) for item in first):
        return tuple(_join(list(items), batch) for items in zip(*values, strict=True))
    if isinstance(first, int | tuple):
        if any(value != first for value in values):
            raise _apart(f"their settings differ: {first} against {values[-1]}")
        return first
    if any(type(value) is not type(first) for value in values):
        raise _apart("one has a condition that another lacks")
    if isinstance(first, Tensor):
        return _join_tensors(values, batch)
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise _apart(f"their inputs differ: {', '.join(first)} against {', '.join(values[-1])}")
        return {key: _join([value[key] for value in values], batch) for key in first}
    raise AssertionError(f"no way to batch a {type(first).__name__}")


def _join_tensors(tensors: list[Tensor], batch: int) -> Tensor:
    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) > 1:
        raise _apart(f"their inputs have different shapes: {sorted(shapes)}")
    assert all(len(t) in (1, batch) for t in tensors), (
        f"inputs of batch {[len(t) for t in tensors]} for {batch} samples"
    )
    return torch.cat([t.expand(batch, *t.shape[1:]) for t in tensors])


def _apart(reason: str) -> WanlabError:
    return WanlabError(
        f"These branches cannot run as one batch: {reason}", remedy="Set guidance.batch_branches to False."
    )
