"""Edits: a function of one's own between a site and what reads it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wanlab.errors import WanlabError, shorten
from wanlab.probe._names import Place, Where, calls, missing, places
from wanlab.sites import AttentionSite, Handle, StepContext, Streams
from wanlab.watch import Interrupts

Edit = Callable[[Tensor, StepContext], Tensor]
SIDES = ("in", "out")
ATTENTION_SIDES = ("q", "k", "v", "out")
_CONTROLS = ("control", "control_2")
_MAIN = ("video", "image")


@contextmanager
def edit(
    model: Any,
    site: str,
    fn: Edit,
    steps: Collection[int] | None = None,
    branches: Collection[str] | None = None,
    stream: str | None = None,
) -> Iterator[None]:
    """Put `fn(tensor, ctx)` in place of an activation while inside; the model is bit-equal afterwards.

    `site`: "blocks.3.out" or ".in", tokens (B, L, D); "blocks.3.attn1.out", ".q", ".k" or ".v", heads (B, L, H, D)
    before the output projection; "stack.out"; with `*` for several. A block with an edited attention runs uncompiled.
    `fn` gets one guidance branch at a time, whose name is in `ctx.branch`, and returns a tensor of the same shape and
    dtype, the same one to leave it; only in `steps` and `branches`, by default all. `stream`: which token tensor of a
    block; by default "video" or "image", of control blocks what they carry on. Raises WanlabError for a site that is
    not there, while another thread generates, and in the forward for a tensor that does not fit or steps that the run
    lacks; branches that no run had are a warning at the end. No spec tells of an edit: a result's `ran["attachments"]`
    does, which is `resolved` in its run.json.
    """
    chosen = _select(model, site)
    clock = _Clock(fn, steps, branches, site=site)
    handles: list[Handle] = []
    handle = Handle.join(handles)
    with Interrupts() as interrupts:
        try:
            handles.append(model.on_begin(clock.begin))
            for place, side in chosen:
                patch: Callable[..., Any] = _AttentionEdit(clock, side, f"{place.where.site}.{side}")
                if not place.where.part:
                    patch = functools.partial(_block, clock, side, place, stream)
                handles.append(place.site.wrap(patch, "edit"))
            with interrupts.let_through():
                yield
            clock.check_branches()
        finally:
            handle.remove()


def _select(model: Any, pattern: str) -> list[tuple[Place, str]]:
    everywhere = list(places(model))
    chosen = [(p, side) for p in everywhere for side in _sides(p.where) if calls(p.where, side, pattern)]
    if not chosen:
        names = {f"{form}.{side}" for p in everywhere for form in p.where.forms for side in _sides(p.where)}
        raise missing(pattern, names, "site to edit")
    return chosen


def _sides(where: Where) -> tuple[str, ...]:
    return ATTENTION_SIDES if where.part else SIDES


@dataclass
class _Clock:
    """The user's function, with when it applies."""

    fn: Edit
    steps: Collection[int] | None
    branches: Collection[str] | None
    ctx: StepContext | None = None

    site: str = ""
    seen: set[str] = field(default_factory=set)
    """Guidance branches of the runs."""

    def begin(self, ctx: StepContext) -> None:
        self.ctx = ctx
        self.seen.update(ctx.branch.split("+"))
        if self.steps and not any(0 <= step < ctx.num_steps for step in self.steps):
            raise WanlabError(
                f"The edit of {self.site} is for steps {shorten(self.steps)}, and the run has {ctx.num_steps}",
                remedy=f"Give steps from 0 to {ctx.num_steps - 1}",
            )

    def check_branches(self) -> None:
        """Warn where runs had none of the branches: they are what they would be without the edit."""
        if self.branches and self.seen and not self.seen.intersection(self.branches):
            known = ", ".join(sorted(self.seen))
            text = f"The edit of {self.site} is for branches {shorten(list(self.branches))}, and there were {known}."
            warnings.warn(f"{text} Nothing was edited.", stacklevel=4)

    def __call__(self, tensor: Tensor, name: str) -> Tensor:
        """The tensor with each branch's part edited; itself where nothing was."""
        ctx = self.ctx
        assert ctx is not None, "a forward before model.begin"
        if self.steps is not None and ctx.step not in self.steps:
            return tensor
        branches = ctx.branch.split("+")
        before = tensor.chunk(len(branches)) if len(branches) > 1 else (tensor,)
        after = [
            self._edited(part, replace(ctx, branch=branch), name)
            if self.branches is None or branch in self.branches
            else part
            for part, branch in zip(before, branches, strict=True)
        ]
        if all(new is old for new, old in zip(after, before, strict=True)):
            return tensor
        return torch.cat(after) if len(after) > 1 else after[0]

    def _edited(self, tensor: Tensor, ctx: StepContext, name: str) -> Tensor:
        version = tensor._version
        new = self.fn(tensor, ctx)
        wanted = (tuple(tensor.shape), tensor.dtype, tensor.device)
        got = (tuple(new.shape), new.dtype, new.device) if isinstance(new, Tensor) else type(new).__name__
        if got != wanted:
            raise WanlabError(
                f"The edit of {name} returned {_words(got)} for {_words(wanted)}",
                remedy="Return a tensor of the same shape, dtype and device",
            )
        if tensor._version != version:
            raise WanlabError(
                f"The edit of {name} changed its tensor in place, which others may hold",
                remedy="Work on tensor.clone()",
            )
        return new


def _words(what: Any) -> str:
    return what if isinstance(what, str) else " ".join(map(str, what))


def _block(
    clock: _Clock,
    side: str,
    place: Place,
    stream: str | None,
    call: Callable[..., Streams],
    streams: Streams,
    **span: int | None,
) -> Streams:
    name = f"{place.where.site}.{side}"
    if side == "in":
        return call(_with(clock, streams, _stream(place, streams, stream), name), **span)
    after = call(streams, **span)
    return _with(clock, after, _stream(place, after, stream), name)


def _with(clock: _Clock, streams: Streams, stream: str, name: str) -> Streams:
    tensor = streams.tokens[stream]
    new = clock(tensor, name)
    return streams if new is tensor else streams.with_tokens(**{stream: new})


def _stream(place: Place, streams: Streams, asked: str | None) -> str:
    """The token tensor to edit. Raises WanlabError for one that is not there."""
    if asked is not None and asked not in streams.tokens:
        raise WanlabError(f"{place.where.site} has no stream {asked!r}", choices=streams.tokens)
    usual = _CONTROLS if place.kind == "hint" else _MAIN
    return asked or next(name for name in usual if name in streams.tokens)


@dataclass(frozen=True)
class _AttentionEdit:
    """Edits one of an attention's tensors."""

    clock: _Clock
    side: str
    name: str

    def __call__(
        self,
        call: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        site: AttentionSite,
        mask: Tensor | None = None,
    ) -> Tensor:
        given = {"q": q, "k": k, "v": v}
        if self.side in given:
            given[self.side] = self.clock(given[self.side], self.name)
            return call(*given.values(), site, mask)
        return self.clock(call(q, k, v, site, mask), self.name)
